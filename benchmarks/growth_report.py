"""Tables, JSON and plots of what `growth.py` has measured. It knows rows and no server."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

Row = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Table:
    """Rows with the same columns, of which the one called `over` is what grows.

    Rows with the same `series`, where there is one, are a curve of their own.
    """

    name: str
    title: str
    over: str
    rows: list[Row]
    series: str | None = None

    def as_markdown(self) -> str:
        columns = list(self.rows[0])
        lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += [
            "| " + " | ".join(_show(row[name]) for name in columns) + " |" for row in self.rows
        ]
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n"

    @property
    def curves(self) -> dict[str, list[Row]]:
        curves: dict[str, list[Row]] = {}
        for row in self.rows:
            curves.setdefault("" if self.series is None else str(row[self.series]), []).append(row)
        return curves

    @property
    def measures(self) -> list[str]:
        return [name for name in self.rows[0] if name not in (self.over, self.series)]


def merge(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """One table of several runs' alike: of each figure that was measured, the median."""
    return [
        {
            name: median(row[name] for row in rows) if isinstance(value, float) else value
            for name, value in rows[0].items()
        }
        for rows in zip(*runs, strict=True)
    ]


def write(folder: Path, machine: str, tables: Iterable[Table]) -> None:
    """One JSON file for all tables, and a picture for each where matplotlib is installed."""
    tables = list(tables)
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "tables": {table.name: table.rows for table in tables}}
    (folder / "growth.json").write_text(json.dumps(document, indent=2) + "\n")
    if find_spec("matplotlib") is not None:
        for table in tables:
            _plot(table, folder / f"growth-{table.name}.png")


def _plot(table: Table, path: Path) -> None:
    """A small plot for each measure, all over the same logarithmic axis."""
    from matplotlib.figure import Figure

    num_columns = 3
    num_lines = -(-len(table.measures) // num_columns)
    figure = Figure(figsize=(4 * num_columns, 3 * num_lines), layout="constrained")
    figure.suptitle(table.title)
    for number, measure in enumerate(table.measures, 1):
        axes = figure.add_subplot(num_lines, num_columns, number)
        for label, rows in table.curves.items():
            axes.plot([r[table.over] for r in rows], [r[measure] for r in rows], "o-", label=label)
        axes.set(xscale="log", xlabel=table.over, title=measure)
        axes.set_ylim(bottom=0)
        if number == 1 and table.series is not None:
            axes.legend()
    figure.savefig(path, dpi=100)


def _show(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value
