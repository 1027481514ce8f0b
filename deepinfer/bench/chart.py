"""The throughput-latency curve of a sweep, as a self-contained HTML page or as a PNG.

The page has one SVG panel per latency, with a line for the median and one for the 99th percentile,
and a table of all figures. The PNG needs matplotlib, from the extra `bench`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

from deepinfer.bench.report import (
    SWEEP_HEADERS,
    Document,
    Percentiles,
    Run,
    Summary,
    sweep_row,
)
from deepinfer.errors import BenchError

WIDTH, HEIGHT = 560, 320  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 36, 44  # margins
NUM_TICKS = 5
COLORS = {"p50": "#1f6fb4", "p99": "#c8471f"}
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
svg { display: inline-block; margin: 0 1em 1em 0; font-size: 11px }
table { border-collapse: collapse } th, td { padding: .3em .8em; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child { text-align: left }
.quiet { color: #666 }
"""


@dataclass(frozen=True)
class Series:
    name: str  # p50 or p99
    points: tuple[tuple[float, float, str], ...]  # output tokens/s, ms, load


@dataclass(frozen=True)
class Panel:
    title: str
    series: tuple[Series, ...]

    @property
    def top(self) -> tuple[float, float]:
        """The largest value of each axis."""
        points = [point for one in self.series for point in one.points]
        return max(x for x, _, _ in points), max(y for _, y, _ in points)


LATENCIES: dict[str, Callable[[Summary], Percentiles | None]] = {
    "Time to first token, ms": lambda summary: summary.ttft_s,
    "Inter-token latency, ms": lambda summary: summary.itl_s,
    "End to end, ms": lambda summary: summary.e2e_s,
}


def make_panels(runs: Sequence[Run]) -> list[Panel]:
    """One panel per latency that some run has. Runs without a token rate are omitted."""
    panels = []
    for title, latency in LATENCIES.items():
        known = [
            (run, times, rate)
            for run in runs
            if (times := latency(run.summary)) is not None
            and (rate := run.summary.output_tokens_per_s) is not None
        ]
        series = tuple(
            Series(
                name,
                tuple((rate, getattr(times, name) * 1000, run.level) for run, times, rate in known),
            )
            for name in COLORS
        )
        if known:
            panels.append(Panel(title, series))
    return panels


def ticks(top: float) -> list[float]:
    """About NUM_TICKS round numbers from 0 to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(top / NUM_TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if top / (step * factor) <= NUM_TICKS)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def render_page(document: Document) -> str:
    panels = "\n".join(map(_render_panel, make_panels(document.runs)))
    head = "".join(f"<th>{escape(header)}</th>" for header in SWEEP_HEADERS)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in sweep_row(run)) + "</tr>"
        for run in document.runs
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in document.notes)
    title = f"{document.model} at {document.url}"
    origin = (
        f"{document.url}, {document.created_at}, measured by deepinfer "
        f"{document.deepinfer_version} on {document.machine}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n<h1>{escape(document.model)}</h1>\n"
        f'<p class="quiet">{escape(origin)}</p>\n{panels}\n'
        f"<table><tr>{head}</tr>\n{rows}</table>\n{notes}</html>\n"
    )


def _render_panel(panel: Panel) -> str:
    x_ticks, y_ticks = (ticks(top) for top in panel.top)
    scale = _Scale(x_ticks[-1], y_ticks[-1])
    grid = []
    for value in y_ticks:
        y = scale.y(value)
        grid.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        grid.append(_text(LEFT - 6, y + 4, f"{value:g}", anchor="end"))
    for value in x_ticks:
        x = scale.x(value)
        grid.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        grid.append(_text(x, HEIGHT - BOTTOM + 16, f"{value:g}", anchor="middle"))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img">',
        _text(LEFT, TOP - 16, panel.title, size=13),
        *grid,
        _text((WIDTH + LEFT) / 2, HEIGHT - 8, "output tokens/s", anchor="middle"),
        *(_line(one, scale) for one in panel.series),
        *(
            _text(WIDTH - RIGHT - 40 * (i + 1), TOP - 16, name, color=COLORS[name])
            for i, name in enumerate(COLORS)
        ),
        "</svg>",
    ]
    return "\n".join(parts)


@dataclass(frozen=True)
class _Scale:
    """Converts values to pixels."""

    x_top: float
    y_top: float

    def x(self, value: float) -> float:
        return LEFT + value / self.x_top * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y_top * (HEIGHT - TOP - BOTTOM)


def _line(series: Series, scale: _Scale) -> str:
    color = COLORS[series.name]
    placed = [(scale.x(x), scale.y(y), label) for x, y, label in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' + _text(x + 5, y - 5, label)
        for x, y, label in placed
    )
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>{dots}'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, color: str = "#444"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )


def check_png(path: Path) -> None:
    """Raise BenchError if matplotlib is missing, to fail before anything is measured."""
    if find_spec("matplotlib") is None:
        raise BenchError(
            f"`{path}` needs matplotlib, which is not installed",
            hint="`pip install 'deepinfer[bench]'`, or omit `--png`: there is an HTML page",
        )


def write_png(path: Path, document: Document) -> None:
    """The panels side by side. Raises BenchError if the file cannot be written."""
    from matplotlib.figure import Figure

    panels = make_panels(document.runs)
    figure = Figure(figsize=(5.5 * max(len(panels), 1), 4), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        axes.set_title(panel.title)
        axes.set_xlabel("output tokens/s")
        for series in panel.series:
            x, y = ([point[axis] for point in series.points] for axis in (0, 1))
            axes.plot(x, y, marker="o", color=COLORS[series.name], label=series.name)
            for rate, latency_ms, load in series.points:
                axes.annotate(load, (rate, latency_ms), fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend()
    figure.suptitle(document.model)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise BenchError(f"cannot write `{path}`: {error.strerror}") from error
