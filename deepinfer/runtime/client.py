"""The API process's side of one engine: generate, cancel, and know how the engine is.

All methods belong to one event loop. A step's tokens arrive as one message and wake each waiting
request once, however many sequences it has. The client knows no text and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import cast

from deepinfer.engine import (
    FAILED,
    READY,
    RESTARTING,
    STARTING,
    STOPPED,
    Capacity,
    EngineOptions,
    EngineStatus,
    Load,
)
from deepinfer.errors import (
    BackendError,
    EngineLoading,
    EngineUnavailable,
    RequestError,
    ShuttingDown,
    request_error_by_code,
)
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.runtime import wire
from deepinfer.runtime.supervisor import EngineSupervisor

logger = logging.getLogger(__name__)

LOADING_RETRY_S = 2
RESTART_RETRY_S = 2


class EngineClient:
    """Starts an engine and sends it requests. `start` first, `close` last."""

    def __init__(self, engine: EngineFolder, options: EngineOptions) -> None:
        self.engine = engine
        self.status = EngineStatus(STARTING)
        self.load = Load()
        self.capacity: Capacity | None = None
        self._supervisor = EngineSupervisor(engine, options, self._on_exit)
        self._mailboxes: dict[str, _Mailbox] = {}
        self._connection: _Connection | None = None
        self._failure: wire.Failed | None = None
        self._has_been_ready = False
        self._is_closing = False
        self._first_load = asyncio.Event()
        self._drained = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None

    @property
    def manifest(self) -> EngineManifest:
        return self.engine.manifest

    @property
    def num_in_flight(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._mailboxes)

    @property
    def engine_pid(self) -> int | None:
        return self._supervisor.pid

    @property
    def num_restarts(self) -> int:
        return max(self._supervisor.num_starts - 1, 0)

    async def start(self) -> None:
        """Start the engine process and return at once; `status` says how the loading goes."""
        await self._supervisor.start()
        await self._connect()

    async def wait_ready(self) -> None:
        """Wait for the end of the first load. Raises BackendError when it fails."""
        await self._first_load.wait()
        if not self._has_been_ready:
            failure = self._failure or wire.Failed("the engine was closed while it loaded")
            raise BackendError(failure.message, hint=failure.hint)

    async def generate(
        self, requests: Sequence[GenerationRequest]
    ) -> AsyncGenerator[list[TokenChunk], None]:
        """Run `requests` together and yield their new chunks, those of one wake-up as one list.

        Ends when each request has had its finish reason. Closing the generator cancels what still
        runs. Raises a RequestError: before the first item when the engine does not take the
        requests (it takes all or none), later when the engine process dies under them.
        """
        connection = self._check_accepting()
        mailbox = _Mailbox()
        unfinished = {request.request_id for request in requests}
        self._mailboxes.update(dict.fromkeys(unfinished, mailbox))
        connection.send(wire.Submit(tuple(requests)))
        try:
            while unfinished:
                chunks = await mailbox.receive()
                unfinished -= {chunk.request_id for chunk in chunks if chunk.finish_reason}
                yield chunks
        finally:
            self._forget({request.request_id for request in requests}, unfinished)

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences of a running `generate` early; each gets one last chunk, CANCELLED.

        An id that has ended already, or never was, is passed over.
        """
        running = [request_id for request_id in request_ids if request_id in self._mailboxes]
        for request_id in running:
            last = TokenChunk(request_id, finish_reason=FinishReason.CANCELLED)
            self._mailboxes.pop(request_id).deliver(last)
        if running and self._connection is not None:
            self._connection.send(wire.Cancel(tuple(running)))

    async def close(self, timeout_s: float) -> None:
        """Take no more work, give running requests up to `timeout_s`, and end the engine."""
        self._is_closing = True
        if self._mailboxes:
            self._drained.clear()
            try:
                await asyncio.wait_for(self._drained.wait(), timeout_s)
            except TimeoutError:
                logger.warning("%d sequences did not finish in time", len(self._mailboxes))
        self._fail_all(ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S))
        self.status = EngineStatus(STOPPED)
        await self._supervisor.close()
        self._first_load.set()

    # Towards the engine

    def _check_accepting(self) -> _Connection:
        if self._is_closing:
            raise ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S)
        if self.status.is_ready and self._connection is not None:
            return self._connection
        if self._has_been_ready:
            raise EngineUnavailable(
                "The engine ended unexpectedly and is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        if self.status.phase == FAILED:
            raise EngineUnavailable(f"The engine failed to load: {self.status.message}")
        raise EngineLoading(
            f"The engine is loading: {self.status.phase}, {self.status.percent}%",
            retry_after_s=LOADING_RETRY_S,
        )

    def _forget(self, request_ids: set[str], unfinished: set[str]) -> None:
        for request_id in request_ids:
            self._mailboxes.pop(request_id, None)
        if unfinished and self._connection is not None:
            self._connection.send(wire.Cancel(tuple(unfinished)))
        if not self._mailboxes:
            self._drained.set()

    async def _connect(self) -> None:
        # Between two lives of the engine this waits in the socket's backlog for the next one.
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_unix_connection(
            lambda: _Connection(self), str(self._supervisor.socket_path)
        )

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except OSError as error:
            # Only when the supervisor has closed its socket: the server is ending.
            logger.debug("not connecting to the engine again: %s", error)

    # From the engine

    def on_message(self, message: wire.FromEngine) -> None:
        """Called by the connection with each message, in order."""
        if isinstance(message, wire.Step):
            self._on_step(message)
        elif isinstance(message, wire.Rejected):
            self._on_rejected(message)
        elif isinstance(message, wire.Progress):
            self._on_progress(message)
        elif isinstance(message, wire.Ready):
            self._on_ready(message)
        else:
            self._failure = message

    def on_connection_lost(self) -> None:
        """Called when the engine process is gone, before its exit status is known."""
        self._connection = None
        if self._is_closing:
            return
        if self._has_been_ready:
            self.status = EngineStatus(RESTARTING, message=self._failure_text)
        self.load = Load()
        self._fail_all(
            EngineUnavailable(
                "The engine ended while this request was running; it is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        )
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    def _on_exit(self, exit_status: int) -> bool:
        """Whether the supervisor should start another: not if the engine never came up at all."""
        if self._failure is None:
            self._failure = wire.Failed(
                f"the engine process ended with status {exit_status}",
                "its last words are in the log above; try again with --log-level DEBUG",
            )
        if self._has_been_ready:
            return True
        self.status = EngineStatus(FAILED, message=self._failure_text)
        self._first_load.set()
        return False

    @property
    def _failure_text(self) -> str | None:
        return None if self._failure is None else self._failure.message

    def _on_progress(self, message: wire.Progress) -> None:
        if not self._has_been_ready:
            self.status = EngineStatus(message.phase, message.percent)

    def _on_ready(self, message: wire.Ready) -> None:
        logger.info("engine `%s` loaded in %.1f s", self.manifest.name, message.load_s)
        self.capacity = message.capacity
        self.status = EngineStatus(READY, 100)
        self._failure = None
        self._has_been_ready = True
        self._first_load.set()

    def _on_step(self, message: wire.Step) -> None:
        self.load = message.load
        for chunk in message.chunks:
            # A request that was cancelled a moment ago may still have tokens under way.
            mailbox = self._mailboxes.get(chunk.request_id)
            if mailbox is not None:
                mailbox.deliver(chunk)

    def _on_rejected(self, message: wire.Rejected) -> None:
        error = request_error_by_code(message.code)(
            message.message, param=message.param, retry_after_s=message.retry_after_s
        )
        for mailbox in {self._mailboxes.get(request_id) for request_id in message.request_ids}:
            if mailbox is not None:
                mailbox.fail(error)

    def _fail_all(self, error: RequestError) -> None:
        for mailbox in set(self._mailboxes.values()):
            mailbox.fail(error)


class _Mailbox:
    """Chunks on their way from the connection to the one coroutine that waits for them."""

    def __init__(self) -> None:
        self._chunks: list[TokenChunk] = []
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, chunk: TokenChunk) -> None:
        self._chunks.append(chunk)
        self._wake()

    def fail(self, error: RequestError) -> None:
        self._error = error
        self._wake()

    async def receive(self) -> list[TokenChunk]:
        """Every chunk since the last call, at least one. Raises the error that came instead."""
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


class _Connection(asyncio.Protocol):
    """Frames in and out of one Unix socket."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._reader = wire.FrameReader()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for body in self._reader.feed(data):
            self._client.on_message(wire.decode_from_engine(body))

    def connection_lost(self, error: Exception | None) -> None:
        self._client.on_connection_lost()

    def send(self, message: wire.ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode(message))
