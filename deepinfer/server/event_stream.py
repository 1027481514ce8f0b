"""How a generation is sent as it comes, in whatever events its route writes.

Events are written to the connection in the callback that brings their tokens from the engine. Only
when the connection takes no more does the request's task wait for it; what comes meanwhile is put
together, and is one piece when the client has caught up.

A stream begins when its first tokens are there, so that what fails before has a status of its own.
When they take long it begins with a comment, because proxies end what is silent for a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepinfer import tasks
from deepinfer.errors import RequestError
from deepinfer.server.errors import as_request_error
from deepinfer.server.generate import Delta
from deepinfer.server.protocol import find_outlet
from deepinfer.server.record import DIRECT_SEND_KEY, record_of
from deepinfer.server.sse import PING

PING_INTERVAL_S = 15.0
HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy that buffers would undo the streaming
}


class EventWriter(Protocol):
    """Makes bytes of one generation. Called in order, by one stream."""

    def write(self, deltas: list[Delta]) -> bytes:
        """The events of what one engine step has brought; may be empty."""

    def end(self) -> bytes:
        """The last events of a generation that is over."""

    def fail(self, error: RequestError) -> bytes:
        """The last events of a generation that failed on the way."""


class Source(Protocol):
    """What is sent; see `Generation`."""

    @property
    def is_over(self) -> bool: ...

    def deltas(self) -> AsyncGenerator[list[Delta], None]: ...

    async def push(self, on_deltas: Callable[[list[Delta]], bool]) -> None: ...


class EventStream(Response):
    """Sends events as they come. An error on the way becomes the last event.

    Made by `open_stream`. `first` is the first event, or the task that will have its deltas: then
    the stream begins with a comment, and what goes wrong before the first event is an event too.
    """

    def __init__(
        self,
        source: Source,
        deltas: AsyncGenerator[list[Delta], None],
        first: bytes | asyncio.Task[list[Delta]],
        writer: EventWriter,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self.init_headers(HEADERS)
        self._source = source
        self._deltas = deltas
        self._first = first
        self._writer = writer
        self._ping_interval_s = ping_interval_s
        self._num_sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The layers between have seen the head, and have nothing to do with what follows it.
        send_event = scope.get(DIRECT_SEND_KEY, send)
        async with aclosing(self._deltas), _ending(self._first):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            pinging = tasks.start(self._ping(send_event), "the pings of a stream")
            try:
                await send(_body(await self._wait_for_first(send)))
                await self._send_rest(send_event, find_outlet(scope))
                await send_event(_body(self._writer.end()))
            except Exception as error:
                failure = as_request_error(error)
                record_of(scope).error_code = failure.code
                await send(_body(self._writer.fail(failure)))
            finally:
                pinging.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wait_for_first(self, send: Send) -> bytes:
        if isinstance(self._first, bytes):
            return self._first
        await send(_body(PING))
        return self._writer.write(await self._first)

    async def _send_rest(self, send: Send, try_write: Callable[[bytes], bool]) -> None:
        held = b""  # what the connection did not take

        def push(deltas: list[Delta]) -> bool:
            nonlocal held
            event = self._writer.write(deltas)
            if not event:
                return True
            self._num_sent += 1
            if try_write(event):
                return True
            held = event
            return False

        while not self._source.is_over:
            await self._source.push(push)
            if held:
                await send(_body(held))
                held = b""

    async def _ping(self, send: Send) -> None:
        """Keep the connection alive while no event comes: proxies close what is silent."""
        while True:
            num_sent = self._num_sent
            await asyncio.sleep(self._ping_interval_s)
            if num_sent == self._num_sent:
                await send(_body(PING))


def _body(event: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": event, "more_body": True}


@asynccontextmanager
async def _ending(first: bytes | asyncio.Task[list[Delta]]) -> AsyncGenerator[None, None]:
    """Cancel the task at the end if it still runs: its generator cannot be closed before."""
    try:
        yield
    finally:
        if isinstance(first, asyncio.Task):
            first.cancel()
            await asyncio.wait((first,))
            if not first.cancelled():
                first.exception()  # else Python reports that nobody has read it


async def _read_first(deltas: AsyncGenerator[list[Delta], None]) -> list[Delta]:
    return await anext(deltas)


async def open_stream(
    source: Source, writer: EventWriter, first_byte_timeout_s: float
) -> EventStream:
    """Wait for the first tokens, at most the given seconds, and answer with the stream.

    Raises what happens in that time instead of tokens.
    """
    deltas = source.deltas()
    first = asyncio.create_task(_read_first(deltas))
    try:
        await asyncio.wait((first,), timeout=first_byte_timeout_s)
    except asyncio.CancelledError:
        async with _ending(first):
            raise
    if not first.done():
        return EventStream(source, deltas, first, writer)
    return EventStream(source, deltas, writer.write(first.result()), writer)
