"""HTTP/1.1 with bounds on what comes before a body, and after a response that did not wait for it.

uvicorn reads any head, however long it is and takes, and any rest of a body. What this refuses is
refused before a request exists, so it has no id and no line in the log of requests. It also has the
outlet by which a part of a response is written at once, where ASGI takes a coroutine for it. An
offer to upgrade to another protocol is ignored, and a client of HTTP/1.0 gets no chunks. It knows
no routes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deepinfer.errors import HeadTooLarge, InvalidHttp, RequestError
from deepinfer.server.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100
OUTLET_KEY = "deepinfer.outlet"
# A client that still sends when its response is complete must read before the connection is closed,
# or the reset would take the response away. More of its body than this is not read for that.
MAX_LINGER_BYTES = 64 * 1024
LINGER_S = 1.0
# RFC 3986: a name or an IPv4 address, or an IP literal; and a port.
HOST_VALUE = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


class Outlet:
    """Where a response that has begun may be written past ASGI, as long as its client keeps up."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.cycle = cycle
        self.is_early = False  # it did not wait for the whole body, and ends the connection
        self.has_bare_parts = False  # the end of the connection is the end of the response
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def try_write(self, part: bytes) -> bool:
        """Write a part now, or return False: then `send` is the way, and waits if it must."""
        cycle = self.cycle
        if self._flow.write_paused or cycle.disconnected:
            return False
        if cycle.chunked_encoding:
            self._write(b"%x\r\n%b\r\n" % (len(part), part))
            return True
        if self.has_bare_parts:
            self._write(part)
        return self.has_bare_parts


def find_outlet(scope: Scope) -> Callable[[bytes], bool]:
    """`try_write` of the response to this request; on another kind of server it never can."""
    outlet = scope.get(OUTLET_KEY)
    return outlet.try_write if isinstance(outlet, Outlet) else lambda _: False


