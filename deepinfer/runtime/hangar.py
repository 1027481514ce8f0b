"""The requests that an engine has been given, and those that wait for its next life.

When the engine dies, whatever it held is grounded here and leaves again when it is back. A request
that ran and had no token when the engine died is under suspicion, and is tried again beside others
once these have been seen to live, one suspect at a time. One that was there at two deaths in a row
leaves before all others and alone, for some seconds at most: only a death at which nothing else ran
is held against a request. And two deaths prove nothing where engines die all the time: they are
weighed against the deaths that nobody explains. This module sends
nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator

from deepinfer.errors import EngineUnavailable, QueueFull, RequestAbandoned
from deepinfer.generation import GenerationRequest
from deepinfer.runtime.flight import Flight

RESTART_RETRY_S = 2
MAX_BLAMES = 2  # a request that has killed the engine so often is not tried again
MAX_ALONE_S = 5.0  # that others wait for one that is tried alone
TRIED_ALONE_AFTER = 2  # deaths in a row that it was there at
MEMORY_S = 600.0  # for so long a death counts that no request explains


class Hangar:
    """Every flight of one engine, by the id that the engine knows it by."""

    def __init__(
        self,
        max_resumes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_new: int = 1024,
        max_new_tokens: int = 4_000_000,
    ) -> None:
        """At most `max_new` requests, with prompts of `max_new_tokens` together, may wait to be
        submitted for the first time.
        """
        self._max_resumes = max_resumes
        self._clock = clock
        self._max_new = max_new
        self._max_new_tokens = max_new_tokens
        self._death_numbers = itertools.count()
        self._unexplained: dict[int, float] = {}  # deaths that no request is held to have caused
        self._flights: dict[str, Flight] = {}  # by the request's own id
        self._airborne: dict[str, Flight] = {}  # by the id on the wire
        self._grounded: dict[str, Flight] = {}  # by the request's own id; a part of _flights
        self._lost: list[Flight] = []  # to what, is not known yet; a part of _grounded
        self._was_alone = False  # whether one of them alone ran
        self._on_trial: Flight | None = None  # and nothing else leaves while it is
        self._trial_began_at = 0.0

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(tuple(self._flights.values()))

    @property
    def airborne(self) -> tuple[Flight, ...]:
        return tuple(self._airborne.values())

    @property
    def new(self) -> tuple[Flight, ...]:
        """What waits to be submitted for the first time."""
        return tuple(flight for flight in self._grounded.values() if flight.is_new)

    @property
    def must_ask_again(self) -> bool:
        """Whether `take_off` may let more go later though nothing happens here until then."""
        return bool(self._grounded) and self.has_trial

    @property
    def has_trial(self) -> bool:
        """Whether a request flies alone until it has been seen to live, or has taken too long."""
        flight = self._on_trial
        if flight is None or not self.is_airborne(flight) or not flight.is_suspect:
            return False
        return self._clock() - self._trial_began_at < MAX_ALONE_S

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

    def keep(self, flights: Iterable[Flight]) -> None:
        """Note flights that are to be submitted by `take_off`.

        Raises QueueFull, keeping none, when too many wait for that.
        """
        flights = tuple(flights)
        waiting = self.new
        num_tokens = sum(len(each.request.prompt_token_ids) for each in (*waiting, *flights))
        is_full = len(waiting) + len(flights) > self._max_new
        if is_full or (waiting and num_tokens > self._max_new_tokens):
            raise QueueFull(
                f"{len(waiting):,} requests wait for the engine, which is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        for flight in flights:
            flight.is_new = True
            self._flights[flight.request.request_id] = flight
            self._grounded[flight.request.request_id] = flight

    def remove(self, flight: Flight) -> None:
        """Forget a flight that has ended."""
        request_id = flight.request.request_id
        self._flights.pop(request_id, None)
        self._airborne.pop(flight.wire_id, None)
        self._grounded.pop(request_id, None)

    def lose(self) -> None:
        """The connection has ended: keep what the engine held until `decide` is called."""
        lost = self.airborne
        if lost:
            self._was_alone = self._runs_one
        for flight in lost:
            self.hold(flight)
        self._lost += lost

    def decide(self, *, is_death: bool) -> Iterator[tuple[Flight, EngineUnavailable]]:
        """Say what `lose` was due to; yields what is given up, and why."""
        lost, self._lost = self._lost, []
        flights = [flight for flight in lost if self.find(flight.request.request_id) is flight]
        if is_death:
            yield from self._interrupt(flights, was_alone=self._was_alone)
        else:
            for flight in flights:
                flight.disconnect()
        self._was_alone = False

    def ground(self, flights: Iterable[Flight]) -> Iterator[tuple[Flight, EngineUnavailable]]:
        """Keep what the engine has dropped, as if it had died; yields what is given up, and why."""
        was_alone = self._runs_one
        yield from self._interrupt(flights, was_alone=was_alone)

    @property
    def _runs_one(self) -> bool:
        return sum(flight.is_admitted for flight in self._airborne.values()) == 1

    def _interrupt(
        self, flights: Iterable[Flight], *, was_alone: bool
    ) -> Iterator[tuple[Flight, EngineUnavailable]]:
        death = self._note_death()
        for flight in flights:
            was_running = flight.is_admitted
            flight.interrupt(death, was_alone=was_alone)
            error = self._find_end(flight, was_running=was_running)
            if error is None:
                self.hold(flight)
            else:
                self.remove(flight)
                yield flight, error

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

    def take_off(self) -> Iterator[tuple[Flight, GenerationRequest]]:
        """The grounded flights that may go to the engine now, with what to submit.

        A suspect goes when nothing else has yet to show that it lives.
        """
        for flight in self._choose():
            del self._grounded[flight.request.request_id]
            request = flight.resume()
            self._airborne[flight.wire_id] = flight
            yield flight, request

    def _choose(self) -> list[Flight]:
        if self.has_trial:
            return []
        grounded = self._grounded.values()
        if not self._airborne:
            tried = (each for each in grounded if each.num_fruitless >= TRIED_ALONE_AFTER)
            self._on_trial = next(tried, None)
            if self._on_trial is not None:
                self._trial_began_at = self._clock()
                return [self._on_trial]
        innocent = [flight for flight in grounded if not flight.is_suspect]
        suspect = next((flight for flight in grounded if flight.is_suspect), None)
        if innocent:
            return innocent
        if suspect is None or self._has_unproven:
            return []
        return [suspect]

    @property
    def _has_unproven(self) -> bool:
        return any(flight.is_unproven for flight in self._airborne.values())

    def _find_end(self, flight: Flight, *, was_running: bool) -> EngineUnavailable | None:
        if was_running and not self._max_resumes:
            return EngineUnavailable(
                "The engine ended while this request was running; it is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        if self._is_guilty(flight):
            for death in flight.blames:
                self._unexplained.pop(death, None)
            return RequestAbandoned(
                f"The engine died {len(flight.blames)} times at the beginning of this request with "
                "nothing else running; it is not tried again"
            )
        if flight.num_fruitless <= self._max_resumes:
            return None
        return RequestAbandoned(
            f"The engine ended {flight.num_fruitless} times in a row while this request was "
            "running and had no token; it is not resumed again"
        )

    def _is_guilty(self, flight: Flight) -> bool:
        num_others = len(self._unexplained.keys() - flight.blames)
        is_blamed = flight.is_suspect and len(flight.blames) >= MAX_BLAMES
        return is_blamed and num_others <= len(flight.blames)
