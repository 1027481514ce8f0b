"""The report of a benchmark of an engine, as people read it."""

from __future__ import annotations

from deepinfer.bench.engine import EngineReport, Point
from deepinfer.terminal import format_bytes

HEADERS = (
    *("BATCH", "PROMPT", "PREFILL TOKENS/S", "OF LIMIT", "DECODE TOKENS/S", "OF LIMIT"),
    "SPREAD OF DECODE",
)


def facts(report: EngineReport) -> list[tuple[str, str]]:
    rows = [
        ("engine", f"{report.engine} ({report.precision}, {report.backend})"),
        ("weights", format_bytes(report.weight_bytes)),
    ]
    if (machine := report.machine) is not None:
        rows += [
            ("memory, read", f"{machine.read_bytes_per_s / 1e9:.1f} GB/s"),
            ("memory, copied", f"{machine.copy_bytes_per_s / 1e9:.1f} GB/s, both ways together"),
            ("matrix products", f"{machine.gemm_flops / 1e9:.0f} GFLOP/s in float32"),
            ("threads", str(machine.num_threads)),
        ]
    return rows


def row(point: Point) -> tuple[str, ...]:
    bounds, decode = point.bounds, point.decode_tokens_per_s
    return (
        str(point.batch_size),
        str(point.prompt_len),
        f"{point.prefill_tokens_per_s:.1f}",
        _share(point.prefill_tokens_per_s, bounds.prefill_tokens_per_s if bounds else None),
        "-" if decode is None else f"{decode:.1f}",
        _share(decode, bounds.decode_tokens_per_s if bounds else None),
        _extremes(point),
    )


def _share(rate: float | None, bound: float | None) -> str:
    return "-" if rate is None or not bound else f"{rate / bound:.0%}"


def _extremes(point: Point) -> str:
    """The slowest and the fastest trial, so that a median is not taken for more than it is."""
    rates = [trial.decode_tokens_per_s for trial in point.trials]
    known = [rate for rate in rates if rate is not None]
    return f"{min(known):.1f} to {max(known):.1f}" if known else "-"
