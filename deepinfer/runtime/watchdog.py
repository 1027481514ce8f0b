"""Asks an engine process every second whether it is there, and has one that hangs killed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from deepinfer.runtime.heartbeat import Heartbeat, read_cpu_ticks

logger = logging.getLogger(__name__)

PING_INTERVAL_S = 1.0


@dataclass
class Life:
    """The life of the engine that runs now, as far as the watchdog cares."""

    pid: int
    is_loading: bool
    is_busy: bool  # requests run
    heard_at: float  # when it last said anything, by the clock of the event loop
    num_chunks: int  # that it had made when it was last asked


class Watchdog:
    """`find_life` says what runs and is connected now, `ping` asks it, `kill` ends it."""

    def __init__(
        self,
        hang_timeout_s: float,
        *,
        find_life: Callable[[], Life | None],
        ping: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._find_life = find_life
        self._ping = ping
        self._kill = kill
        self._pid: int | None = None
        self._num_chunks = 0
        self._heartbeat = Heartbeat(hang_timeout_s, 0)

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            now = loop.time()
            # If it is this process that was stopped, the engine has had nobody to talk to.
            was_away = now - asked_at > 2 * PING_INTERVAL_S
            asked_at = now
            life = self._find_life()
            if life is None:
                self._pid = None
            elif life.pid != self._pid or was_away:
                self._pid = life.pid
                self._heartbeat = Heartbeat(self._hang_timeout_s, now)
            else:
                self._check(life, now)

    def _check(self, life: Life, now: float) -> None:
        if life.heard_at > self._heartbeat.heard_at:
            self._heartbeat.hear(life.heard_at)
        if life.num_chunks != self._num_chunks:
            self._num_chunks = life.num_chunks
            self._heartbeat.advance(now)
        self._ping()
        ticks = read_cpu_ticks(life.pid)
        fault = self._heartbeat.find_fault(
            now, ticks, is_loading=life.is_loading, is_busy=life.is_busy
        )
        if fault is not None:
            logger.error("engine process %d hangs: %s; killing it", life.pid, fault)
            self._kill()
