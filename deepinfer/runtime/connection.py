"""One Unix socket to an engine process, as the API process holds it: frames in, frames out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import cast

from deepinfer.runtime import wire


class Connection(asyncio.Protocol):
    """Hands each message on as it comes, and says when the other side is gone."""

    def __init__(
        self, on_message: Callable[[wire.FromEngine], None], on_lost: Callable[[], None]
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = wire.FrameReader()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(
        cls, path: Path, on_message: Callable[[wire.FromEngine], None], on_lost: Callable[[], None]
    ) -> Connection:
        """Connect, or wait in the socket's backlog for an engine that is yet to come.

        Raises OSError when nobody listens any more.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(
            lambda: cls(on_message, on_lost), str(path)
        )
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            self._on_message(wire.decode_from_engine(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()

    def send(self, message: wire.ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
