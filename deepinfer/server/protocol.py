"""HTTP/1.1 with bounds on what comes before a body: its bytes, its fields and its time.

uvicorn reads any head, however long it is and takes. What this refuses is refused before a request
exists, so it has no id and no line in the log of requests. It also has the outlet by which a part
of a response is written at once, where ASGI takes a coroutine for it. It knows no routes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from deepinfer.errors import HeadTooLarge, InvalidHttp, RequestError
from deepinfer.server.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 100
OUTLET_KEY = "deepinfer.outlet"


class Outlet:
    """Where a response that has begun may be written past ASGI, as long as its client keeps up."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write

    def try_write(self, part: bytes) -> bool:
        """Write a part now, or return False: then `send` is the way, and waits if it must."""
        cycle = self._cycle
        if self._flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
            return False
        self._write(b"%x\r\n%b\r\n" % (len(part), part))
        return True


def find_outlet(scope: Scope) -> Callable[[bytes], bool]:
    """`try_write` of the response to this request; on another kind of server it never can."""
    outlet = scope.get(OUTLET_KEY)
    return outlet.try_write if isinstance(outlet, Outlet) else lambda _: False


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `receive_timeout_s` is set by a subclass, since uvicorn makes the objects."""

    receive_timeout_s: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = self._field_bytes = self._num_fields = 0
        self._is_in_head = True
        self._error: RequestError | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        # The parser keeps a field to itself until all of it has come.
        if was_in_head and self._is_in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._error = _too_large()
                self.send_400_response("")

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
        self._end_head()
        super().on_headers_complete()
        if self.cycle.scope is self.scope:  # not for a request to speak another protocol
            self.scope[OUTLET_KEY] = Outlet(self.cycle)  # type: ignore[literal-required]

    def send_400_response(self, msg: str) -> None:
        """What is no request, or a refused one, is answered and ends the connection."""
        if not self._is_answering:  # in the midst of another response it would be a part of that
            error = self._error or InvalidHttp("The request is not valid HTTP/1.1")
            self.transport.write(_as_bytes(error))
        self.transport.close()

    @property
    def _is_answering(self) -> bool:
        cycle = self.cycle  # none before the first request
        has_begun = cycle and cycle.response_started and not cycle.response_complete
        return bool(self.pipeline or has_begun)

    def _check_head(self, num_bytes: int) -> None:
        if num_bytes > MAX_HEAD_BYTES or self._num_fields > MAX_FIELDS:
            self._error = _too_large()
            raise self._error  # the parser stops, and `data_received` sends a response

    def _begin_head(self) -> None:
        self._head_bytes, self._is_in_head = 0, True
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.receive_timeout_s, self.transport.close)

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
