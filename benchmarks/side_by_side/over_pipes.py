"""A contender without a server: a process that takes prompts as token ids and says how long it was.

It is spared what a server does besides: HTTP, tokenising, detokenising and streaming.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from benchmarks.side_by_side.child import Child, ChildOwner
from benchmarks.side_by_side.contender import Load, Measured, Model, Unavailable


class PipeContender(ChildOwner):
    """Subclasses say what they are called and which command takes jobs for a model."""

    name = ""
    precision = ""
    note = ""

    def __init__(self, logs: Path) -> None:
        self._log = logs / f"{self.name}.log"
        self._tokenizer: Tokenizer | None = None

    @property
    def version(self) -> str:
        raise NotImplementedError

    def prepare(self, model: Model) -> None:
        """Nothing, where it is a part of this project's own environment."""

    def command(self, model: Model) -> list[str]:
        raise NotImplementedError

    def start(self, model: Model) -> None:
        self._tokenizer = Tokenizer.from_file(str(model.checkpoint / "tokenizer.json"))
        self._child = Child(self.command(model), self._log, is_asked=True)

    def measure(self, load: Load) -> Measured:
        assert self._child is not None and self._tokenizer is not None, "it is started"
        encodings = self._tokenizer.encode_batch(load.prompts, add_special_tokens=False)
        job = {"prompts": [one.ids for one in encodings], "max_tokens": load.output_tokens}
        answer = self._child.ask(json.dumps(job))
        if answer is None:
            raise Unavailable(f"{self.name} ended: {self._child.last_words}")
        found = json.loads(answer)
        return Measured(found["num_tokens"], found["elapsed_s"])
