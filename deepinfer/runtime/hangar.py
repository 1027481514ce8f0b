"""The requests that an engine has been given, and those that wait for its next life.

When the engine dies, whatever it held is grounded here and leaves again when it is back: all at
once, but for requests that may themselves be what killed it. Of these one at a time is tried, and
the next only when that one has been seen to live, so that the innocent are not blamed twice for
what one request does. This module sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deepinfer.errors import EngineUnavailable, RequestAbandoned
from deepinfer.generation import GenerationRequest
from deepinfer.runtime.flight import MAX_BLAMES, Flight

RESTART_RETRY_S = 2


class Hangar:
    """Every flight of one engine, by the id that the engine knows it by."""

    def __init__(self, max_resumes: int) -> None:
        self._max_resumes = max_resumes
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
    def has_grounded(self) -> bool:
        return bool(self._grounded)

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
        for flight in flights:
            flight.interrupt()
            error = self._find_end(flight)
            if error is None:
                self.hold(flight)
            else:
                self.remove(flight)
                yield flight, error

    def hold(self, flight: Flight) -> None:
        """Let a flight wait for `take_off`."""
        self._airborne.pop(flight.wire_id, None)
        self._grounded[flight.request.request_id] = flight

    def take_off(self) -> Iterator[tuple[Flight, GenerationRequest]]:
        """The grounded flights that may go to the engine now, with what to submit."""
        has_suspect = any(flight.is_suspect for flight in self._airborne.values())
        for request_id, flight in tuple(self._grounded.items()):
            if flight.is_suspect:
                if has_suspect:
                    continue
                has_suspect = True
            del self._grounded[request_id]
            request = flight.resume()
            self._airborne[flight.wire_id] = flight
            yield flight, request

    def _find_end(self, flight: Flight) -> EngineUnavailable | None:
        if flight.num_blames >= MAX_BLAMES:
            return RequestAbandoned(
                f"The engine died {flight.num_blames} times at the beginning of this request, "
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
