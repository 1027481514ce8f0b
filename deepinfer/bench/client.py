"""Sends prompts to a target and says what became of each: connections are kept, errors counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from deepinfer.bench.connection import ConnectionEnded, HttpConnection
from deepinfer.bench.events import (
    CHAT_OUTPUT,
    COMPLETION_OUTPUT,
    EventReader,
    read_error_code,
    read_usage,
)
from deepinfer.bench.outcome import CountedBy, Outcome
from deepinfer.bench.target import Prompt, Target


class Answer:
    """Takes the body of one answer: events when it is a stream that succeeds, else all of it."""

    def __init__(self, target: Target) -> None:
        self.reader = EventReader(
            COMPLETION_OUTPUT if target.route == "completions" else CHAT_OUTPUT
        )
        self.status = 0
        self._is_streaming = target.is_streaming
        self._pieces: list[bytes] = []

    def take(self, status: int, data: bytes, at: float) -> None:
        self.status = status
        if status == 200 and self._is_streaming:
            self.reader.feed(data, at)
        else:
            self._pieces.append(data)

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    @property
    def usage(self) -> dict[str, int]:
        return (self.reader.usage if self._is_streaming else read_usage(self.body)) or {}

    @property
    def error(self) -> str | None:
        """A name for what is wrong with an answer that ended as HTTP has it."""
        if self.status != 200:
            code = read_error_code(self.body)
            return f"http_{self.status}" + (f" {code}" if code else "")
        if not self._is_streaming:
            code = read_error_code(self.body)
            return f"answer {code}" if code else None
        if code := self.reader.error_code:
            return f"stream {code}"
        has_something = self.reader.is_done or self.reader.output_at
        return None if has_something else "empty_stream"


class BenchClient:
    """For one event loop. Connections that are free are used again, the latest first."""

    def __init__(self, target: Target, *, timeout_s: float) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._tls = target.tls
        self._free: list[HttpConnection] = []

    async def ask(self, prompt: Prompt, *, due_at: float | None = None) -> Outcome:
        """Send `prompt` and wait for the whole answer. Nothing is raised: errors are outcomes."""
        request = self.target.request(prompt)
        now = time.perf_counter()
        # The loop's timer may be early by half of its millisecond, and no answer shall gain by it.
        started_at = now if due_at is None else min(due_at, now)
        answer = Answer(self.target)
        error = await self._exchange(request, answer)
        ended_at = time.perf_counter()
        answer.reader.finish(ended_at)
        return _describe(answer, prompt, started_at, ended_at, error or answer.error)

    async def fetch(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of a plain request. Raises OSError, ConnectionEnded or TimeoutError."""
        pieces: list[bytes] = []

        def take(_status: int, data: bytes, _at: float) -> None:
            pieces.append(data)

        async with asyncio.timeout(self._timeout_s):
            connection = await HttpConnection.open(self.target.host, self.target.port, self._tls)
            try:
                status = await connection.exchange(self.target.render(method, path, fields), take)
            finally:
                connection.close()
        return status, b"".join(pieces)

    def close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()

    async def _exchange(self, request: bytes, answer: Answer) -> str | None:
        """The name of what went wrong on the way, if anything did."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer.status = await self._send(request, answer)
        except TimeoutError:
            return "timeout"
        except ConnectionEnded as ended:
            return ended.code
        except OSError as refused:
            return (
                "connection_refused" if isinstance(refused, ConnectionRefusedError) else "network"
            )
        return None

    async def _send(self, request: bytes, answer: Answer) -> int:
        connection = await self._acquire()
        was_used = connection.num_exchanges > 0
        try:
            status = await connection.exchange(request, answer.take)
        except ConnectionEnded as ended:
            if not was_used or ended.has_answered:
                raise
            # The server let go of an idle connection just as it was to be used again.
            connection = await self._open()
            status = await connection.exchange(request, answer.take)
        if connection.is_open:
            self._free.append(connection)
        else:
            connection.close()
        return status

    async def _acquire(self) -> HttpConnection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        return await self._open()

    async def _open(self) -> HttpConnection:
        return await HttpConnection.open(self.target.host, self.target.port, self._tls)


def _describe(
    answer: Answer, prompt: Prompt, started_at: float, ended_at: float, error: str | None
) -> Outcome:
    usage, output_at = answer.usage, answer.reader.output_at
    output_tokens = usage.get("completion_tokens")
    counted_by: CountedBy = "usage"
    if output_tokens is None:
        counted_by = "events" if output_at else "nothing"
        output_tokens = len(output_at) if output_at else None
    return Outcome(
        started_at=started_at,
        ended_at=ended_at,
        output_at=output_at.tobytes(),
        prompt_tokens=usage.get("prompt_tokens"),
        output_tokens=output_tokens,
        asked_tokens=prompt.max_tokens,
        counted_by=counted_by,
        error=error,
    )
