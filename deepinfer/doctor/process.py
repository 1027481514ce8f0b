"""A library loaded in a process of its own: native code that crashes must not take the doctor.

Knows no library: whoever asks brings the program, and reads what it printed.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

PROBE_TIMEOUT_S = 120


@dataclass(frozen=True)
class ProbeResult:
    """How a process that loads a library ended."""

    exit_code: int  # negative: the signal that killed it
    stdout: str
    stderr: str

    @property
    def last_error_line(self) -> str:
        return (self.stderr.strip().splitlines() or ["no message"])[-1]


def run_probe(program: str) -> ProbeResult:
    command = [sys.executable, "-P", "-c", program]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ProbeResult(1, "", f"no answer within {PROBE_TIMEOUT_S} s")
    return ProbeResult(done.returncode, done.stdout, done.stderr)
