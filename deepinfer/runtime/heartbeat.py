"""Tells an engine process that hangs from one that is slow.

A step of the CPU library answers nothing while it runs, for seconds with a long prompt, but it
computes: its processor time goes up. A process that is stopped or deadlocked says nothing and
computes nothing. One whose library or device hangs may do both, and brings no token. Pure, but for
`read_cpu_ticks`, which asks the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Requests that run for so long without a token, of any of them, will have none.
STUCK_AFTER_S = 600.0
# Loading waits for disks, which takes no processor time.
LOADING_FACTOR = 12


@dataclass
class Heartbeat:
    """What is known of one life of an engine process. Times are of one monotonic clock."""

    hang_timeout_s: float
    heard_at: float  # when it last said anything
    _ticks: int = 0
    _computed_at: float = 0.0
    _advanced_at: float = 0.0  # when tokens came last, or nothing ran

    def __post_init__(self) -> None:
        self._computed_at = self._advanced_at = self.heard_at

    def hear(self, now: float) -> None:
        self.heard_at = self._computed_at = now

    def advance(self, now: float) -> None:
        """Tokens have come."""
        self._advanced_at = now

    def find_fault(
        self, now: float, cpu_ticks: int | None, *, is_loading: bool, is_busy: bool
    ) -> str | None:
        """What is wrong with the process, or None. `cpu_ticks` is None where nobody can tell."""
        if not is_busy:
            self.advance(now)
        if cpu_ticks is None or cpu_ticks > self._ticks:
            self._ticks = cpu_ticks or 0
            self._computed_at = now
        timeout_s = self.hang_timeout_s * (LOADING_FACTOR if is_loading else 1)
        if now - max(self.heard_at, self._computed_at) > timeout_s:
            return f"it has neither answered nor computed for {timeout_s:g} s"
        if now - self._advanced_at > max(STUCK_AFTER_S, timeout_s):
            return f"its requests have had no token for {STUCK_AFTER_S:g} s"
        return None


def read_cpu_ticks(pid: int) -> int | None:
    """Processor time of a process, in clock ticks; None where the kernel does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return int(fields[11]) + int(fields[12])  # utime, stime; see proc(5)
