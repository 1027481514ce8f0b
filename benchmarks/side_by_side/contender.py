"""What a contender is: something that generates tokens for a load, however it is reached.

A load is so many prompts at once, of exactly so many tokens, with answers of exactly so many. This
module knows the words of a measurement and none of the contenders.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, Protocol

Unit = Literal["tokens", "events"]


class Unavailable(Exception):
    """A contender that cannot take part, with the reason in a line."""


@dataclass(frozen=True)
class Model:
    """One checkpoint, and the engine that DeepInfer and the bare pipeline load."""

    checkpoint: Path
    engine: Path
    max_streams: int
    max_seq_len: int


@dataclass(frozen=True)
class Load:
    streams: int
    prompt_tokens: int  # of each stream, as those of the answer
    output_tokens: int
    number: int = 0  # no two loads of a run ask for the same prompts: caches must not answer

    @property
    def num_tokens(self) -> int:
        return self.streams * self.output_tokens

    @property
    def prompts(self) -> list[str]:
        """Texts of letters: the tokenizer of a random checkpoint makes one token of each."""
        rng = Random(f"{self.streams}:{self.number}")
        letters = string.ascii_letters
        return ["".join(rng.choices(letters, k=self.prompt_tokens)) for _ in range(self.streams)]


@dataclass(frozen=True)
class Measured:
    num_tokens: int
    elapsed_s: float
    num_events: int | None = None  # of server-sent events with output; None without a server

    def count(self, unit: Unit) -> int | None:
        return self.num_tokens if unit == "tokens" else self.num_events

    def rate(self, unit: Unit) -> float:
        return (self.count(unit) or 0) / self.elapsed_s


class Contender(Protocol):
    """`prepare` does what takes long and is kept, such as installing. It and `start` raise
    Unavailable; `stop` may come after either, and more than once. One that is paused takes no
    processor time from another's turn: some peers keep a core busy for seconds when they idle."""

    name: str
    precision: str
    note: str  # what a reader of the figures has to know, or nothing

    @property
    def version(self) -> str: ...

    def prepare(self, model: Model) -> None: ...

    def start(self, model: Model) -> None: ...

    def measure(self, load: Load) -> Measured: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def stop(self) -> None: ...


def check_count(name: str, load: Load, measured: Measured) -> Measured:
    """Rates can be compared when the tokens are equal. Raises Unavailable where they are not."""
    if measured.num_tokens != load.num_tokens:
        raise Unavailable(
            f"{name} generated {measured.num_tokens:,} tokens instead of {load.num_tokens:,} "
            f"at {load.streams} streams"
        )
    return measured
