"""Medians, ratios and tables in Markdown, of figures that were seen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

Turn = Mapping[str, float]  # rates by contender, of one round at one level


class Spread(msgspec.Struct, frozen=True):
    """A median, and the least and the most that it is a median of."""

    median: float
    low: float
    high: float
    count: int

    def show(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread | None:
    """None of no values."""
    if not values:
        return None
    return Spread(median(values), min(values), max(values), len(values))


def find_ratios(turns: Sequence[Turn], name: str, other: str) -> list[float]:
    """How many times `other` is `name`, within each turn that has both."""
    return [turn[name] / turn[other] for turn in turns if name in turn and other in turn]


def rates_of(turns: Sequence[Turn], name: str) -> list[float]:
    return [turn[name] for turn in turns if name in turn]


def ratio_rows(
    turns_by_level: Mapping[int, Sequence[Turn]], name: str, others: Sequence[str]
) -> list[list[str]]:
    """A row a level: `name` over each of `others`, the median of the turns and their extremes."""
    return [
        [str(level), *(_cell(spread(find_ratios(turns, name, other)), 3) for other in others)]
        for level, turns in turns_by_level.items()
    ]


def rate_rows(
    turns_by_level: Mapping[int, Sequence[Turn]], names: Sequence[str]
) -> list[list[str]]:
    """A row a level: everybody's own rate."""
    return [
        [str(level), *(_cell(spread(rates_of(turns, name)), 1) for name in names)]
        for level, turns in turns_by_level.items()
    ]


def _cell(found: Spread | None, digits: int) -> str:
    return "-" if found is None else found.show(digits)


def judge(value: float | None, target: float) -> str:
    if value is None:
        return "not measured"
    return "met" if value >= target else "missed"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
