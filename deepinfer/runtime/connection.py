"""One Unix socket to an engine process, as the API process holds it: frames in, frames out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from deepinfer.runtime import wire

logger = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Hands each message on as it comes, and says when the other side is there, and gone."""

    def __init__(
        self,
        on_made: Callable[[Connection], None],
        on_message: Callable[[wire.FromEngine], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_made = on_made
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = wire.FrameReader()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        on_made: Callable[[Connection], None],
        on_message: Callable[[wire.FromEngine], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Connect, or wait in the socket's backlog for an engine that is yet to come.

        The other side may speak before this returns, so `on_made` is called with the connection
        before any of its messages. Raises OSError when nobody listens any more.
        """
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: cls(on_made, on_message, on_lost), str(path))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._on_message(wire.decode_from_engine(body))
        except Exception:
            # What has been missed cannot be made up for: the requests go on over another one.
            logger.exception("dropping the connection to the engine")
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()

    def send(self, message: wire.ToEngine) -> bool:
        """False when it cannot be sent any more. Raises MessageTooLarge."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(wire.encode(message))
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
