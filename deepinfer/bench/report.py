"""The report of a benchmark over HTTP: the statistics, the JSON document, its tables, comparison.

The document is `{"schema_version": 1, "kind": "serve", "runs": [...], ...}`, with one run for each
level of a sweep. Fields may be added within a version; none is removed or changes its meaning.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import msgspec

from deepinfer.bench.client import RequestResult
from deepinfer.errors import BenchError, ConfigError
from deepinfer.validation import suggest

SCHEMA_VERSION = 1
BUSY_CPU_SHARE = 0.8  # of a core; above it the client itself may limit the figures
MAX_LAG_S = 0.02  # of the client in an open loop
OBJECTIVES = ("ttft", "itl", "e2e")

SPREAD_HEADERS = ("", "MEAN", "P50", "P90", "P99")
SWEEP_HEADERS = (
    *("LOAD", "REQUESTS/S", "OUTPUT TOKENS/S", "TTFT P50 MS", "TTFT P99 MS"),
    *("ITL P50 MS", "ITL P99 MS", "E2E P50 MS", "FAILED", "CLIENT CPU"),
)
COMPARISON_HEADERS = ("LOAD", "FIGURE", "A", "B", "B / A")


class Percentiles(msgspec.Struct, frozen=True):
    mean: float
    p50: float
    p90: float
    p99: float


class Objective(msgspec.Struct, frozen=True):
    """Limits for one request in seconds; None is no limit. `itl` limits a request's mean."""

    ttft: float | None = None
    itl: float | None = None
    e2e: float | None = None

    def is_met(self, result: RequestResult) -> bool:
        """Whether `result` succeeded within every limit; unknown times count as within."""
        pairs = [
            (self.ttft, result.ttft_s),
            (self.itl, result.mean_itl_s),
            (self.e2e, result.latency_s),
        ]
        return result.is_ok and all(
            limit is None or seconds is None or seconds <= limit for limit, seconds in pairs
        )


class Goodput(msgspec.Struct, frozen=True):
    """Requests that met the objective. Failed requests have not met it."""

    objective: Objective
    share: float  # of all requests
    requests_per_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Statistics of the requests that succeeded; `num_requests` and `errors` are of all.

    `elapsed_s` is the time from the start to the end of the last request. A figure is None where
    the server did not report what it needs.
    """

    elapsed_s: float
    num_requests: int
    num_ok: int
    errors: dict[str, int]
    requests_per_s: float
    output_tokens_per_s: float | None
    input_tokens_per_s: float | None
    num_output_tokens: int | None
    num_short: int  # answers with fewer tokens than were asked for
    output_tokens_counted_by: str  # "usage", "events", "nothing", or several of them
    prompt_tokens: Percentiles | None
    output_tokens: Percentiles | None
    tokens_per_event: float | None
    events_per_s: float
    ttft_s: Percentiles | None
    itl_s: Percentiles | None  # between events with output, over all streams
    e2e_s: Percentiles | None
    goodput: Goodput | None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """By linear interpolation; `ordered` is ascending and not empty."""
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """None when there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(fmean(ordered), *(percentile(ordered, percent) for percent in (50, 90, 99)))


def find_goodput(
    results: Sequence[RequestResult], objective: Objective, elapsed_s: float
) -> Goodput:
    num_good = sum(objective.is_met(result) for result in results)
    return Goodput(objective, num_good / max(len(results), 1), num_good / elapsed_s)


