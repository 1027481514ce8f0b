"""The requests that an engine has been given, and those that wait for its next life.

When the engine dies, whatever it held is grounded here and leaves again when it is back. Requests
that may themselves be what killed it are tried one at a time, once the others have been seen to
live, so that the innocent are not blamed for what one request does. And two deaths prove nothing
where engines die all the time: what is held against a request is weighed against the deaths that
nobody explains. Where several processes send one engine requests, a gate that they share keeps
their suspects apart. This module sends nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from deepinfer.errors import EngineUnavailable, RequestAbandoned
from deepinfer.generation import GenerationRequest
from deepinfer.runtime.flight import Flight
from deepinfer.runtime.gate import SuspectGate

RESTART_RETRY_S = 2
MAX_BLAMES = 2  # a request that has killed the engine so often is not tried again
MEMORY_S = 600.0  # for so long a death counts that no request explains


class Hangar:
    """Every flight of one engine, by the id that the engine knows it by."""

    def __init__(
        self,
        max_resumes: int,
        clock: Callable[[], float] = time.monotonic,
        gate: SuspectGate | None = None,
    ) -> None:
        """`gate` is None where no other process has requests in the same engine."""
        self._max_resumes = max_resumes
        self._clock = clock
        self._gate = gate
        self._death_numbers = itertools.count()
        self._unexplained: dict[int, float] = {}  # deaths that no request is held to have caused
        self._flights: dict[str, Flight] = {}  # by the request's own id
        self._airborne: dict[str, Flight] = {}  # by the id on the wire
        self._grounded: dict[str, Flight] = {}  # by the request's own id; a part of _flights

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights.values()))

    @property
    def airborne(self) -> tuple[Flight, ...]:
        return tuple(self._airborne.values())

    @property
    def must_ask_again(self) -> bool:
        """Whether `take_off` may let more go later though nothing happens here until then."""
        return self._gate is not None and bool(self._grounded)

    def find(self, request_id: str) -> Flight | None:
        """None for a request that has ended already, or never was."""
        return self._flights.get(request_id)

    def find_airborne(self, wire_id: str) -> Flight | None:
        """None for a request that was cancelled a moment ago."""
        return self._airborne.get(wire_id)

    def is_airborne(self, flight: Flight) -> bool:
        return flight.wire_id in self._airborne

    def launch(self, flight: Flight) -> None:
        """Note a flight that is being submitted for the first time."""
        self._flights[flight.request.request_id] = flight
        self._airborne[flight.wire_id] = flight

    def remove(self, flight: Flight) -> None:
        """Forget a flight that has ended."""
        request_id = flight.request.request_id
        self._flights.pop(request_id, None)
        self._airborne.pop(flight.wire_id, None)
        self._grounded.pop(request_id, None)

    def ground(self, flights: Iterable[Flight]) -> Iterator[tuple[Flight, EngineUnavailable]]:
        """Keep what the engine has lost for its next life; yields what is given up, and why."""
        death = self._note_death()
        for flight in flights:
            flight.interrupt(death)
            error = self._find_end(flight)
            if error is None:
                self.hold(flight)
            else:
                self.remove(flight)
                yield flight, error
        self._leave_gate()

    def _note_death(self) -> int:
        now = self._clock()
        recent = {d: at for d, at in self._unexplained.items() if now - at < MEMORY_S}
        death = next(self._death_numbers)
        self._unexplained = {**recent, death: now}
        return death

    def hold(self, flight: Flight) -> None:
        """Let a flight wait for `take_off`."""
        self._airborne.pop(flight.wire_id, None)
        self._grounded[flight.request.request_id] = flight

    def take_off(
        self, *, others_have_gone: bool = True
    ) -> Iterator[tuple[Flight, GenerationRequest]]:
        """The grounded flights that may go to the engine now, with what to submit.

        A suspect goes when nothing else has yet to show that it lives. Behind a gate it also waits
        until those of other processes have had the time to go.
        """
        self._leave_gate()
        for flight in self._choose(others_have_gone):
            del self._grounded[flight.request.request_id]
            request = flight.resume()
            self._airborne[flight.wire_id] = flight
            yield flight, request

    def _choose(self, others_have_gone: bool) -> list[Flight]:
        grounded = self._grounded.values()
        innocent = [flight for flight in grounded if not flight.is_suspect]
        suspect = next((flight for flight in grounded if flight.is_suspect), None)
        if innocent:
            return innocent if self._gate is None or self._gate.share() else []
        if suspect is None or self._has_unproven:
            return []
        if self._gate is None:
            return [suspect]
        return [suspect] if others_have_gone and self._gate.claim() else []

    @property
    def _has_unproven(self) -> bool:
        return any(flight.is_unproven for flight in self._airborne.values())

    def _leave_gate(self) -> None:
        """Let others by when all that took off here has been seen to live."""
        if self._gate is not None and self._gate.is_held and not self._has_unproven:
            self._gate.leave()

    def _find_end(self, flight: Flight) -> EngineUnavailable | None:
        if self._is_guilty(flight):
            for death in flight.blames:
                self._unexplained.pop(death, None)
            return RequestAbandoned(
                f"The engine died {len(flight.blames)} times at the beginning of this request, "
                "which is not tried again"
            )
        if flight.num_interruptions <= self._max_resumes:
            return None
        if not self._max_resumes:
            return EngineUnavailable(
                "The engine ended while this request was running; it is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        return RequestAbandoned(
            f"The engine ended {flight.num_interruptions} times while this request was running; it "
            "is not resumed again"
        )

    def _is_guilty(self, flight: Flight) -> bool:
        num_others = len(self._unexplained.keys() - flight.blames)
        return len(flight.blames) >= MAX_BLAMES and num_others <= len(flight.blames)
