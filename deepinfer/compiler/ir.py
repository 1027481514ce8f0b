"""What an OpenVINO IR holds, read from its XML: how many weights of which type, in how many bytes.

No library is needed, so that a build can be checked by other means than those that made it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True)
class IrSummary:
    elements_by_type: Mapping[str, int]  # keyed as the XML writes them: "f32", "bf16", "u8", "u4"
    needed_bytes: int  # that the weights file must have at least
    weight_file_bytes: int


def read_ir(path: Path) -> IrSummary:
    """Sum up the constants of the model whose XML is at `path`; equal ones are stored once."""
    elements: Counter[str] = Counter()
    seen: set[int] = set()
    needed_bytes = 0
    for _, layer in ElementTree.iterparse(path):
        if layer.tag != "layer":
            continue
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            offset, size = int(data.get("offset", 0)), int(data.get("size", 0))
            needed_bytes = max(needed_bytes, offset + size)
            if offset not in seen:
                seen.add(offset)
                shape = [int(part) for part in data.get("shape", "").split(",") if part.strip()]
                elements[data.get("element_type", "")] += math.prod(shape)
        layer.clear()
    return IrSummary(elements, needed_bytes, path.with_suffix(".bin").stat().st_size)
