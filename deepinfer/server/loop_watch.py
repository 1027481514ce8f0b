"""Measures how late the event loop is, and says in the log what kept it.

All connections share one loop: while one callback runs, nobody else is answered. A thread looks at
the loop's stack while it is late, since afterwards nothing is left to see.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from deepinfer.server.meter import Histogram

logger = logging.getLogger(__name__)

TICK_S = 0.1
LOOK_AFTER_S = 0.1  # late: the thread reads the loop's stack
LOGGED_LAG_S = 0.25
SHOWN_FRAMES = 6


class LoopWatch:
    """Belongs to the running loop; `lag` receives one value in seconds each tick."""

    def __init__(self, lag: Histogram) -> None:
        self._lag = lag
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._is_stopped = threading.Event()
        self._seen = ""  # the loop's stack when it was late
        self._due_at = 0.0
        self._cpu_at = 0.0  # processor time of the loop's thread at the last tick
        self._handle: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._look, name="loop-watch", daemon=True)

    def start(self) -> None:
        self._schedule()
        self._thread.start()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._is_stopped.set()
        self._thread.join()

    def _schedule(self) -> None:
        self._due_at = time.monotonic() + TICK_S
        self._cpu_at = time.thread_time()
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        lag_s = max(time.monotonic() - self._due_at, 0.0)
        self._lag.observe(lag_s)
        if lag_s >= LOGGED_LAG_S:
            # Without processor time it was the machine that was busy, or was suspended.
            cpu_s = time.thread_time() - self._cpu_at
            logger.warning(
                "the event loop was late by %.0f ms, of which it computed for %.0f; it was at %s",
                lag_s * 1e3,
                min(cpu_s, lag_s) * 1e3,
                self._seen or "a call that could not be seen",
            )
        self._seen = ""
        self._schedule()

    def _look(self) -> None:
        while not self._is_stopped.wait(TICK_S):
            if time.monotonic() - self._due_at >= LOOK_AFTER_S and not self._seen:
                frame = sys._current_frames().get(self._thread_id)
                self._seen = "" if frame is None else _describe(frame)


def _describe(frame: FrameType) -> str:
    """The innermost calls, the last one first."""
    shown: list[str] = []
    place: FrameType | None = frame
    while place is not None and len(shown) < SHOWN_FRAMES:
        path = Path(place.f_code.co_filename)
        shown.append(f"{path.parent.name}/{path.name}:{place.f_lineno} {place.f_code.co_qualname}")
        place = place.f_back
    return " < ".join(shown)
