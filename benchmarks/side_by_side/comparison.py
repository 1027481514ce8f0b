"""One part of the page that is measured side by side: the first contender over each of the others.

Ratios come first: they are taken within a turn, where all met the same machine, and the median is
theirs. Rates by themselves say how fast the machine was that day.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.side_by_side.contender import Contender, Model, Unit
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.rounds import Level, Say, Seen, run_lives
from benchmarks.side_by_side.tables import (
    Turn,
    find_ratios,
    judge,
    rate_rows,
    ratio_rows,
    spread,
    table,
)

TURNS = (
    "All take turns, with the same prompts, and have generated the same number of tokens. "
    "The extremes are in brackets."
)
ANEW = "All were started {} times, since two processes of the same program may differ by 3%."


@dataclass(frozen=True)
class Comparison:
    title: str
    levels: tuple[Level, ...]
    num_rounds: int  # of a life
    units: tuple[Unit, ...] = ("tokens",)
    target: float | None = None  # of the first over the second, in the first unit
    num_lives: int = 1  # in each of which all are started anew


def compare(
    comparison: Comparison,
    contenders: Sequence[Contender],
    model: Model,
    budget_s: float,
    say: Say,
) -> Part:
    end_at = time.monotonic() + budget_s
    levels, num_rounds, num_lives = comparison.levels, comparison.num_rounds, comparison.num_lives
    seen, absent = run_lives(contenders, model, levels, num_lives, num_rounds, end_at, say)
    texts = [
        describe_loads(comparison, seen),
        *show(comparison, seen, [one.name for one in contenders]),
        describe_contenders(contenders, absent),
    ]
    figures = {"turns": seen, "absent": absent}
    return Part(title=comparison.title, text="\n\n".join(texts), figures=figures)


def show(comparison: Comparison, seen: Seen, names: Sequence[str]) -> Iterator[str]:
    """The tables, of those that were seen."""
    turns = [turn for turns in seen.values() for turn in turns]
    first, *others = [name for name in names if any(name in turn for turn in turns)] or [""]
    for unit in comparison.units:
        rates = rates_by_level(seen, unit)
        if others:
            yield f"{unit.capitalize()} a second of {first} over those of others:"
            headers = ["streams", *(f"over {name}" for name in others)]
            yield table(headers, ratio_rows(rates, first, others))
        if unit == comparison.units[0] and others and comparison.target is not None:
            yield judge_levels(rates, first, others[0], comparison.target)
        yield f"{unit.capitalize()} a second, of all streams together:"
        yield table(["streams", *names], rate_rows(rates, names))


def judge_levels(
    rates: Mapping[int, Sequence[Turn]], first: str, second: str, target: float
) -> str:
    words = []
    for level, turns in rates.items():
        ratio = spread(find_ratios(turns, first, second))
        words.append(f"{judge(ratio.median if ratio else None, target)} at {level}")
    return f"Target, at least {target:g} times {second}: {', '.join(words)}."


def rates_by_level(seen: Seen, unit: Unit) -> dict[int, list[Turn]]:
    """Only servers have events."""
    return {
        level: [
            {name: found.rate(unit) for name, found in turn.items() if found.count(unit)}
            for turn in turns
        ]
        for level, turns in seen.items()
    }


def describe_loads(comparison: Comparison, seen: Seen) -> str:
    lines = [
        f"- {one.streams} at once: {one.prompt_tokens} tokens in and {one.output_tokens} out each, "
        f"median of {len(seen[one.streams])} turns"
        for one in comparison.levels
    ]
    how = [TURNS, ANEW.format(comparison.num_lives)] if comparison.num_lives > 1 else [TURNS]
    return "\n".join([*lines, "", " ".join(how)])


def describe_contenders(contenders: Sequence[Contender], absent: Mapping[str, str]) -> str:
    """A line each: what it was, or why it was not."""
    lines = []
    for one in contenders:
        if reason := absent.get(one.name):
            lines.append(f"- {one.name}: left out, {reason}")
        else:
            about = ", ".join(part for part in (one.version, one.precision, one.note) if part)
            lines.append(f"- {one.name}: {about}")
    return "\n".join(lines)
