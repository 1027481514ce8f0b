"""The requests between an API process and one engine: submitted, answered, interrupted, resumed.

What an engine has lost when it dies is kept (`hangar.py`) and submitted to the next one, with what
each request has been sent so far (`flight.py`). Connections and lives of the engine are whose
`Tower` this is told by.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from deepinfer.engine import EngineStatus
from deepinfer.errors import EngineUnavailable, InvalidValue, RequestError, request_error_by_code
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.runtime import wire
from deepinfer.runtime.call import Call, Terms
from deepinfer.runtime.flight import Diverged, Flight
from deepinfer.runtime.hangar import Hangar

logger = logging.getLogger(__name__)

# How often it is looked whether a request that is tried alone has taken too long.
TRIAL_POLL_S = 0.05


class Tower(Protocol):
    """Who speaks with the engine, and knows how it is."""

    status: EngineStatus

    def send(self, message: wire.ToEngine) -> bool:
        """False when there is nobody to send it to. Raises MessageTooLarge."""


class Traffic:
    """Every request of one engine, over all its lives. For one event loop."""

    def __init__(self, hangar: Hangar, max_input_len: int, tower: Tower) -> None:
        self.num_resumed = 0  # times that a running sequence went on in another life of the engine
        self._hangar = hangar
        self._max_input_len = max_input_len
        self._tower = tower
        self._drained = asyncio.Event()
        self._asking_again: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Sequences that were submitted and have not ended."""
        return len(self._hangar)

    @contextmanager
    def carry(self, requests: Sequence[GenerationRequest], terms: Terms) -> Iterator[Call]:
        """Submit `requests` together; their chunks come to the call. Leaving cancels what runs."""
        call = Call(terms)
        flights = [Flight(request, call, self._max_input_len) for request in requests]
        try:
            if not self._submit(flights, terms):
                self._hangar.keep(flights)
            with call.limits():
                yield call
        finally:
            self._remove(request.request_id for request in requests)

    def _submit(self, flights: Sequence[Flight], terms: Terms) -> bool:
        """False when they have to wait: for the engine, or for one that is tried alone."""
        if not self._tower.status.is_ready or self._hangar.has_trial:
            return False
        for flight in flights:
            self._hangar.launch(flight)
        requests = [flight.request for flight in flights]
        try:
            was_sent = self._tower.send(wire.Submit.make(requests, terms.tenant, terms.priority))
        except wire.MessageTooLarge as error:
            raise _too_large(requests[0], error) from error
        if not was_sent:
            for flight in flights:
                self._hangar.remove(flight)
        return was_sent

    def cancel(self, request_ids: Sequence[str]) -> None:
        """End some sequences early; each gets one last chunk, CANCELLED."""
        for flight in self._remove(request_ids):
            name = flight.request.request_id
            flight.call.deliver(TokenChunk(name, finish_reason=FinishReason.CANCELLED))
            flight.call.flush()

    async def wait_drained(self) -> None:
        """Wait for every sequence to end."""
        while self._hangar:
            self._drained.clear()
            await self._drained.wait()

    def resume(self) -> None:
        """Submit what an earlier life of the engine has left, as far as it may run now."""
        if not self._tower.status.is_ready:
            return
        leaving = list(self._hangar.take_off())
        for call, pairs in itertools.groupby(leaving, key=lambda pair: pair[0].call):
            self._submit_again(call, list(pairs))
        if self._hangar.must_ask_again and self._asking_again is None:
            loop = asyncio.get_running_loop()
            self._asking_again = loop.call_later(TRIAL_POLL_S, self._ask_again)

    def _submit_again(
        self, call: Call, leaving: Sequence[tuple[Flight, GenerationRequest]]
    ) -> None:
        """Submit those of one call together: what they share is sent once."""
        requests = [request for _, request in leaving]
        terms = call.terms
        message = wire.Submit.make(requests, terms.tenant, terms.priority, is_resumed=True)
        try:
            was_sent = self._tower.send(message)
        except wire.MessageTooLarge as error:
            call.fail(_too_large(requests[0], error))
            return
        for flight, _ in leaving:
            if was_sent:
                self.num_resumed += flight.num_interruptions > 0
            else:
                self._hangar.hold(flight)

    def lose(self) -> None:
        """The connection has ended, and what the engine held is gone."""
        self._hangar.lose()

    def decide(self, *, is_death: bool) -> None:
        """Say what `lose` was due to."""
        self._give_up(self._hangar.decide(is_death=is_death))

    def fail_all(self, error: RequestError) -> None:
        for call in {flight.call for flight in self._hangar}:
            call.fail(error)

    def fail_new(self, error: RequestError) -> None:
        """End what waits to be submitted for the first time."""
        for call in {flight.call for flight in self._hangar.new}:
            call.fail(error)

    def close(self, error: RequestError) -> None:
        """End what still runs with `error`, for good."""
        self.fail_all(error)
        if self._asking_again is not None:
            self._asking_again.cancel()

    # From the engine

    def on_step(self, message: wire.Step) -> None:
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
            self._give_up(self._hangar.ground(interrupted))
            self.resume()

    def on_admitted(self, message: wire.Admitted) -> None:
        for wire_id in message.request_ids:
            flight = self._hangar.find_airborne(wire_id)
            if flight is not None:
                flight.is_admitted = True
                flight.call.admit()

    def on_rejected(self, message: wire.Rejected) -> None:
        error = request_error_by_code(message.code)(
            message.message, param=message.param, retry_after_s=message.retry_after_s
        )
        flights = [self._hangar.find_airborne(wire_id) for wire_id in message.request_ids]
        for call in {flight.call for flight in flights if flight is not None}:
            call.fail(error)

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
            self.resume()
        return is_first

    def _divert(self, flight: Flight) -> None:
        """A replay went another way than what the client has been sent."""
        self._tower.send(wire.Cancel((flight.wire_id,)))
        if flight.can_continue:
            self._hangar.hold(flight)
        else:
            self._hangar.remove(flight)
            flight.call.fail(
                EngineUnavailable("The engine ended, and this answer cannot be taken up again")
            )
        self._note_departures()

    def _give_up(self, ended: Iterable[tuple[Flight, EngineUnavailable]]) -> None:
        for flight, error in ended:
            logger.warning("request %s: %s", flight.request.request_id, error.message)
            flight.call.fail(error)
        if not self._hangar:
            self._drained.set()

    # Departures

    def _remove(self, request_ids: Iterable[str]) -> list[Flight]:
        """Forget requests, here and in the engine. Returns those that had not ended."""
        flights = [self._hangar.find(request_id) for request_id in request_ids]
        removed = [flight for flight in flights if flight is not None]
        airborne = [flight.wire_id for flight in removed if self._hangar.is_airborne(flight)]
        if airborne:
            self._tower.send(wire.Cancel(tuple(airborne)))
        for flight in removed:
            self._hangar.remove(flight)
        self._note_departures()
        return removed

    def _note_departures(self) -> None:
        """Requests have ended: others may take off, or all is drained."""
        self.resume()
        if not self._hangar:
            self._drained.set()

    def _ask_again(self) -> None:
        """Nothing happens when a request that runs alone has taken too long to prove itself."""
        self._asking_again = None
        self.resume()


def _too_large(request: GenerationRequest, error: wire.MessageTooLarge) -> InvalidValue:
    grammar = request.sampling.grammar
    return InvalidValue(
        f"The request is too large for the engine: {error.message}; ask for fewer or shorter "
        "prompts, or a smaller grammar",
        param=None if grammar is None else grammar.param,
    )
