"""DeepInfer as people run it: `deepinfer serve`, asked over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.side_by_side.contender import Model
from benchmarks.side_by_side.over_http import HttpContender
from deepinfer import __version__
from deepinfer.manifest import read_engine


class DeepInfer(HttpContender):
    name = "DeepInfer over HTTP"

    @property
    def version(self) -> str:
        return __version__

    def __init__(self, logs: Path, *options: str) -> None:
        """`options` are those of `deepinfer serve`."""
        super().__init__(logs)
        self._options = options

    def pause(self) -> None:
        """Nothing: idle it takes no processor time, and its watchdog would see its engine hang."""

    def command(self, model: Model, port: int) -> list[str]:
        self.precision = read_engine(model.engine).manifest.precision
        serve = [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(model.engine)]
        return [*serve, "--port", str(port), *self._options]