def parse_objective(text: str) -> Objective:
    """`ttft=0.5,itl=0.05`, in seconds. Raises ConfigError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in OBJECTIVES:
            raise ConfigError(f"there is no objective `{name}`", hint=suggest(name, OBJECTIVES))
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not 0 < limits[name] < math.inf:
            raise ConfigError(
                f"`{part}` must give a number of seconds above 0", hint="for example `ttft=0.5`"
            )
    return Objective(**limits)


def summarize(
    results: Sequence[RequestResult], elapsed_s: float, objective: Objective | None = None
) -> Summary:
    good = [result for result in results if result.is_ok]
    failures = Counter(result.error for result in results if result.error is not None)
    num_output_tokens = _total(result.output_tokens for result in good)
    num_input_tokens = _total(result.prompt_tokens for result in good)
    num_events = sum(result.num_events for result in good)
    return Summary(
        elapsed_s=elapsed_s,
        num_requests=len(results),
        num_ok=len(good),
        errors=dict(failures.most_common()),
        requests_per_s=len(good) / elapsed_s,
        output_tokens_per_s=_per_s(num_output_tokens, elapsed_s),
        input_tokens_per_s=_per_s(num_input_tokens, elapsed_s),
        num_output_tokens=num_output_tokens,
        num_short=sum(result.is_short for result in good),
        output_tokens_counted_by=" and ".join(sorted({one.counted_by for one in good})),
        prompt_tokens=percentiles(
            one.prompt_tokens for one in good if one.prompt_tokens is not None
        ),
        output_tokens=percentiles(
            one.output_tokens for one in good if one.output_tokens is not None
        ),
        tokens_per_event=num_output_tokens / num_events
        if num_output_tokens and num_events
        else None,
        events_per_s=num_events / elapsed_s,
        ttft_s=percentiles(one.ttft_s for one in good if one.ttft_s is not None),
        itl_s=percentiles(gap for one in good for gap in one.gaps_s),
        e2e_s=percentiles(one.latency_s for one in good),
        goodput=None if objective is None else find_goodput(results, objective, elapsed_s),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """The sum; None unless every count is known."""
    known = list(counts)
    return None if not known or None in known else sum(count or 0 for count in known)


def _per_s(total: int | None, elapsed_s: float) -> float | None:
    return None if total is None else total / elapsed_s


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The load that was requested, as on the command line."""

    route: str
    is_streaming: bool
    concurrency: int | None
    rate_per_s: float | None
    arrivals: str | None
    num_requests: int | None
    duration_s: float | None
    num_warm_up: int
    input_lengths: str | None
    output_lengths: str | None
    dataset: str | None
    prompts: Literal["text", "ids"]
    prefix_tokens: int
    num_prefixes: int
    ignores_eos: bool
    seed: int
    num_processes: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    load: Load
    summary: Summary
    client_cpu_share: float  # of one core, in the busiest process of the client
    client_max_lag_s: float  # of an open loop: largest delay of the client

    @property
    def level(self) -> str:
        """The rate, such as `2/s`, or the concurrency, such as `8`."""
        if self.load.rate_per_s is not None:
            return f"{self.load.rate_per_s:g}/s"
        return str(self.load.concurrency)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["serve"] = "serve"
    schema_version: int = SCHEMA_VERSION
    created_at: str  # ISO 8601, UTC
    deepinfer_version: str
    url: str
    model: str
    machine: str  # of the client
    notes: tuple[str, ...]
    runs: tuple[Run, ...]


