"""How long prompts and answers are: a fixed number of tokens, or a distribution to draw from."""

from __future__ import annotations

import math
from random import Random
from typing import Literal

import msgspec

from deepinfer.errors import ConfigError

MAX_TOKENS = 1_000_000  # of a prompt or an answer; a lognormal tail has no end of its own
HINT = "give `128`, `uniform:64:256` or `lognormal:128:0.7` (median and sigma; `:2048` caps it)"


class Lengths(msgspec.Struct, frozen=True):
    """Tokens: `low` is the number itself, the least one, or the median of a lognormal."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int  # no draw is longer
    sigma: float = 0.0  # of the logarithm

    def draw(self, rng: Random) -> int:
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return rng.randint(self.low, self.high)
        drawn = rng.lognormvariate(math.log(self.low), self.sigma)
        return min(max(round(drawn), 1), self.high)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        if self.kind == "uniform":
            return f"uniform:{self.low}:{self.high}"
        return f"lognormal:{self.low}:{self.sigma:g}:{self.high}"


def parse_lengths(text: str) -> Lengths:
    """Raises ConfigError for what is none of the three forms."""
    kind, *numbers = text.split(":")
    try:
        lengths = _parse(kind, numbers)
    except ValueError:
        raise ConfigError(f"`{text}` is not a number of tokens", hint=HINT) from None
    if not 1 <= lengths.low <= lengths.high <= MAX_TOKENS:
        raise ConfigError(
            f"`{text}` must lie between 1 and {MAX_TOKENS:,} tokens, the smaller number first",
            hint=HINT,
        )
    if not 0 <= lengths.sigma <= 10:
        raise ConfigError(f"sigma in `{text}` must lie between 0 and 10", hint=HINT)
    return lengths


def _parse(kind: str, numbers: list[str]) -> Lengths:
    match kind, numbers:
        case "uniform", [low, high]:
            return Lengths("uniform", int(low), int(high))
        case "lognormal", [median, sigma]:
            return Lengths("lognormal", int(median), MAX_TOKENS, float(sigma))
        case "lognormal", [median, sigma, high]:
            return Lengths("lognormal", int(median), int(high), float(sigma))
        case _, []:
            return Lengths("fixed", int(kind), int(kind))
    raise ValueError(kind)


def parse_list(text: str) -> tuple[int, ...]:
    """`1,4,16`. Raises ConfigError."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= MAX_TOKENS for number in numbers):
        raise ConfigError(
            f"`{text}` is no list of numbers from 1 to {MAX_TOKENS:,}",
            hint="give numbers such as `1,4,16`",
        )
    return numbers
