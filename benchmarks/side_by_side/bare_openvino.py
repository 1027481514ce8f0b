"""The library behind DeepInfer's engines, without DeepInfer: the same engine, loaded alike."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.contender import Model
from benchmarks.side_by_side.over_pipes import PipeContender
from deepinfer.manifest import read_engine


class BarePipeline(PipeContender):
    name = "bare OpenVINO pipeline"
    note = "no server: neither HTTP nor text"
    overrides: Mapping[str, Any] = {}

    @property
    def version(self) -> str:
        return version("openvino-genai")

    def command(self, model: Model) -> list[str]:
        self.precision = read_engine(model.engine).manifest.precision
        script = Path(__file__).parent.parent / "bare_pipeline.py"
        return [sys.executable, str(script), str(model.engine), json.dumps(self.overrides)]


class BareInHugePages(BarePipeline):
    """With its memory where DeepInfer's engines have theirs, which leaves what HTTP costs."""

    name = "bare pipeline in huge pages"
    note = "the same, with its memory as DeepInfer's engines have it"
    overrides: Mapping[str, Any] = {"huge_pages": True}
