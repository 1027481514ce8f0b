"""The curve of a sweep, throughput against latency, as an HTML page that needs nothing else.

The drawing is SVG made here: one panel a latency, a line each for the median and the 99th
percentile, a point a level with its load beside it. The figures stand below in a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from deepinfer.bench.report import SWEEP_HEADERS, Document, Run, sweep_row
from deepinfer.bench.summary import Spread, Summary

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
        """The largest value on each axis."""
        points = [point for one in self.series for point in one.points]
        return max(x for x, _, _ in points), max(y for _, y, _ in points)


LATENCIES: dict[str, Callable[[Summary], Spread | None]] = {
    "Time to first token, ms": lambda summary: summary.ttft_s,
    "Inter-token latency, ms": lambda summary: summary.itl_s,
    "End to end, ms": lambda summary: summary.e2e_s,
}


def make_panels(runs: Sequence[Run]) -> list[Panel]:
    """One a latency that some run has; runs without a rate of tokens are left out."""
    panels = []
    for title, latency in LATENCIES.items():
        series = tuple(Series(name, _points(runs, latency, name)) for name in COLORS)
        if any(one.points for one in series):
            panels.append(Panel(title, series))
    return panels


def _points(
    runs: Sequence[Run], latency: Callable[[Summary], Spread | None], name: str
) -> tuple[tuple[float, float, str], ...]:
    found = []
    for run in runs:
        spread, rate = latency(run.summary), run.summary.output_tokens_per_s
        if spread is not None and rate is not None:
            found.append((rate, getattr(spread, name) * 1000, run.level))
    return tuple(found)


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`, about `NUM_TICKS` of them."""
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
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style>\n<h1>{escape(document.model)}</h1>\n"
        f'<p class="quiet">{escape(_origin(document))}</p>\n{panels}\n'
        f"<table><tr>{head}</tr>\n{rows}</table>\n{notes}</html>\n"
    )


def _origin(document: Document) -> str:
    return (
        f"{document.url}, {document.created_at}, measured by deepinfer "
        f"{document.deepinfer_version} on {document.machine}"
    )


def _render_panel(panel: Panel) -> str:
    x_ticks, y_ticks = (ticks(top) for top in panel.top)
    scale = _Scale(x_ticks[-1], y_ticks[-1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img">',
        _text(LEFT, TOP - 16, panel.title, size=13),
        *(_horizontal(value, scale) for value in y_ticks),
        *(_vertical(value, scale) for value in x_ticks),
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
    """From values to pixels."""

    x_top: float
    y_top: float

    def x(self, value: float) -> float:
        return LEFT + value / self.x_top * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.y_top * (HEIGHT - TOP - BOTTOM)


def _horizontal(value: float, scale: _Scale) -> str:
    y = scale.y(value)
    line = f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
    return line + _text(LEFT - 6, y + 4, f"{value:g}", anchor="end")


def _vertical(value: float, scale: _Scale) -> str:
    x = scale.x(value)
    line = f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>'
    return line + _text(x, HEIGHT - BOTTOM + 16, f"{value:g}", anchor="middle")


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
