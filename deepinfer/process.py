"""Child processes: ended with their parent, and probes in which native code may crash or hang."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

PROBE_TIMEOUT_S = 120
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, even in the middle of native code.

    Linux only; elsewhere it does nothing.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class ProbeResult:
    """How the process ended, and all that it had written by then."""

    exit_code: int  # negative: the signal that killed it; 1 when it was given up
    stdout: str
    stderr: str
    has_timed_out: bool = False

    @property
    def last_error_line(self) -> str:
        return (self.stderr.strip().splitlines() or ["no message"])[-1]

    @property
    def failure(self) -> str:
        """What went wrong, for a process that did not end with 0."""
        if self.exit_code < 0:
            return f"crashes with {_signal_name(-self.exit_code)}"
        return self.last_error_line


def run_probe(program: str, *arguments: str, timeout_s: float = PROBE_TIMEOUT_S) -> ProbeResult:
    """Run `program`, whose sys.argv[1:] are `arguments`; it is killed after `timeout_s` seconds."""
    command = [sys.executable, "-P", "-c", program, *arguments]
    # Files and not pipes: a daemon that a library has started may hold a pipe open for ever.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        has_timed_out = False
        try:
            exit_code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            exit_code, has_timed_out = 1, True
            stderr.write(f"\nno answer within {timeout_s:g} s\n".encode())
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return ProbeResult(exit_code, _content(stdout), _content(stderr), has_timed_out)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
