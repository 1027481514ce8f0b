"""One `generate` of an engine client: its terms, its clock, and the chunks that came for it."""

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


class Call:
    """Unread chunks of a call's sequences, and the error that ends it. For one event loop."""

    def __init__(self, terms: Terms = DEFAULT_TERMS) -> None:
        self.terms = terms
        self._is_admitted = False
        self._chunks: list[TokenChunk] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

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

    def deliver(self, chunk: TokenChunk) -> None:
        self._chunks.append(chunk)
        self._wake()

    def fail(self, error: RequestError) -> None:
        self._error = error
        self._wake()

    async def receive(self) -> list[TokenChunk]:
        """Every chunk since the last time, at least one. Raises the error that came instead."""
        if not self._chunks and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks, self._chunks = self._chunks, []
        if chunks:
            return chunks
        assert self._error is not None
        raise self._error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _leave_queue(self) -> None:
        if not self._is_admitted:
            waited_s = self.terms.queue_timeout_s
            self.fail(RequestTimeout(f"The request has waited {waited_s:g} s for its turn"))

    def _end(self) -> None:
        self.fail(RequestTimeout(f"The request has taken longer than {self.terms.timeout_s:g} s"))
