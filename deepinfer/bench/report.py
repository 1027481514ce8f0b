"""The report of a benchmark over HTTP: a document for machines, versioned, and its tables.

The document is `{"schema_version": 1, "kind": "serve", "runs": [...], ...}`; a sweep has one run a
level. Fields may be added within a version, none is removed or changed in meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from deepinfer.bench.summary import Spread, Summary
from deepinfer.errors import BenchError

SCHEMA_VERSION = 1
BUSY_CPU_SHARE = 0.8  # of a core, from where on the client's own work may show in the figures
MAX_LAG_S = 0.02  # of the client of an open loop


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as the command line had it."""

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
    client_cpu_share: float  # of one core, the busiest process of the client
    client_max_lag_s: float  # of an open loop: by how much the client was late at most

    @property
    def level(self) -> str:
        """The load as a number: requests a second, `2/s`, or requests at once, `8`."""
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
    """Raises BenchError with the reason when it cannot be."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BenchError(f"cannot write `{path}`: {error.strerror}") from error


def read_document(path: Path) -> Document:
    hint = "give a file that `deepinfer bench serve --json` has written"
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except OSError as error:
        raise BenchError(f"cannot read `{path}`: {error.strerror}", hint=hint) from error
    except msgspec.MsgspecError as error:
        raise BenchError(f"`{path}` is not the report of a benchmark: {error}", hint=hint) from None
    if document.schema_version != SCHEMA_VERSION:
        raise BenchError(
            f"`{path}` has schema version {document.schema_version}; this is for {SCHEMA_VERSION}",
            hint="measure it again with this version",
        )
    return document


def check_success(document: Document) -> None:
    """Raises BenchError when there is not one answer in it, so that a script does not go on."""
    errors = [code for run in document.runs for code in run.summary.errors]
    if errors and not any(run.summary.num_ok for run in document.runs):
        raise BenchError(f"no request succeeded; most ended as `{errors[0]}`")


# For people

SPREAD_HEADERS = ("", "MEAN", "P50", "P90", "P99")


def overview(run: Run) -> list[tuple[str, str]]:
    """The figures of one run that are one number each."""
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
        ("tokens an event", _plain(summary.tokens_per_event)),
    ]
    if summary.num_short:
        rows.append(("short answers", f"{summary.num_short} ended before the length asked for"))
    if (goodput := summary.goodput) is not None:
        share = f"{goodput.requests_per_s:.2f} requests/s, {goodput.share:.1%} of all"
        rows.append(("goodput", share))
    rows.append(("client CPU", f"{run.client_cpu_share:.0%} of a core"))
    return rows


def spreads(run: Run) -> list[tuple[str, ...]]:
    summary = run.summary
    named = [
        ("time to first token, ms", summary.ttft_s, 1000.0),
        ("inter-token latency, ms", summary.itl_s, 1000.0),
        ("end to end, ms", summary.e2e_s, 1000.0),
        ("prompt tokens", summary.prompt_tokens, 1.0),
        ("output tokens", summary.output_tokens, 1.0),
    ]
    return [(name, *_cells(one, scale)) for name, one, scale in named if one is not None]


def _cells(one: Spread, scale: float) -> list[str]:
    return [f"{value * scale:.2f}" for value in (one.mean, one.p50, one.p90, one.p99)]


SWEEP_HEADERS = (
    *("LOAD", "REQUESTS/S", "OUTPUT TOKENS/S", "TTFT P50 MS", "TTFT P99 MS"),
    *("ITL P50 MS", "ITL P99 MS", "E2E P50 MS", "FAILED", "CLIENT CPU"),
)


def sweep_row(run: Run) -> tuple[str, ...]:
    summary = run.summary
    return (
        run.level,
        f"{summary.requests_per_s:.2f}",
        _rate(summary.output_tokens_per_s),
        *_ends_ms(summary.ttft_s),
        *_ends_ms(summary.itl_s),
        _ends_ms(summary.e2e_s)[0],
        str(summary.num_requests - summary.num_ok),
        f"{run.client_cpu_share:.0%}",
    )


def _ends_ms(one: Spread | None) -> tuple[str, str]:
    return ("-", "-") if one is None else (f"{one.p50 * 1000:.2f}", f"{one.p99 * 1000:.2f}")


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def warnings(runs: Sequence[Run]) -> list[str]:
    """Why some figures may be the client's and not the server's."""
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
