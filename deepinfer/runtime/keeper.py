"""Keeps an engine of this process's own alive: starts it, watches it, and says when it has died.

What the engine itself says comes to the client, where the keeper reads it. How long a dead engine
is waited for is decided here; what becomes of its requests is the clients' business.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from deepinfer import tasks
from deepinfer.engine import EngineOptions
from deepinfer.manifest import EngineFolder
from deepinfer.runtime import wire
from deepinfer.runtime.lives import Kept, Lives
from deepinfer.runtime.supervisor import EngineSupervisor
from deepinfer.runtime.watchdog import Life, Watchdog

# Between two starts of an engine that dies again and again: before it is ready, or at its work.
MAX_BACKOFF_S = 30.0
MAX_BACKOFF_AFTER_WORK_S = 1.0


class EngineKeeper:
    """One engine process over all its lives."""

    def __init__(self, engine: EngineFolder, options: EngineOptions) -> None:
        self._supervisor = EngineSupervisor(engine, options, self._on_exit)
        self._watchdog = Watchdog(
            options.hang_timeout_s,
            find_life=self._find_life,
            ping=self._ping,
            kill=self._supervisor.kill,
        )
        self._kept: Kept | None = None
        self._watching: asyncio.Task[None] | None = None
        self._num_ready = 0  # lives that had been ready at the last death
        self._num_failed = 0
        self._failure: wire.Failed | None = None
        self._dead_pid: int | None = None
        self._cannot_start = False  # whether the last start has come to nothing by itself

    @property
    def socket_path(self) -> Path:
        return self._supervisor.socket_path

    @property
    def pid(self) -> int | None:
        """The process id of the engine process that runs now."""
        return self._supervisor.pid

    @property
    def lives(self) -> Lives:
        kept, num_starts = self._kept, self._supervisor.num_starts
        if kept is None:
            return Lives(num_starts)
        if kept.status.is_ready:
            return Lives(num_starts, has_been_ready=True)
        return self._describe(kept)

    def _describe(self, kept: Kept) -> Lives:
        return Lives(
            self._supervisor.num_starts,
            kept.num_ready > 0,
            self._num_failed,
            self._failure,
            self._dead_pid,
            self._cannot_start,
        )

    async def start(self, kept: Kept) -> None:
        """Start the first process and return at once."""
        self._kept = kept
        await self._supervisor.start()
        self._watching = tasks.start(
            tasks.keep_running("the engine's watchdog", self._watchdog.run), "the engine's watchdog"
        )

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._supervisor.close()

    def _find_life(self) -> Life | None:
        pid, kept = self.pid, self._kept
        if pid is None or kept is None or not kept.is_connected:
            return None
        return Life(
            pid,
            is_loading=not kept.status.is_ready,
            is_busy=kept.load.num_running > 0,
            heard_at=kept.heard_at,
            num_chunks=kept.num_chunks,
        )

    def _ping(self) -> None:
        if self._kept is not None:
            self._kept.ping()

    def _on_exit(self, fault: str, pid: int | None, was_killed: bool) -> float | None:
        """How long to put off the next start at most; None if the engine never came up at all."""
        kept = self._kept
        assert kept is not None, "no engine is started before its client is known"
        was_ready = kept.num_ready > self._num_ready
        self._num_ready = kept.num_ready
        self._num_failed = 1 if was_ready else self._num_failed + 1
        self._cannot_start = not was_ready and not was_killed
        self._failure = kept.failure or wire.Failed(
            fault, "its last words are in the log above; try again with --log-level DEBUG"
        )
        kept.failure = None  # what is said of this life is not said of the next one
        self._dead_pid = pid or self._dead_pid
        lives = self._describe(kept)
        kept.on_lives(lives)
        if not lives.has_been_ready:
            return None
        return MAX_BACKOFF_S if self._num_failed > 1 else MAX_BACKOFF_AFTER_WORK_S
