"""One HTTP/1.1 connection of the benchmark's client: raw bytes out, pieces of a body in.

The parsing is httptools'; every piece is handed on as it comes, with the moment at which it was
read from the socket. It knows neither JSON nor events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ssl import SSLContext
from typing import cast

import httptools

# Status, a piece of the body, and when it came, by time.perf_counter().
OnBody = Callable[[int, bytes, float], None]


class ConnectionEnded(Exception):
    """The other side closed the connection, or broke the protocol, before the answer was whole."""

    def __init__(self, code: str, *, has_answered: bool) -> None:
        super().__init__(code)
        self.code = code
        self.has_answered = has_answered  # a part of an answer had come


class HttpConnection(asyncio.Protocol):
    """Exchanges one request at a time; it can be used again while `is_open`."""

    def __init__(self) -> None:
        self.is_open = False
        self.num_exchanges = 0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._has_length = False
        self._keeps_alive = True
        self._at = 0.0
        self._on_body: OnBody | None = None
        self._answered: asyncio.Future[int] | None = None

    @classmethod
    async def open(cls, host: str, port: int, tls: SSLContext | None) -> HttpConnection:
        """Raises OSError when there is nobody."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, port, ssl=tls)
        return connection

    async def exchange(self, request: bytes, on_body: OnBody) -> int:
        """Send `request` and wait for the end of its answer; returns the status.

        Raises ConnectionEnded. Cancelling it closes the connection.
        """
        assert self._transport is not None and self._answered is None
        self._answered = asyncio.get_running_loop().create_future()
        self._status, self._has_length, self._on_body = 0, False, on_body
        self._transport.write(request)
        try:
            status = await self._answered
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._answered = self._on_body = None
        self.num_exchanges += 1
        return status

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self._end("broken_http")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        # Without a length and without chunks, the end of the connection is the end of the answer.
        if error is None and self._status and not self._has_length:
            self.on_message_complete()
        else:
            self._end("closed_mid_answer" if self._status else "closed_before_answer")

    # Called by httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None:
            self._on_body(self._status, data, self._at)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(self._status)

    def _end(self, code: str) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionEnded(code, has_answered=bool(self._status)))
