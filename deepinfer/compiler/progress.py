"""What a user sees of a running build: one line for each phase, alive on a terminal.

Lines go to stderr. Where that is no terminal, each phase is announced and then reported with its
time, in plain text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from deepinfer.terminal import format_bytes


class Progress:
    """Phases as plain lines."""

    def __init__(self, stream: TextIO | None = None) -> None:
        # The stream of now: libraries that are silenced later must not silence this.
        self.stream = stream or sys.stderr

    @contextmanager
    def phase(self, name: str, detail: str) -> Iterator[None]:
        """Show that `name` runs, and how long it took when it ended well."""
        started_at = time.monotonic()
        self.write(f"{name:<10}{detail}")
        yield
        self.write(f"{name:<10}done in {time.monotonic() - started_at:.1f} s")

    def advance(self, num_bytes: int, total_bytes: int) -> None:
        """Show how far the running phase is. Plain lines say only when it ends."""

    def write(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


class LiveProgress(Progress):
    """Phases on a terminal: a spinner and a clock beside the one that runs."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._show: Callable[[str], None] | None = None  # while a phase runs

    @contextmanager
    def phase(self, name: str, detail: str) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import Progress as Live
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        started_at = time.monotonic()
        live = Live(
            TextColumn(f"{name:<10}{detail}"),
            TextColumn("{task.description}"),
            SpinnerColumn(),
            TimeElapsedColumn(),
            console=Console(file=self.stream, highlight=False),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            task = live.add_task("", total=None)
            self._show = lambda text: live.update(task, description=text)
            yield
        self.write(f"{name:<10}{detail} ({time.monotonic() - started_at:.1f} s)")

    def advance(self, num_bytes: int, total_bytes: int) -> None:
        if self._show is not None:
            self._show(f"{format_bytes(num_bytes)} of {format_bytes(total_bytes)}")
