"""The handle of a generation: its options, its timeouts, and the chunks that came for it.

Chunks are either received by a task that waits for them, or pushed: a callback is called as they
come. Pushing wakes no task up, which is most of what a token would cost otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deepinfer.errors import RequestError, RequestTimeout
from deepinfer.generation import TokenChunk


@dataclass(frozen=True)
class GenerationOptions:
    """How requests that were submitted together are served.

    `tenant` is the name of the key that asked; the queue is fair between tenants. Of one tenant's
    requests those with a lower `priority` come first. The timeouts are in seconds from the
    submission; None is no limit. `on_admitted` is called once, when the first sequence has
    left the queue.
    """

    tenant: str = ""
    priority: int = 0
    queue_timeout_s: float | None = None
    timeout_s: float | None = None
    on_admitted: Callable[[], None] | None = None


DEFAULT_OPTIONS = GenerationOptions()

# Takes the chunks of one engine step, and returns whether it wants those of the next as well.
OnChunks = Callable[[list[TokenChunk]], bool]


class GenerationHandle:
    """Unread chunks of the sequences that were submitted together, and the error that ends them.

    For one event loop.
    """

    def __init__(self, options: GenerationOptions = DEFAULT_OPTIONS) -> None:
        self.options = options
        self._is_admitted = False
        self._chunks: list[TokenChunk] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_chunks: OnChunks | None = None
        self._is_pushing = False

    @contextmanager
    def timeouts(self) -> Iterator[None]:
        """Apply the timeouts of the options to what is done within."""
        options, call_later = self.options, asyncio.get_running_loop().call_later
        timers: list[asyncio.TimerHandle] = []
        if options.queue_timeout_s is not None:
            timers.append(call_later(options.queue_timeout_s, self._end_waiting))
        if options.timeout_s is not None:
            timers.append(call_later(options.timeout_s, self._end))
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()

    def admit(self) -> None:
        """A sequence has left the queue."""
        if not self._is_admitted:
            self._is_admitted = True
            if self.options.on_admitted is not None:
                self.options.on_admitted()

    def deliver(self, chunk: TokenChunk) -> bool:
        """Keep a chunk until `flush`. Whether it is the first one that nobody has read yet."""
        is_first = not self._chunks
        self._chunks.append(chunk)
        return is_first

    def flush(self) -> None:
        """Hand on what was delivered, once for all chunks of an engine step."""
        if self._on_chunks is None:
            self._wake()
        elif not self._is_pushing:  # a on_chunks that cancels a sequence comes by here again
            self._push_chunks(self._on_chunks)

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

    async def push(self, on_chunks: OnChunks) -> None:
        """Call `on_chunks` with the chunks of each step, at once, until it returns False.

        What is delivered after that, and an error that comes, wait for the next `push` or
        `receive`. Raises what `on_chunks` raises, and the error that comes instead of chunks.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._on_chunks = on_chunks
        self._push_chunks(on_chunks)
        if self._error is not None:
            self._wake()
        try:
            await self._waiter
            wants_more = self._on_chunks is not None
        finally:
            self._on_chunks = None
        if wants_more and self._error is not None:
            raise self._error

    def _push_chunks(self, on_chunks: OnChunks) -> None:
        self._is_pushing = True
        try:
            while self._chunks and self._on_chunks is not None:
                if not on_chunks(self._take()):
                    self._on_chunks = None
                    self._wake()
        except Exception as error:
            self._on_chunks = None
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        finally:
            self._is_pushing = False

    def _take(self) -> list[TokenChunk]:
        chunks, self._chunks = self._chunks, []
        return chunks

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_waiting(self) -> None:
        if not self._is_admitted:
            waited_s = self.options.queue_timeout_s
            self.fail(RequestTimeout(f"The request has waited {waited_s:g} s for its turn"))

    def _end(self) -> None:
        self.fail(RequestTimeout(f"The request has taken longer than {self.options.timeout_s:g} s"))
