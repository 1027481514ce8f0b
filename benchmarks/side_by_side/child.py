"""A process of a contender's, with a log of its own; it is ended with all that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.side_by_side.environment import find_reason

END_TIMEOUT_S = 30.0
LOG_TAIL_CHARS = 20_000


class Child:
    """Line by line over pipes where `is_asked`; else only its log is kept."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        is_asked: bool = False,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                env=os.environ | dict(environment or {}),
                stdin=subprocess.PIPE if is_asked else subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_asked else output,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def last_words(self) -> str:
        return find_reason(self.log[-LOG_TAIL_CHARS:])

    def ask(self, line: str) -> str | None:
        """The answer to a line; None from a process that has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._process.stdout.readline() or None

    def pause(self) -> None:
        """Take it off the processors, with all that it has started, until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Its group may outlive it: engines are processes of servers."""
        self._signal(signal.SIGTERM)
        self.resume()  # or it would not notice
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class ChildOwner:
    """A contender that lives in a child, once it is started."""

    _child: Child | None = None

    def pause(self) -> None:
        if self._child is not None:
            self._child.pause()

    def resume(self) -> None:
        if self._child is not None:
            self._child.resume()

    def stop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


def run_bounded(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with its output kept, but what the command has started ends with it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
