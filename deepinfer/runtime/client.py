"""An API process's side of one engine: generate, cancel, and know how the engine is.

All methods belong to one event loop. A step's tokens arrive as one message and are handed to each
call once, however many sequences it has. When the engine process dies, what it held is submitted
to the next one and goes on where it was (`flight.py`, `hangar.py`). Who starts engines is the
keeper's business, here or in another process (`lives.py`). The client knows no text and no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager

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
from deepinfer.runtime.call import DEFAULT_TERMS, Call, Terms
from deepinfer.runtime.connection import Connection
from deepinfer.runtime.flight import Diverged, Flight
from deepinfer.runtime.gate import SuspectGate
from deepinfer.runtime.hangar import RESTART_RETRY_S, Hangar
from deepinfer.runtime.keeper import EngineKeeper
from deepinfer.runtime.lives import Keeper, Lives

logger = logging.getLogger(__name__)

LOADING_RETRY_S = 2
# What was interrupted in other processes takes off within this time, and suspects after it.
GATE_WAIT_S = 0.05


class EngineClient:
    """Sends an engine requests. `start` first, `close` last."""

    def __init__(
        self,
        engine: EngineFolder,
        options: EngineOptions,
        keeper: Keeper | None = None,
        gate: SuspectGate | None = None,
    ) -> None:
        """Without a `keeper` the engine is this client's own: it starts with it and ends with it.

        `gate` is for an engine that other processes send requests as well.
        """
        self.engine = engine
        self.keeper: Keeper = EngineKeeper(engine, options) if keeper is None else keeper
        self.status = EngineStatus(STARTING)
        self.load = Load()
        self.capacity: Capacity | None = None
        self.num_resumed = 0  # times that a running sequence went on in another life of the engine
        self.failure: wire.Failed | None = None
        self.num_ready = 0
        self.heard_at = 0.0
        self.num_chunks = 0
        self._max_failed_lives = options.resume_attempts
        self._gate = gate
        self._hangar = Hangar(options.resume_attempts, gate=gate)
        self._connection: Connection | None = None
        self._asking_again: asyncio.TimerHandle | None = None
        self._has_been_ready = False
        self._is_draining = False
        self._is_closed = False
        self._first_load = asyncio.Event()
        self._drained = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def manifest(self) -> EngineManifest:
        return self.engine.manifest

    @property
    def num_in_flight(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._hangar)

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
        call = Call(terms)
        max_input_len = self.manifest.limits.max_input_len
        for request in requests:
            self._hangar.launch(Flight(request, call, max_input_len))
        self._send(wire.Submit(tuple(requests), terms.tenant, terms.priority))
        try:
            with call.limits():
                yield call
        finally:
            self._remove(request.request_id for request in requests)

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences of a running `generate` early; each gets one last chunk, CANCELLED.

        An id that has ended already, or never was, is passed over.
        """
        for flight in self._remove(request_ids):
            name = flight.request.request_id
            flight.call.deliver(TokenChunk(name, finish_reason=FinishReason.CANCELLED))
            flight.call.flush()

    async def close(self, timeout_s: float) -> None:
        """Take no more work, give running requests up to `timeout_s`, and end an own engine."""
        self._is_draining = True
        if self.num_in_flight:
            self._drained.clear()
            try:
                await asyncio.wait_for(self._drained.wait(), timeout_s)
            except TimeoutError:
                logger.warning("%d sequences did not finish in time", self.num_in_flight)
        self._is_closed = True
        self._fail_all(ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S))
        self.status = EngineStatus(STOPPED)
        await self.keeper.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            self._connection.close()
        if self._gate is not None:
            self._gate.close()
        self._first_load.set()

    # Towards the engine

    def ping(self) -> None:
        """Have the engine say that it is there."""
        self._send(wire.Ping())

    def _check_accepting(self) -> None:
        if self._is_draining:
            raise ShuttingDown("The server is shutting down", retry_after_s=RESTART_RETRY_S)
        if self.status.is_ready:
            return
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

    def _send(self, message: wire.ToEngine) -> None:
        if self._connection is not None:
            self._connection.send(message)

    def _remove(self, request_ids: Iterable[str]) -> list[Flight]:
        """Forget requests, here and in the engine. Returns those that had not ended."""
        flights = [self._hangar.find(request_id) for request_id in request_ids]
        removed = [flight for flight in flights if flight is not None]
        airborne = [flight.wire_id for flight in removed if self._hangar.is_airborne(flight)]
        if airborne:
            self._send(wire.Cancel(tuple(airborne)))
        for flight in removed:
            self._hangar.remove(flight)
        self._note_departures()
        return removed

    def _note_departures(self) -> None:
        """Requests have ended: others may take off, or all is drained."""
        self._resume()
        if not self.num_in_flight:
            self._drained.set()

    def _resume(self, *, has_waited: bool = False) -> None:
        """Submit what an earlier life of the engine has left, as far as it may run now."""
        if not self.status.is_ready:
            return
        for flight, request in self._hangar.take_off(others_have_gone=has_waited):
            self.num_resumed += flight.num_interruptions > 0
            terms = flight.call.terms
            self._send(wire.Submit((request,), terms.tenant, terms.priority, is_resumed=True))
        if self._hangar.must_ask_again and self._asking_again is None:
            loop = asyncio.get_running_loop()
            self._asking_again = loop.call_later(GATE_WAIT_S, self._ask_again)

    def _ask_again(self) -> None:
        """Nobody says when the requests of other processes have gone, or have been seen to live."""
        self._asking_again = None
        if not self._is_closed:
            self._resume(has_waited=True)

    async def _connect(self) -> None:
        # Between two lives of the engine this waits in the socket's backlog for the next one.
        self._connection = await Connection.open(
            self.keeper.socket_path, self.on_message, self.on_connection_lost
        )

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except OSError as error:
            # Only when the keeper has closed its socket: the server is ending.
            logger.debug("not connecting to the engine again: %s", error)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # From the engine

    def on_message(self, message: wire.FromEngine) -> None:
        """Called by the connection with each message, in order."""
        self.heard_at = asyncio.get_running_loop().time()
        match message:
            case wire.Step():
                self._on_step(message)
            case wire.Admitted():
                self._on_admitted(message)
            case wire.Rejected():
                self._on_rejected(message)
            case wire.Progress():
                self._on_progress(message)
            case wire.Ready():
                self._on_ready(message)
            case wire.Failed():
                self.failure = message
            case wire.Pong():
                self.num_chunks = message.num_chunks

    def on_connection_lost(self) -> None:
        """Called when the engine process is gone, before its exit status is known."""
        self._connection = None
        if self._is_closed:
            return
        if self._has_been_ready:
            self.status = EngineStatus(RESTARTING, message=self._failure_text)
        self.load = Load()
        self._ground(self._hangar.airborne)
        self._spawn(self._reconnect())

    def on_lives(self, lives: Lives) -> None:
        """Called by the keeper when the engine has died, and with what was before the start."""
        # What is told by another process may be older than what the engine itself has said.
        if lives.failure is None or self.status.is_ready:
            return
        self._has_been_ready = self._has_been_ready or lives.has_been_ready
        self.failure = self.failure or lives.failure
        if not self._has_been_ready:
            self.status = EngineStatus(FAILED, message=self._failure_text)
            self._first_load.set()
            return
        self.status = EngineStatus(RESTARTING, message=self._failure_text)
        # Requests do not wait for ever for an engine that does not come up again.
        if lives.num_failed > self._max_failed_lives + 1:
            text = f"The engine ended and cannot be started again: {self._failure_text}"
            self._fail_all(EngineUnavailable(text))

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
        self._resume()

    def _on_admitted(self, message: wire.Admitted) -> None:
        for wire_id in message.request_ids:
            flight = self._hangar.find_airborne(wire_id)
            if flight is not None:
                flight.is_admitted = True
                flight.call.admit()

    def _on_step(self, message: wire.Step) -> None:
        self.load = message.load
        interrupted: list[Flight] = []
        calls: list[Call] = []  # with something new
        find_airborne = self._hangar.find_airborne
        for chunk in message.chunks:
            # A request that was cancelled a moment ago may still have tokens under way.
            flight = find_airborne(chunk.request_id)
            if flight is None:
                continue
            if chunk.finish_reason is FinishReason.INTERRUPTED:
                interrupted.append(flight)
            elif self._deliver(flight, chunk):
                calls.append(flight.call)
        for call in calls:
            call.flush()
        if interrupted:
            self._ground(interrupted)
            self._resume()

    def _deliver(self, flight: Flight, chunk: TokenChunk) -> bool:
        """Whether the flight's call is to be flushed for it."""
        was_unproven = flight.is_unproven
        try:
            new = flight.accept(chunk)
        except Diverged:
            self._divert(flight)
            return False
        if new is None:
            return False
        is_first = flight.call.deliver(new)
        if new.finish_reason is not None:
            self._hangar.remove(flight)
            self._note_departures()
        elif was_unproven:
            self._resume()
        return is_first

    def _divert(self, flight: Flight) -> None:
        """A replay went another way than what the client has been sent."""
        self._send(wire.Cancel((flight.wire_id,)))
        if flight.can_continue:
            self._hangar.hold(flight)
        else:
            self._hangar.remove(flight)
            flight.call.fail(
                EngineUnavailable("The engine ended, and this answer cannot be taken up again")
            )
        self._note_departures()

    def _on_rejected(self, message: wire.Rejected) -> None:
        error = request_error_by_code(message.code)(
            message.message, param=message.param, retry_after_s=message.retry_after_s
        )
        flights = [self._hangar.find_airborne(wire_id) for wire_id in message.request_ids]
        for call in {flight.call for flight in flights if flight is not None}:
            call.fail(error)

    def _ground(self, flights: Iterable[Flight]) -> None:
        for flight, error in self._hangar.ground(flights):
            logger.warning("request %s: %s", flight.request.request_id, error.message)
            flight.call.fail(error)
        if not self.num_in_flight:
            self._drained.set()

    def _fail_all(self, error: RequestError) -> None:
        for call in {flight.call for flight in self._hangar}:
            call.fail(error)
