"""Two reports side by side: how many times of the first the second is, figure by figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deepinfer.bench.report import Document, Run
from deepinfer.bench.summary import Spread, Summary
from deepinfer.errors import BenchError

HEADERS = ("LOAD", "FIGURE", "A", "B", "B / A")


def _tail(spread: Spread | None) -> tuple[float | None, float | None]:
    """Median and 99th percentile in milliseconds."""
    return (None, None) if spread is None else (spread.p50 * 1000, spread.p99 * 1000)


FIGURES: dict[str, Callable[[Summary], float | None]] = {
    "requests/s": lambda s: s.requests_per_s,
    "output tokens/s": lambda s: s.output_tokens_per_s,
    "goodput, requests/s": lambda s: s.goodput.requests_per_s if s.goodput else None,
    "ttft p50, ms": lambda s: _tail(s.ttft_s)[0],
    "ttft p99, ms": lambda s: _tail(s.ttft_s)[1],
    "itl p50, ms": lambda s: _tail(s.itl_s)[0],
    "itl p99, ms": lambda s: _tail(s.itl_s)[1],
    "e2e p50, ms": lambda s: _tail(s.e2e_s)[0],
    "e2e p99, ms": lambda s: _tail(s.e2e_s)[1],
}


def compare(first: Document, second: Document) -> list[tuple[str, ...]]:
    """A row for each figure that both have. Raises BenchError when they share no load."""
    later = {run.level: run for run in second.runs}
    pairs = [(run, later[run.level]) for run in first.runs if run.level in later]
    if not pairs:
        raise BenchError(
            "the two reports have no load in common: "
            f"{_levels(first)} in the first, {_levels(second)} in the second",
            hint="measure both with the same `--concurrency`, `--rate` or `--sweep`",
        )
    return [row for pair in pairs for row in _rows(*pair)]


def differences(first: Document, second: Document) -> list[str]:
    """What else than the server differs between the first runs, so that ratios are not misread."""
    loads = first.runs[0].load, second.runs[0].load
    return [
        f"`{name}` is {getattr(loads[0], name)} in the first and {getattr(loads[1], name)} in the "
        "second"
        for name in loads[0].__struct_fields__
        if getattr(loads[0], name) != getattr(loads[1], name)
        and name not in ("concurrency", "rate_per_s")
    ]


def _rows(first: Run, second: Run) -> Iterator[tuple[str, ...]]:
    for name, figure in FIGURES.items():
        before, after = figure(first.summary), figure(second.summary)
        if before is not None and after is not None:
            ratio = f"{after / before:.3f}" if before else "-"
            yield first.level, name, f"{before:.2f}", f"{after:.2f}", ratio


def _levels(document: Document) -> str:
    return ", ".join(run.level for run in document.runs) or "none"
