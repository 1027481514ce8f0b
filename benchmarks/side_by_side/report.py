"""The report of a run: one page in Markdown, and the figures beside it as JSON.

Both are written again after every part, so that a run that is cut short keeps what it has seen.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from deepinfer import __version__
from deepinfer.bench.machine import MachineRates
from deepinfer.bench.report import write_file
from deepinfer.device import read_machine

PAGE, FIGURES = "bench.md", "bench.json"


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the page; `figures` is what its tables were made of."""

    title: str
    text: str  # Markdown
    figures: Any = None


class Report(msgspec.Struct, kw_only=True):
    kind: str = "side_by_side"
    schema_version: int = 1
    created_at: str
    deepinfer_version: str = __version__
    python_version: str
    machine: str
    rates: MachineRates
    is_quick: bool
    parts: list[Part] = []
    elapsed_s: float = 0.0


def begin(rates: MachineRates, *, is_quick: bool) -> Report:
    cpu = read_machine().cpu
    return Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        python_version=platform.python_version(),
        machine=f"{cpu.name}, {cpu.num_threads} CPUs",
        rates=rates,
        is_quick=is_quick,
    )


def write(report: Report, folder: Path) -> None:
    figures = msgspec.json.format(msgspec.json.encode(report), indent=2)
    write_file(folder / FIGURES, figures + b"\n")
    write_file(folder / PAGE, render(report).encode())


def render(report: Report) -> str:
    return (
        "\n\n".join(["# Measurements, side by side", *_head(report), *map(_show, report.parts)])
        + "\n"
    )


def _head(report: Report) -> Sequence[str]:
    rates = report.rates
    lines = [
        f"{report.machine}; memory read at {rates.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"{rates.gemm_flops / 1e9:.0f} GFLOP/s in float32 with {rates.num_threads} threads. "
        f"DeepInfer {report.deepinfer_version}, Python {report.python_version}. "
        f"{report.created_at}, {report.elapsed_s / 60:.1f} minutes."
    ]
    if report.is_quick:
        lines.append("**A quick run: it shows that all of it works, and its figures say nothing.**")
    return lines


def _show(part: Part) -> str:
    return f"## {part.title}\n\n{part.text}"