def write_document(path: Path, document: Document) -> None:
    write_file(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def write_file(path: Path, content: bytes) -> None:
    """Raises BenchError with the reason if the file cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BenchError(f"cannot write `{path}`: {error.strerror}") from error


def read_document(path: Path) -> Document:
    """Raises BenchError for a file that is not a report of this schema version."""
    hint = "give a file that `deepinfer bench serve --json` has written"
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise BenchError(f"cannot read `{path}`: {error.strerror}", hint=hint) from error
    except msgspec.MsgspecError as error:
        raise BenchError(f"`{path}` is not the report of a benchmark: {error}", hint=hint) from None
    if document.schema_version != SCHEMA_VERSION:
        raise BenchError(
            f"`{path}` has schema version {document.schema_version}; this version reads "
            f"{SCHEMA_VERSION}",
            hint="measure it again with this version",
        )
    return document


def check_success(document: Document) -> None:
    """Raises BenchError if no request succeeded, so that a script stops."""
    errors = [code for run in document.runs for code in run.summary.errors]
    if errors and not any(run.summary.num_ok for run in document.runs):
        raise BenchError(f"no request succeeded; most ended as `{errors[0]}`")


def overview(run: Run) -> list[tuple[str, str]]:
    """Rows with the figures of one run that are a single number."""
    summary = run.summary
    failed = summary.num_requests - summary.num_ok
    rows = [
        ("load", run.level if run.load.rate_per_s else f"{run.level} at once"),
        ("requests", f"{summary.num_requests} in {summary.elapsed_s:.2f} s, {failed} failed"),
        *((f"  {code}", str(count)) for code, count in summary.errors.items()),
        ("requests/s", f"{summary.requests_per_s:.2f}"),
        ("output tokens/s", _rate(summary.output_tokens_per_s)),
        ("input tokens/s", _rate(summary.input_tokens_per_s)),
        ("tokens counted by", summary.output_tokens_counted_by or "-"),
        ("events/s", f"{summary.events_per_s:.1f}"),
        (
            "tokens an event",
            "-" if summary.tokens_per_event is None else f"{summary.tokens_per_event:.2f}",
        ),
    ]
    if summary.num_short:
        rows.append(("short answers", f"{summary.num_short} ended before the length asked for"))
    if (goodput := summary.goodput) is not None:
        share = f"{goodput.requests_per_s:.2f} requests/s, {goodput.share:.1%} of all"
        rows.append(("goodput", share))
    rows.append(("client CPU", f"{run.client_cpu_share:.0%} of a core"))
    return rows


def percentile_rows(run: Run) -> list[tuple[str, ...]]:
    """A row for each latency and length of one run, under SPREAD_HEADERS."""
    summary = run.summary
    named = [
        ("time to first token, ms", summary.ttft_s, 1000.0),
        ("inter-token latency, ms", summary.itl_s, 1000.0),
        ("end to end, ms", summary.e2e_s, 1000.0),
        ("prompt tokens", summary.prompt_tokens, 1.0),
        ("output tokens", summary.output_tokens, 1.0),
    ]
    return [
        (name, *(f"{value * scale:.2f}" for value in (one.mean, one.p50, one.p90, one.p99)))
        for name, one, scale in named
        if one is not None
    ]


def sweep_row(run: Run) -> tuple[str, ...]:
    summary = run.summary
    return (
        run.level,
        f"{summary.requests_per_s:.2f}",
        _rate(summary.output_tokens_per_s),
        *_p50_p99_ms(summary.ttft_s),
        *_p50_p99_ms(summary.itl_s),
        _p50_p99_ms(summary.e2e_s)[0],
        str(summary.num_requests - summary.num_ok),
        f"{run.client_cpu_share:.0%}",
    )


def _p50_p99_ms(one: Percentiles | None) -> tuple[str, str]:
    return ("-", "-") if one is None else (f"{one.p50 * 1000:.2f}", f"{one.p99 * 1000:.2f}")


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """Reasons why some figures may measure the client instead of the server."""
    found = []
    for run in runs:
        if run.client_cpu_share > BUSY_CPU_SHARE:
            share = f"{run.client_cpu_share:.0%} of a core"
            found.append(
                f"load {run.level}: the client took {share} and may be the limit; "
                "use more with `--processes`"
            )
        if run.client_max_lag_s > MAX_LAG_S:
            late = f"{run.client_max_lag_s * 1000:.0f} ms late"
            found.append(f"load {run.level}: the client sent a request {late}")
    return found


def _milliseconds(times: Percentiles | None, name: str) -> float | None:
    return None if times is None else float(getattr(times, name)) * 1000


FIGURES: dict[str, Callable[[Summary], float | None]] = {
    "requests/s": lambda s: s.requests_per_s,
    "output tokens/s": lambda s: s.output_tokens_per_s,
    "goodput, requests/s": lambda s: s.goodput.requests_per_s if s.goodput else None,
    "ttft p50, ms": lambda s: _milliseconds(s.ttft_s, "p50"),
    "ttft p99, ms": lambda s: _milliseconds(s.ttft_s, "p99"),
    "itl p50, ms": lambda s: _milliseconds(s.itl_s, "p50"),
    "itl p99, ms": lambda s: _milliseconds(s.itl_s, "p99"),
    "e2e p50, ms": lambda s: _milliseconds(s.e2e_s, "p50"),
    "e2e p99, ms": lambda s: _milliseconds(s.e2e_s, "p99"),
}


def compare(first: Document, second: Document) -> list[tuple[str, ...]]:
    """A row for each figure that both reports have. Raises BenchError if they share no load."""
    runs = {run.level: run for run in second.runs}
    pairs = [(run, runs[run.level]) for run in first.runs if run.level in runs]
    if not pairs:
        raise BenchError(
            "the two reports have no load in common: "
            f"{_levels(first)} in the first, {_levels(second)} in the second",
            hint="measure both with the same `--concurrency`, `--rate` or `--sweep`",
        )
    rows: list[tuple[str, ...]] = []
    for before, after in pairs:
        for name, figure in FIGURES.items():
            a, b = figure(before.summary), figure(after.summary)
            if a is not None and b is not None:
                ratio = f"{b / a:.3f}" if a else "-"
                rows.append((before.level, name, f"{a:.2f}", f"{b:.2f}", ratio))
    return rows


def differences(first: Document, second: Document) -> list[str]:
    """Warnings about options that differ between the first runs, besides the level."""
    loads = first.runs[0].load, second.runs[0].load
    return [
        f"`{name}` is {getattr(loads[0], name)} in the first and {getattr(loads[1], name)} in the "
        "second"
        for name in loads[0].__struct_fields__
        if getattr(loads[0], name) != getattr(loads[1], name)
        and name not in ("concurrency", "rate_per_s")
    ]


def _levels(document: Document) -> str:
    return ", ".join(run.level for run in document.runs) or "none"
