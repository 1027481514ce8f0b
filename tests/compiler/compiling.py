"""Builds through the command line, in this process, as a user would start them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy

from deepinfer.__main__ import main
from deepinfer.manifest import EngineFolder, read_engine

NUMPY_TYPES = {"f32": "<f4", "f16": "<f2", "bf16": "<u2", "u8": "|u1", "i8": "|i1"}


def build(checkpoint: Path, output: Path, *flags: str) -> int:
    """Run `deepinfer build` and return its exit code."""
    return main(["build", "--model", str(checkpoint), "--output", str(output), *flags])


def build_engine(checkpoint: Path, output: Path, precision: str, *flags: str) -> EngineFolder:
    assert build(checkpoint, output, "--precision", precision, "--name", precision, *flags) == 0
    return read_engine(output / precision)


def read_constants(engine: EngineFolder) -> Iterator[tuple[str, numpy.ndarray[Any, Any]]]:
    """Element type and values of each constant in the payload's graph, straight from its files.

    bf16 comes as its bits, which numpy has no type for; types below a byte are passed over.
    """
    path = engine.payload_dir / "openvino_model.xml"
    content = path.with_suffix(".bin").read_bytes()
    for layer in ElementTree.parse(path).iter("layer"):
        data = layer.find("data")
        if layer.get("type") != "Const" or data is None:
            continue
        element_type, size = data.get("element_type", ""), int(data.get("size", 0))
        if element_type in NUMPY_TYPES and size:
            start = int(data.get("offset", 0))
            shape = [int(part) for part in data.get("shape", "").split(",") if part.strip()]
            values = numpy.frombuffer(content[start : start + size], NUMPY_TYPES[element_type])
            yield element_type, values.reshape(shape)


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
