"""transformers with its continuous batching, in this project's environment, without a server."""

from __future__ import annotations

import sys
from importlib.metadata import version

from benchmarks.side_by_side.contender import Model
from benchmarks.side_by_side.models import native_dtype
from benchmarks.side_by_side.over_pipes import PipeContender


class Transformers(PipeContender):
    name = "transformers"
    note = "its continuous batching; no server: neither HTTP nor text"

    @property
    def version(self) -> str:
        return version("transformers")

    def command(self, model: Model) -> list[str]:
        self.precision = native_dtype()
        return [
            *(sys.executable, "-m", "benchmarks.side_by_side.hf_transformers_worker"),
            *(str(model.checkpoint), self.precision),
            *(str(model.max_streams), str(model.max_seq_len)),
        ]
