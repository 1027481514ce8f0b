"""The API process's side of one engine: submit, cancel, and know how the engine is.

All methods belong to one event loop. A step's tokens arrive as one message and are handed to each
handle once, however many sequences it has. When the engine process dies, what it held is submitted
to the next one and goes on where it was (`resume.py`). The client knows no text and no HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

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
    InvalidValue,
    RequestError,
    ShuttingDown,
    request_error_by_code,
)
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.runtime import wire
from deepinfer.runtime.handle import DEFAULT_OPTIONS, GenerationHandle, GenerationOptions
from deepinfer.runtime.resume import RESTART_RETRY_S, Diverged, InFlightRequests, ResumableRequest
from deepinfer.runtime.supervisor import EngineProcessState, EngineSupervisor

logger = logging.getLogger(__name__)

LOADING_RETRY_S = 2
MAX_RECONNECT_BACKOFF_S = 1.0
SHORT_CONNECTION_S = 1.0  # one that has lasted no longer is not made again at once each time


# How often it is looked whether a request that is tried alone has taken too long.
TRIAL_POLL_S = 0.05


class EngineClient:
    """Sends an engine requests. `start` first, `close` last."""

    def __init__(
        self,
        engine: EngineFolder,
        options: EngineOptions,
        supervisor: EngineSupervisor | None = None,
    ) -> None:
        """Without a `supervisor` the client starts the engine itself, and ends it."""
        self.engine = engine
        self.supervisor: EngineSupervisor = (
            EngineSupervisor(engine, options) if supervisor is None else supervisor
        )
        self.status = EngineStatus(STARTING)
        self.load = Load()
        self.capacity: Capacity | None = None
        self.failure: wire.Failed | None = None
        self.num_ready = 0
        self.heard_at = 0.0
        self.num_chunks = 0
        self._max_failures = options.resume_attempts
        in_flight = InFlightRequests(
            options.resume_attempts,
            max_new=options.max_waiting,
            max_new_tokens=options.max_waiting_tokens,
        )
        self._dispatcher = Dispatcher(in_flight, engine.manifest.limits.max_input_len, self)
        self._connection: EngineConnection | None = None
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
        return len(self._dispatcher)

    @property
    def num_resumed(self) -> int:
        """Times that a running sequence went on in another engine process."""
        return self._dispatcher.num_resumed

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def num_restarts(self) -> int:
        return max(self.supervisor.state.num_starts - 1, 0)

    async def start(self) -> None:
        """Begin, and return at once; `status` says how the loading goes."""
        await self.supervisor.start(self)
        self.on_state_change(self.supervisor.state)
        await self._connect()

    async def wait_ready(self) -> None:
        """Wait for the end of the first load. Raises BackendError when it fails."""
        await self._first_load.wait()
        if not self._has_been_ready:
            failure = self.failure or wire.Failed("the engine was closed while it loaded")
            raise BackendError(failure.message, hint=failure.hint)

    async def generate(
        self, requests: Sequence[GenerationRequest], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> AsyncGenerator[list[TokenChunk], None]:
        """Run `requests` together and yield their new chunks, those of one wake-up as one list.

        Ends when each request has had its finish reason. Closing the generator cancels what still
        runs. Raises a RequestError: before the first item when the engine does not take the
        requests (it takes all or none), later when they cannot be finished.
        """
        num_unfinished = len(requests)
        with self.submit(requests, options) as handle:
            while num_unfinished:
                chunks = await handle.receive()
                num_unfinished -= sum(chunk.finish_reason is not None for chunk in chunks)
                yield chunks

    @contextmanager
    def submit(
        self, requests: Sequence[GenerationRequest], options: GenerationOptions = DEFAULT_OPTIONS
    ) -> Iterator[GenerationHandle]:
        """Submit `requests` together; their chunks come to the handle. Leaving cancels what runs.

        Raises a RequestError when the engine takes nothing now. Whether it takes these is the
        first thing that the handle has to say.
        """
        self._check_accepting()
        with self._dispatcher.submit(requests, options) as handle:
            yield handle

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences of a running `generate` early; each gets one last chunk, CANCELLED.

        An id that has ended already, or never was, is passed over.
        """
        self._dispatcher.cancel(request_ids)

    async def close(self, timeout_s: float) -> None:
        """Take no more work, give running requests up to `timeout_s`, and end an own engine."""
        self._is_draining = True
        if self.num_in_flight:
            try:
                await asyncio.wait_for(self._dispatcher.wait_drained(), timeout_s)
            except TimeoutError:
                logger.warning("%d sequences did not finish in time", self.num_in_flight)
        self._is_closed = True
        self._dispatcher.close(
            ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S)
        )
        self.status = EngineStatus(STOPPED)
        await self.supervisor.close()
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
            if not self._max_failures:
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
        # Between two engine processes this waits in the socket's backlog for the next one.
        await EngineConnection.open(
            self.supervisor.socket_path, self.on_connected, self.on_message, self.on_connection_lost
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
                self._dispatcher.on_step(message)
            case wire.Admitted():
                self._dispatcher.on_admitted(message)
            case wire.Rejected():
                self._dispatcher.on_rejected(message)
            case wire.Progress():
                self._on_progress(message)
            case wire.Ready():
                self._on_ready(message)
            case wire.Failed():
                self.failure = message
            case wire.Pong():
                self.num_chunks = message.num_chunks

    def on_connected(self, connection: EngineConnection) -> None:
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
        self._dispatcher.lose_connection()
        self._has_lost = True
        self._resolve_if_dead()
        is_short = asyncio.get_running_loop().time() - self._connected_at < SHORT_CONNECTION_S
        self._num_short_connections = self._num_short_connections + 1 if is_short else 0
        self._spawn(self._reconnect())

    def _resolve_if_dead(self) -> None:
        """A lost connection is a death when the supervisor says so, or another engine is ready."""
        if self._has_lost and self._dead_pid is not None and self._dead_pid == self._engine_pid:
            self._resolve_loss(is_death=True)

    def _resolve_loss(self, *, is_death: bool) -> None:
        self._has_lost = False
        if not is_death:
            logger.warning("the connection to the engine was lost, and the engine goes on")
        self._dispatcher.resolve_loss(is_death=is_death)

    def on_state_change(self, state: EngineProcessState) -> None:
        """Called by the supervisor when the engine has died, and with what was before the start."""
        if state.dead_pid is not None:
            self._dead_pid = state.dead_pid
            self._resolve_if_dead()
        # What is told by another process may be older than what the engine itself has said.
        if state.failure is None or self.status.is_ready:
            return
        self._has_been_ready = self._has_been_ready or state.has_been_ready
        self.failure = self.failure or state.failure
        if not self._has_been_ready:
            self.status = EngineStatus(FAILED, message=self._failure_text)
            self._first_load.set()
            return
        is_given_up = state.num_failed > self._max_failures + 1
        if not state.cannot_start and not is_given_up:
            self.status = EngineStatus(RESTARTING, message=self._failure_text)
            return
        # It is started again all the same, and may be ready one day.
        self.failure = state.failure
        self.status = EngineStatus(FAILED, message=self._failure_text)
        text = f"The engine ended and cannot be started again: {self._failure_text}"
        error = EngineUnavailable(text)
        # Requests do not wait for ever for an engine that does not come up again.
        if is_given_up:
            self._dispatcher.fail_all(error)
        else:
            self._dispatcher.fail_new(error)

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
            self._resolve_loss(is_death=message.pid != self._engine_pid)
        self._engine_pid = message.pid
        self._dispatcher.resume()


class Dispatcher:
    """Submits requests to one engine, hands their chunks on, and resumes them."""

    def __init__(
        self, in_flight: InFlightRequests, max_input_len: int, client: EngineClient
    ) -> None:
        self.num_resumed = 0  # times that a running sequence went on in another engine process
        self._in_flight = in_flight
        self._max_input_len = max_input_len
        self._client = client
        self._drained = asyncio.Event()
        self._poll_timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._in_flight)

    @contextmanager
    def submit(
        self, requests: Sequence[GenerationRequest], options: GenerationOptions
    ) -> Iterator[GenerationHandle]:
        """Submit `requests` together and yield their handle. Leaving cancels what runs."""
        handle = GenerationHandle(options)
        resumables = [
            ResumableRequest(request, handle, self._max_input_len) for request in requests
        ]
        try:
            if not self._send_new(resumables, options):
                self._in_flight.add_waiting(resumables)
            with handle.timeouts():
                yield handle
        finally:
            self._remove(request.request_id for request in requests)

    def _send_new(self, resumables: Sequence[ResumableRequest], options: GenerationOptions) -> bool:
        """False when they have to wait: for the engine, or for one that is tried alone."""
        if not self._client.status.is_ready or self._in_flight.has_trial:
            return False
        for resumable in resumables:
            self._in_flight.add_dispatched(resumable)
        requests = [resumable.request for resumable in resumables]
        try:
            was_sent = self._client.send(
                wire.Submit.make(requests, options.tenant, options.priority)
            )
        except wire.MessageTooLarge as error:
            raise _too_large(requests[0], error) from error
        if not was_sent:
            for resumable in resumables:
                self._in_flight.remove(resumable)
        return was_sent

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences early; each gets one last chunk, CANCELLED."""
        for resumable in self._remove(request_ids):
            name = resumable.request.request_id
            resumable.handle.deliver(TokenChunk(name, finish_reason=FinishReason.CANCELLED))
            resumable.handle.flush()

    async def wait_drained(self) -> None:
        """Wait for every sequence to end."""
        while self._in_flight:
            self._drained.clear()
            await self._drained.wait()

    def resume(self) -> None:
        """Submit what an earlier engine process has left, as far as it may run now."""
        if not self._client.status.is_ready:
            return
        leaving = list(self._in_flight.dispatch())
        for handle, pairs in itertools.groupby(leaving, key=lambda pair: pair[0].handle):
            self._send_again(handle, list(pairs))
        if self._in_flight.must_poll and self._poll_timer is None:
            loop = asyncio.get_running_loop()
            self._poll_timer = loop.call_later(TRIAL_POLL_S, self._poll)

    def _send_again(
        self,
        handle: GenerationHandle,
        leaving: Sequence[tuple[ResumableRequest, GenerationRequest]],
    ) -> None:
        """Submit those of one handle together: what they share is sent once."""
        requests = [request for _, request in leaving]
        options = handle.options
        message = wire.Submit.make(requests, options.tenant, options.priority, is_resumed=True)
        try:
            was_sent = self._client.send(message)
        except wire.MessageTooLarge as error:
            handle.fail(_too_large(requests[0], error))
            return
        for resumable, _ in leaving:
            if was_sent:
                self.num_resumed += resumable.num_interruptions > 0
            else:
                self._in_flight.requeue(resumable)

    def lose_connection(self) -> None:
        """The connection has ended, and what the engine held is gone."""
        self._in_flight.lose_connection()

    def resolve_loss(self, *, is_death: bool) -> None:
        """Say whether the loss was a death of the engine."""
        self._give_up(self._in_flight.resolve_loss(is_death=is_death))

    def fail_all(self, error: RequestError) -> None:
        for handle in {resumable.handle for resumable in self._in_flight}:
            handle.fail(error)

    def fail_new(self, error: RequestError) -> None:
        """End what waits to be submitted for the first time."""
        for handle in {resumable.handle for resumable in self._in_flight.new}:
            handle.fail(error)

    def close(self, error: RequestError) -> None:
        """End what still runs with `error`, for good."""
        self.fail_all(error)
        if self._poll_timer is not None:
            self._poll_timer.cancel()

    # From the engine

    def on_step(self, message: wire.Step) -> None:
        interrupted: list[ResumableRequest] = []
        handles: list[GenerationHandle] = []  # with something new
        find_dispatched = self._in_flight.find_dispatched
        for chunk in message.chunks:
            # A request that was cancelled a moment ago may still have tokens under way.
            resumable = find_dispatched(chunk.request_id)
            if resumable is None:
                continue
            if chunk.finish_reason is FinishReason.INTERRUPTED:
                interrupted.append(resumable)
            elif self._deliver(resumable, chunk):
                handles.append(resumable.handle)
        for handle in handles:
            handle.flush()
        if interrupted:
            self._give_up(self._in_flight.interrupt(interrupted))
            self.resume()

    def on_admitted(self, message: wire.Admitted) -> None:
        for wire_id in message.request_ids:
            resumable = self._in_flight.find_dispatched(wire_id)
            if resumable is not None:
                resumable.is_admitted = True
                resumable.handle.admit()

    def on_rejected(self, message: wire.Rejected) -> None:
        error = request_error_by_code(message.code)(
            message.message, param=message.param, retry_after_s=message.retry_after_s
        )
        resumables = [self._in_flight.find_dispatched(wire_id) for wire_id in message.request_ids]
        for handle in {resumable.handle for resumable in resumables if resumable is not None}:
            handle.fail(error)

    def _deliver(self, resumable: ResumableRequest, chunk: TokenChunk) -> bool:
        """Whether the handle is to be flushed for it."""
        was_unproven = resumable.is_unproven
        try:
            new = resumable.accept(chunk)
        except Diverged:
            self._divert(resumable)
            return False
        if new is None:
            return False
        is_first = resumable.handle.deliver(new)
        if new.finish_reason is not None:
            self._in_flight.remove(resumable)
            self._note_departures()
        elif was_unproven:
            self.resume()
        return is_first

    def _divert(self, resumable: ResumableRequest) -> None:
        """A replay went another way than what the client has been sent."""
        self._client.send(wire.Cancel((resumable.wire_id,)))
        if resumable.can_continue:
            self._in_flight.requeue(resumable)
        else:
            self._in_flight.remove(resumable)
            resumable.handle.fail(
                EngineUnavailable("The engine ended, and this answer cannot be taken up again")
            )
        self._note_departures()

    def _give_up(self, ended: Iterable[tuple[ResumableRequest, EngineUnavailable]]) -> None:
        for resumable, error in ended:
            logger.warning("request %s: %s", resumable.request.request_id, error.message)
            resumable.handle.fail(error)
        if not self._in_flight:
            self._drained.set()

    # Departures

    def _remove(self, request_ids: Iterable[str]) -> list[ResumableRequest]:
        """Forget requests, here and in the engine. Returns those that had not ended."""
        resumables = [self._in_flight.find(request_id) for request_id in request_ids]
        removed = [resumable for resumable in resumables if resumable is not None]
        dispatched = [
            resumable.wire_id for resumable in removed if self._in_flight.is_dispatched(resumable)
        ]
        if dispatched:
            self._client.send(wire.Cancel(tuple(dispatched)))
        for resumable in removed:
            self._in_flight.remove(resumable)
        self._note_departures()
        return removed

    def _note_departures(self) -> None:
        """Requests have ended: others may take off, or all is drained."""
        self.resume()
        if not self._in_flight:
            self._drained.set()

    def _poll(self) -> None:
        """Nothing happens when a request that runs alone has taken too long to prove itself."""
        self._poll_timer = None
        self.resume()


def _too_large(request: GenerationRequest, error: wire.MessageTooLarge) -> InvalidValue:
    grammar = request.sampling.grammar
    return InvalidValue(
        f"The request is too large for the engine: {error.message}; ask for fewer or shorter "
        "prompts, or a smaller grammar",
        param=None if grammar is None else grammar.param,
    )


class EngineConnection(asyncio.Protocol):
    """Hands each message on as it comes, and says when the other side is there, and gone."""

    def __init__(
        self,
        on_made: Callable[[EngineConnection], None],
        on_message: Callable[[wire.FromEngine], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._on_made = on_made
        self._on_message = on_message
        self._on_lost = on_lost
        self._reader = wire.FrameReader()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(
        cls,
        path: Path,
        on_made: Callable[[EngineConnection], None],
        on_message: Callable[[wire.FromEngine], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Connect, or wait in the socket's backlog for an engine that is yet to come.

        The other side may speak before this returns, so `on_made` is called with the connection
        before any of its messages. Raises OSError when nobody listens any more.
        """
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: cls(on_made, on_message, on_lost), str(path))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._reader.feed(data):
                self._on_message(wire.decode_from_engine(body))
        except Exception:
            # What has been missed cannot be made up for: the requests go on over another one.
            logger.exception("dropping the connection to the engine")
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._on_lost()

    def send(self, message: wire.ToEngine) -> bool:
        """False when it cannot be sent any more. Raises MessageTooLarge."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(wire.encode(message))
        return True

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
