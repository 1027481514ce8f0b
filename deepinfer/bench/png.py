"""The curve of a sweep as a PNG, through matplotlib, which the extra `bench` brings."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from deepinfer.bench.chart import COLORS, make_panels
from deepinfer.bench.report import Document
from deepinfer.errors import BenchError


def check_png(path: Path) -> None:
    """Raise BenchError while nothing has been measured yet, if no PNG could be drawn after it."""
    if find_spec("matplotlib") is None:
        raise BenchError(
            f"`{path}` needs matplotlib, which is not installed",
            hint="`pip install 'deepinfer[bench]'`, or leave out `--png`: there is an HTML page",
        )


def write_png(path: Path, document: Document) -> None:
    """A panel a latency, side by side."""
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
