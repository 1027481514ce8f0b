"""An API process's side of one engine: generate, cancel, and know how the engine is.

All methods belong to one event loop. A step's tokens arrive as one message and are handed to each
call once, however many sequences it has. When the engine process dies, what it held is submitted
to the next one and goes on where it was (`traffic.py`). Who starts engines is the keeper's
business, here or in another process (`lives.py`). The client knows no text and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import contextmanager

from deepinfer import tasks
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
    ShuttingDown,
)
from deepinfer.generation import GenerationRequest, TokenChunk
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.runtime import wire
from deepinfer.runtime.call import DEFAULT_TERMS, Call, Terms
from deepinfer.runtime.connection import Connection
from deepinfer.runtime.hangar import RESTART_RETRY_S, Hangar
from deepinfer.runtime.keeper import EngineKeeper
from deepinfer.runtime.lives import Keeper, Lives
from deepinfer.runtime.traffic import Traffic

logger = logging.getLogger(__name__)

LOADING_RETRY_S = 2
MAX_RECONNECT_BACKOFF_S = 1.0
SHORT_CONNECTION_S = 1.0  # one that has lasted no longer is not made again at once each time


class EngineClient:
    """Sends an engine requests. `start` first, `close` last."""

    def __init__(
        self,
        engine: EngineFolder,
        options: EngineOptions,
        keeper: Keeper | None = None,
    ) -> None:
        """Without a `keeper` the client starts the engine itself, and ends it."""
        self.engine = engine
        self.keeper: Keeper = EngineKeeper(engine, options) if keeper is None else keeper
        self.status = EngineStatus(STARTING)
        self.load = Load()
        self.capacity: Capacity | None = None
        self.failure: wire.Failed | None = None
        self.num_ready = 0
        self.heard_at = 0.0
        self.num_chunks = 0
        self._max_failed_lives = options.resume_attempts
        hangar = Hangar(
            options.resume_attempts,
            max_new=options.max_waiting,
            max_new_tokens=options.max_waiting_tokens,
        )
        self._traffic = Traffic(hangar, engine.manifest.limits.max_input_len, self)
        self._connection: Connection | None = None
        self._connected_at = 0.0
        self._num_short_connections = 0  # in a row
        self._engine_pid: int | None = None  # of the last one that was ready
        self._dead_pid: int | None = None
        self._has_lost = False  # a connection, and it is not known yet what to
        self._has_been_ready = False
        self._is_draining = False
        self._is_closed = False
        self._first_load = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def manifest(self) -> EngineManifest:
        return self.engine.manifest

    @property
    def num_in_flight(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._traffic)

    @property
    def num_resumed(self) -> int:
        """Times that a running sequence went on in another life of the engine."""
        return self._traffic.num_resumed

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def num_restarts(self) -> int:
        return max(self.keeper.lives.num_starts - 1, 0)

    async def start(self) -> None:
        """Begin, and return at once; `status` says how the loading goes."""
        await self.keeper.start(self)
        self.on_lives(self.keeper.lives)
        await self._connect()

    async def wait_ready(self) -> None:
        """Wait for the end of the first load. Raises BackendError when it fails."""
        await self._first_load.wait()
        if not self._has_been_ready:
            failure = self.failure or wire.Failed("the engine was closed while it loaded")
            raise BackendError(failure.message, hint=failure.hint)

    async def generate(
        self, requests: Sequence[GenerationRequest], terms: Terms = DEFAULT_TERMS
    ) -> AsyncGenerator[list[TokenChunk], None]:
        """Run `requests` together and yield their new chunks, those of one wake-up as one list.

        Ends when each request has had its finish reason. Closing the generator cancels what still
        runs. Raises a RequestError: before the first item when the engine does not take the
        requests (it takes all or none), later when they cannot be finished.
        """
        num_unfinished = len(requests)
        with self.call(requests, terms) as call:
            while num_unfinished:
                chunks = await call.receive()
                num_unfinished -= sum(chunk.finish_reason is not None for chunk in chunks)
                yield chunks

    @contextmanager
    def call(
        self, requests: Sequence[GenerationRequest], terms: Terms = DEFAULT_TERMS
    ) -> Iterator[Call]:
        """Submit `requests` together; their chunks come to the call. Leaving cancels what runs.

        Raises a RequestError when the engine takes nothing now. Whether it takes these is the
        first thing that the call has to say.
        """
        self._check_accepting()
        with self._traffic.carry(requests, terms) as call:
            yield call

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences of a running `generate` early; each gets one last chunk, CANCELLED.

        An id that has ended already, or never was, is passed over.
        """
        self._traffic.cancel(request_ids)

    async def close(self, timeout_s: float) -> None:
        """Take no more work, give running requests up to `timeout_s`, and end an own engine."""
        self._is_draining = True
        if self.num_in_flight:
            try:
                await asyncio.wait_for(self._traffic.wait_drained(), timeout_s)
            except TimeoutError:
                logger.warning("%d sequences did not finish in time", self.num_in_flight)
        self._is_closed = True
        self._traffic.close(
            ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S)
        )
        self.status = EngineStatus(STOPPED)
        await self.keeper.close()
        connecting = tuple(self._tasks)
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
        self._first_load.set()

    # Towards the engine

    def ping(self) -> None:
        """Have the engine say that it is there."""
        self.send(wire.Ping())

    def _check_accepting(self) -> None:
        if self._is_draining:
            raise ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S)
        if self.status.is_ready:
            return
        if self._has_been_ready:
            if self.status.phase == FAILED:
                raise EngineUnavailable(
                    f"The engine ended and cannot be started again: {self.status.message}",
                    retry_after_s=RESTART_RETRY_S,
                )
            if not self._max_failed_lives:
                raise EngineUnavailable(
                    "The engine ended unexpectedly and is being restarted",
                    retry_after_s=RESTART_RETRY_S,
                )
            return  # it waits for the engine, which is expected back
        if self.status.phase == FAILED:
            raise EngineUnavailable(f"The engine failed to load: {self.status.message}")
        raise EngineLoading(
            f"The engine is loading: {self.status.phase}, {self.status.percent}%",
            retry_after_s=LOADING_RETRY_S,
        )

    def send(self, message: wire.ToEngine) -> bool:
        """False where there is no engine; its end has been told then, or will be.

        Raises MessageTooLarge.
        """
        return self._connection is not None and self._connection.send(message)

    async def _connect(self) -> None:
        # Between two lives of the engine this waits in the socket's backlog for the next one.
        await Connection.open(
            self.keeper.socket_path, self.on_connected, self.on_message, self.on_connection_lost
        )

    async def _reconnect(self) -> None:
        """Connect again, and try again where there are no file descriptors for it, for instance."""
        num_short = self._num_short_connections
        backoff_s = min(0.05 * 2**num_short, MAX_RECONNECT_BACKOFF_S) if num_short > 1 else 0.0
        while not self._is_closed:
            await asyncio.sleep(backoff_s)
            try:
                await self._connect()
                return
            except Exception as error:
                backoff_s = min(max(2 * backoff_s, 0.05), MAX_RECONNECT_BACKOFF_S)
                logger.error(
                    "cannot connect to the engine (%s); trying again in %g s", error, backoff_s
                )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = tasks.start(work, "the connection to the engine")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # From the engine

    def on_message(self, message: wire.FromEngine) -> None:
        """Called by the connection with each message, in order."""
        self.heard_at = asyncio.get_running_loop().time()
        match message:
            case wire.Step():
                self.load = message.load
                self._traffic.on_step(message)
            case wire.Admitted():
                self._traffic.on_admitted(message)
            case wire.Rejected():
                self._traffic.on_rejected(message)
            case wire.Progress():
                self._on_progress(message)
            case wire.Ready():
                self._on_ready(message)
            case wire.Failed():
                self.failure = message
            case wire.Pong():
                self.num_chunks = message.num_chunks

    def on_connected(self, connection: Connection) -> None:
        """Called with a new connection before its first message."""
        self._connection = connection
        self._connected_at = asyncio.get_running_loop().time()

    def on_connection_lost(self) -> None:
        """Called when the connection has ended, before it is known whether the engine has too."""
        self._connection = None
        if self._is_closed:
            return
        if self._has_been_ready and self.status.phase != FAILED:
            self.status = EngineStatus(RESTARTING, message=self._failure_text)
        self.load = Load()
        self._traffic.lose()
        self._has_lost = True
        self._decide_if_dead()
        is_short = asyncio.get_running_loop().time() - self._connected_at < SHORT_CONNECTION_S
        self._num_short_connections = self._num_short_connections + 1 if is_short else 0
        self._spawn(self._reconnect())

    def _decide_if_dead(self) -> None:
        """A lost connection is a death when the keeper says so, or another engine is ready."""
        if self._has_lost and self._dead_pid is not None and self._dead_pid == self._engine_pid:
            self._decide(is_death=True)

    def _decide(self, *, is_death: bool) -> None:
        self._has_lost = False
        if not is_death:
            logger.warning("the connection to the engine was lost, and the engine goes on")
        self._traffic.decide(is_death=is_death)

    def on_lives(self, lives: Lives) -> None:
        """Called by the keeper when the engine has died, and with what was before the start."""
        if lives.dead_pid is not None:
            self._dead_pid = lives.dead_pid
            self._decide_if_dead()
        # What is told by another process may be older than what the engine itself has said.
        if lives.failure is None or self.status.is_ready:
            return
        self._has_been_ready = self._has_been_ready or lives.has_been_ready
        self.failure = self.failure or lives.failure
        if not self._has_been_ready:
            self.status = EngineStatus(FAILED, message=self._failure_text)
            self._first_load.set()
            return
        is_given_up = lives.num_failed > self._max_failed_lives + 1
        if not lives.cannot_start and not is_given_up:
            self.status = EngineStatus(RESTARTING, message=self._failure_text)
            return
        # It is started again all the same, and may be ready one day.
        self.failure = lives.failure
        self.status = EngineStatus(FAILED, message=self._failure_text)
        text = f"The engine ended and cannot be started again: {self._failure_text}"
        error = EngineUnavailable(text)
        # Requests do not wait for ever for an engine that does not come up again.
        if is_given_up:
            self._traffic.fail_all(error)
        else:
            self._traffic.fail_new(error)

    @property
    def _failure_text(self) -> str | None:
        return None if self.failure is None else self.failure.message

    def _on_progress(self, message: wire.Progress) -> None:
        if not self._has_been_ready:
            self.status = EngineStatus(message.phase, message.percent)

    def _on_ready(self, message: wire.Ready) -> None:
        logger.info("engine `%s` loaded in %.1f s", self.manifest.name, message.load_s)
        self.capacity = message.capacity
        self.status = EngineStatus(READY, 100)
        self.failure = None
        self.num_ready += 1
        self._has_been_ready = True
        self._first_load.set()
        if self._has_lost:
            self._decide(is_death=message.pid != self._engine_pid)
        self._engine_pid = message.pid
        self._traffic.resume()