class _WithoutChunks:
    """An application whose client speaks HTTP/1.0 and knows no chunks, which uvicorn would send.

    The end of the connection is the end of a response that does not say its length.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet: Outlet = scope[OUTLET_KEY]
        cycle = outlet.cycle

        async def send_unchunked(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                if b"content-length" not in names:
                    outlet.has_bare_parts = True
                    cycle.chunked_encoding = False
            elif outlet.has_bare_parts:
                cycle.expected_content_length = len(message.get("body", b""))  # of this part
            await send(message)

        await self._app(scope, receive, send_unchunked)


class _EarlyResponses:
    """An application that may respond before its client has sent all of the body.

    The rest is read by nobody, so such a response ends the connection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet: Outlet = scope[OUTLET_KEY]
        cycle = outlet.cycle
        if not cycle.more_body:  # the body came with the head, as most do
            await self._app(scope, receive, send)
            return

        async def send_and_close(message: Message) -> None:
            if message["type"] != "http.response.start" or not cycle.more_body:
                await send(message)
                return
            given = {name.lower() for name, _ in message["headers"]}
            if b"connection" not in given:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)
            # uvicorn would close at the last byte, while the client still sends.
            outlet.is_early = cycle.keep_alive = True

        await self._app(scope, receive, send_and_close)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `receive_timeout_s` is set by a subclass, since uvicorn makes the objects."""

    receive_timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = self._field_bytes = self._num_fields = 0
        self._is_in_head = True
        self._error: RequestError | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None  # `cycle` may be one that waits for it
        self._is_broken = False  # what follows is no HTTP: the parser is done with it
        self._num_dropped_bytes = 0
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_broken or self._linger_timer is not None:
            self._drop(data)
            return
        was_in_head = self._is_in_head
        self._parse(data)
        # The parser keeps a field to itself until all of it has come.
        has_ended = self._is_broken or self.transport.is_closing()
        if was_in_head and self._is_in_head and not has_ended:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._error = _too_large()
                self.send_400_response("")

    def _parse(self, data: bytes) -> None:
        """Feed the parser, which stops after the head of a request that offers another protocol.

        No other protocol is served, so the request continues as HTTP/1.1 (RFC 9110, section 7.8):
        the parser reads the head once more without the offer, and then the body.
        """
        self._unset_keepalive_if_required()
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as stop:
                if not self._has_unserved_upgrade:
                    return  # CONNECT: what follows is for somewhere else
                head = self._head_without_upgrade()
                rest = rest[stop.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            try:
                self.parser.feed_data(head)
            except httptools.HttpParserError:
                self.send_400_response("")
                return

    @property
    def _has_unserved_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT")

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_fields = self._field_bytes = 0
        self._begin_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._check_head(len(self.url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._num_fields += 1
        self._field_bytes += len(name) + len(value)
        self._check_head(len(self.url) + self._field_bytes)

    def on_headers_complete(self) -> None:
        if self._has_unserved_upgrade:
            return  # no request begins until the head has been read without its offer
        self._end_head()
        is_current = self.parser.get_http_version() == "1.1"
        self._check_host(is_required=is_current)
        app = self.config.loaded_app
        self.app = _EarlyResponses(app if is_current else _WithoutChunks(app))
        super().on_headers_complete()
        self.scope[OUTLET_KEY] = Outlet(self.cycle)  # type: ignore[literal-required]

    def on_message_complete(self) -> None:
        if not self._has_unserved_upgrade:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        cycle = self._running
        assert cycle is not None
        if cycle.scope[OUTLET_KEY].is_early and not self._is_broken:  # type: ignore[literal-required]
            self.server_state.total_requests += 1
            self._linger()
            return
        super().on_response_complete()
        if self._is_broken and not self._has_whole_requests:
            self._refuse()

    def send_400_response(self, msg: str) -> None:
        """What is no request, or a refused one, is answered and ends the connection.

        The requests before it, which came whole, get their responses first.
        """
        self._end_head()
        self._is_broken = True
        if self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the newest one, whose body broke off
        if not self._has_whole_requests:
            self._refuse()

    @property
    def _has_whole_requests(self) -> bool:
        """Whether a request that came whole has not got all of its response."""
        running = self._running
        if running is None or running.response_complete or running.more_body:
            return bool(self.pipeline)
        return True

    def _refuse(self) -> None:
        running = self._running
        # In the midst of a response it would be a part of that.
        if running is None or running.response_complete or not running.response_started:
            error = self._error or InvalidHttp("The request is not valid HTTP/1.1")
            self.transport.write(_as_bytes(error))
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close, once the client has read its response or has sent too much more."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._num_dropped_bytes = 0
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _drop(self, data: bytes) -> None:
        self._num_dropped_bytes += len(data)
        if self._num_dropped_bytes > MAX_LINGER_BYTES:
            if self._linger_timer is not None:
                self.transport.close()
            else:  # a response is still being written
                self.flow.pause_reading()

    def _check_host(self, *, is_required: bool) -> None:
        """RFC 9112, section 3.2."""
        values = [value for name, value in self.headers if name == b"host"]
        if len(values) > 1 or (is_required and not values):
            self._error = InvalidHttp(
                f"A request of HTTP/1.1 has one `Host` field; {len(values)} were sent"
            )
        elif values and HOST_VALUE.fullmatch(values[0]) is None:
            self._error = InvalidHttp("The `Host` field must be a name or an address, and a port")
        if self._error is not None:
            raise self._error

    def _check_head(self, num_bytes: int) -> None:
        if num_bytes > MAX_HEAD_BYTES or self._num_fields > MAX_FIELDS:
            self._error = _too_large()
            raise self._error  # the parser stops, and `data_received` sends a response

    def _begin_head(self) -> None:
        self._head_bytes, self._is_in_head = 0, True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.receive_timeout_s, self._give_head_up)

    def _give_head_up(self) -> None:
        if self._has_whole_requests:
            self._error = InvalidHttp(
                f"The head of the request has not come within {self.receive_timeout_s:g} s"
            )
            self._is_broken = True  # it is answered after them
        else:
            self.transport.close()

    def _end_head(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(receive_timeout_s: float) -> type[BoundedProtocol]:
    return type("Protocol", (BoundedProtocol,), {"receive_timeout_s": receive_timeout_s})


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The head of the request may have at most {MAX_HEAD_BYTES:,} bytes and {MAX_FIELDS} fields"
    )


def _as_bytes(error: RequestError) -> bytes:
    body = msgspec.json.encode(error_body(error))
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
