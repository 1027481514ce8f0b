"""One call of an engine: its terms, its clock, and the chunks that came for it.

Chunks are either received by a task that waits for them, or poured into a sink in the very callback
that brings them. Pouring wakes nobody up, which is most of what a token would cost otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deepinfer.errors import RequestError, RequestTimeout
from deepinfer.generation import TokenChunk


@dataclass(frozen=True)
class Terms:
    """On what terms a call is served.

    `tenant` is the name of the key that asked; the queue is fair between tenants. Of one tenant's
    requests those with a lower `priority` come first. The timeouts are in seconds from the
    submission; None is no limit. `on_admitted` is called once, when the first sequence of the call
    has left the queue.
    """

    tenant: str = ""
    priority: int = 0
    queue_timeout_s: float | None = None
    timeout_s: float | None = None
    on_admitted: Callable[[], None] | None = None


DEFAULT_TERMS = Terms()

# Takes the chunks of one engine step, and says whether it wants those of the next as well.
Sink = Callable[[list[TokenChunk]], bool]


class Call:
    """Unread chunks of a call's sequences, and the error that ends it. For one event loop."""

    def __init__(self, terms: Terms = DEFAULT_TERMS) -> None:
        self.terms = terms
        self._is_admitted = False
        self._chunks: list[TokenChunk] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._is_pouring = False

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Hold what is done within to the timeouts of the terms."""
        terms, call_later = self.terms, asyncio.get_running_loop().call_later
        timers: list[asyncio.TimerHandle] = []
        if terms.queue_timeout_s is not None:
            timers.append(call_later(terms.queue_timeout_s, self._leave_queue))
        if terms.timeout_s is not None:
            timers.append(call_later(terms.timeout_s, self._end))
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def admit(self) -> None:
        """A sequence of the call has left the queue."""
        if not self._is_admitted:
            self._is_admitted = True
            if self.terms.on_admitted is not None:
                self.terms.on_admitted()

    def deliver(self, chunk: TokenChunk) -> bool:
        """Keep a chunk until `flush`. Whether it is the first one that nobody has read yet."""
        is_first = not self._chunks
        self._chunks.append(chunk)
        return is_first

    def flush(self) -> None:
        """Hand on what was delivered, once for all chunks of an engine step."""
        if self._sink is None:
            self._wake()
        elif not self._is_pouring:  # a sink that cancels a sequence comes by here again
            self._pour_out(self._sink)

    def fail(self, error: RequestError) -> None:
        self._error = error
        self._wake()

    async def receive(self) -> list[TokenChunk]:
        """Every chunk since the last time, at least one. Raises the error that came instead."""
        if not self._chunks and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks = self._take()
        if chunks:
            return chunks
        assert self._error is not None
        raise self._error

    async def pour(self, sink: Sink) -> None:
        """Call `sink` with the chunks of each step, at once, until it wants no more.

        What is delivered after that, and an error that comes, wait for the next `pour` or
        `receive`. Raises what `sink` raises, and the error that comes instead of chunks.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._sink = sink
        self._pour_out(sink)
        if self._error is not None:
            self._wake()
        try:
            await self._waiter
            wants_more = self._sink is not None
        finally:
            self._sink = None
        if wants_more and self._error is not None:
            raise self._error

    def _pour_out(self, sink: Sink) -> None:
        self._is_pouring = True
        try:
            while self._chunks and self._sink is not None:
                if not sink(self._take()):
                    self._sink = None
                    self._wake()
        except Exception as error:
            self._sink = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        finally:
            self._is_pouring = False

    def _take(self) -> list[TokenChunk]:
        chunks, self._chunks = self._chunks, []
        return chunks

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _leave_queue(self) -> None:
        if not self._is_admitted:
            waited_s = self.terms.queue_timeout_s
            self.fail(RequestTimeout(f"The request has waited {waited_s:g} s for its turn"))

    def _end(self) -> None:
        self.fail(RequestTimeout(f"The request has taken longer than {self.terms.timeout_s:g} s"))
