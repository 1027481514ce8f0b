"""The library behind DeepInfer's engines, without DeepInfer: the same engine, loaded alike."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.side_by_side.contender import Model
from benchmarks.side_by_side.over_pipes import PipeContender
from deepinfer.manifest import read_engine


class BarePipeline(PipeContender):
    name = "bare OpenVINO pipeline"
    note = "no server: neither HTTP nor text"

    @property
    def version(self) -> str:
        return version("openvino-genai")

    def command(self, model: Model) -> list[str]:
        self.precision = read_engine(model.engine).manifest.precision
        script = Path(__file__).parent.parent / "bare_pipeline.py"
        return [sys.executable, str(script), str(model.engine)]
