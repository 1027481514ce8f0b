"""What is known of an engine's lives, and what its keeper and its client know of each other.

The keeper starts the engine process and starts it again; the client talks to it. They may be in one
process, or one keeper may serve the clients of several. Nothing here does anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from deepinfer.engine import EngineStatus, Load
from deepinfer.runtime import wire


class Lives(msgspec.Struct, frozen=True):
    """The lives of one engine so far."""

    num_starts: int = 0
    has_been_ready: bool = False  # in any of them
    num_failed: int = 0  # that have ended since one was ready, that one included
    failure: wire.Failed | None = None  # how the last one ended; None while one is ready
    dead_pid: int | None = None  # of the last process that has ended
    cannot_start: bool = False  # the last start has come to nothing by itself

    @property
    def is_ready(self) -> bool:
        return self.has_been_ready and self.failure is None


class Kept(Protocol):
    """A client as its keeper sees it."""

    status: EngineStatus
    load: Load
    failure: wire.Failed | None  # what the engine said before it ended
    num_ready: int  # lives that have been ready
    heard_at: float  # when the engine last said anything, by the clock of the event loop
    num_chunks: int  # that the engine had made for anybody when it was last asked

    @property
    def is_connected(self) -> bool: ...

    def ping(self) -> None:
        """Ask the engine whether it is there."""

    def on_lives(self, lives: Lives) -> None:
        """Take notice of a death."""


class Keeper(Protocol):
    """Whoever starts the engine, as a client sees it."""

    @property
    def socket_path(self) -> Path:
        """Where to connect; between two lives that waits in the socket's backlog."""

    @property
    def lives(self) -> Lives: ...

    async def start(self, kept: Kept) -> None:
        """From now on `kept.on_lives` is called after each death."""

    async def close(self) -> None:
        """Call nobody any more, and end the engine if it is this process's own."""
