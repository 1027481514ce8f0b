"""Tables and quantities as people read them: through rich on a terminal, plain elsewhere.

A table that is piped has no colour, no frame and no line breaks of its own, so that `cut` and
`grep` work on it. What a file says cannot control the terminal. Nothing here knows what the tables
say.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence

import click

from deepinfer.validation import escape_controls

PIPED_WIDTH = 10_000  # columns; wide enough that rich never folds a cell
MIN_FOLDED_WIDTH = 30  # columns; text in a narrower column cannot be read


def print_table(rows: Iterable[Sequence[str]], *, headers: Sequence[str] = ()) -> None:
    """Print rows of equal length to stdout in aligned columns, under `headers` when given.

    On a terminal the last column folds where there is room to; the others stay whole.
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    rows = [[escape_controls(cell) for cell in row] for row in rows]
    titles = headers or [""] * max((len(row) for row in rows), default=0)
    columns = [Column(title, no_wrap=True) for title in titles[:-1]]
    columns += [Column(title, overflow="fold") for title in titles[-1:]]
    table = Table(
        *columns, box=None, show_header=bool(headers), pad_edge=False, padding=(0, 2, 0, 0)
    )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    if sys.stdout.isatty():
        console = Console(highlight=False)
        console.width = max(console.width, _min_width([titles, *rows]))
        console.print(table)
        return
    page = io.StringIO()
    Console(file=page, width=PIPED_WIDTH, force_terminal=False, highlight=False).print(table)
    for line in page.getvalue().splitlines():
        click.echo(line.rstrip())


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """`click.echo` for lines that say what a file says."""
    click.echo(escape_controls(text, keep="\n"), err=err, nl=nl)


def _min_width(rows: Iterable[Sequence[str]]) -> int:
    """Columns that a terminal needs before folding the last cell of a row helps anybody."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return sum(width + 2 for width in widths[:-1]) + min([*widths[-1:], MIN_FOLDED_WIDTH])


def format_bytes(num_bytes: int) -> str:
    """A size with its binary unit and three digits or so: "812 B", "1.2 GiB", "16 GiB"."""
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.1f} {units[0]}" if size < 10 and units[0] != "B" else f"{size:.0f} {units[0]}"
