"""When the requests of an open loop arrive: seconds after its start, without end."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal

ArrivalKind = Literal["poisson", "fixed"]


def arrivals(
    kind: ArrivalKind, rate_per_s: float, rng: Random, *, phase: float = 0.0
) -> Iterator[float]:
    """`phase` moves fixed arrivals by a part of their interval, for processes that share a rate."""
    return _poisson(rate_per_s, rng) if kind == "poisson" else _fixed(rate_per_s, phase)


def _poisson(rate_per_s: float, rng: Random) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_per_s)
        yield at_s


def _fixed(rate_per_s: float, phase: float) -> Iterator[float]:
    index = 0
    while True:
        yield (index + phase) / rate_per_s
        index += 1
