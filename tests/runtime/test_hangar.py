"""Which requests leave again after an engine's death, in which order, and which never do."""

from __future__ import annotations

from deepinfer.errors import EngineUnavailable, RequestAbandoned
from deepinfer.generation import TokenChunk
from deepinfer.runtime.call import Call
from deepinfer.runtime.flight import Flight
from deepinfer.runtime.hangar import Hangar
from tests.runtime.running import request


def launch(hangar: Hangar, name: str, *, is_admitted: bool = True) -> Flight:
    flight = Flight(request(name), Call(), max_input_len=100, is_admitted=is_admitted)
    hangar.launch(flight)
    return flight


def advance(flight: Flight) -> None:
    flight.accept(TokenChunk(flight.wire_id, (9,)))


def die(hangar: Hangar) -> dict[str, EngineUnavailable]:
    return {f.request.request_id: error for f, error in hangar.ground(hangar.airborne)}


def depart(hangar: Hangar) -> list[str]:
    return [flight.request.request_id for flight, _ in hangar.take_off()]


def test_those_that_had_come_further_leave_together() -> None:
    hangar = Hangar(max_resumes=5)
    for name in "abc":
        advance(launch(hangar, name))
    assert die(hangar) == {}
    assert depart(hangar) == ["a", "b", "c"]
    assert depart(hangar) == []


def test_suspects_leave_one_by_one_when_the_others_are_seen_to_live() -> None:
    hangar = Hangar(max_resumes=5)
    flights = {name: launch(hangar, name) for name in "abc"}
    waiting = launch(hangar, "w", is_admitted=False)
    assert die(hangar) == {}
    assert depart(hangar) == ["w"]
    assert depart(hangar) == []
    advance(waiting)
    assert depart(hangar) == ["a"]
    assert depart(hangar) == []
    advance(flights["a"])
    assert depart(hangar) == ["b"]
    hangar.remove(flights["b"])
    assert depart(hangar) == ["c"]
    assert not waiting.is_suspect


def test_second_death_ends_only_the_suspect_that_ran() -> None:
    hangar = Hangar(max_resumes=5)
    flights = {name: launch(hangar, name) for name in "ab"}
    die(hangar)
    assert depart(hangar) == ["a"]
    flights["a"].is_admitted = True
    ended = die(hangar)
    assert list(ended) == ["a"] and isinstance(ended["a"], RequestAbandoned)
    assert depart(hangar) == ["b"]
    assert len(hangar) == 1


def test_two_deaths_prove_nothing_where_engines_die_all_the_time() -> None:
    now = 0.0
    hangar = Hangar(max_resumes=50, clock=lambda: now)
    for _ in range(5):
        assert die(hangar) == {}  # nothing runs that could have caused them
    innocent = launch(hangar, "a")
    for _ in range(4):
        assert die(hangar) == {}
        assert depart(hangar) == ["a"]
        innocent.is_admitted = True
    now = 1_000.0  # what was long ago is forgotten
    assert list(die(hangar)) == ["a"]


def test_what_a_request_has_explained_does_not_excuse_the_next_one() -> None:
    hangar = Hangar(max_resumes=50)
    for name in "abcdef":
        guilty = launch(hangar, name)
        assert die(hangar) == {}
        assert depart(hangar) == [name]
        guilty.is_admitted = True
        assert list(die(hangar)) == [name]


def test_deaths_are_bounded_even_for_those_that_come_further() -> None:
    hangar = Hangar(max_resumes=2)
    flight = launch(hangar, "a")
    for _ in range(2):
        advance(flight)
        assert die(hangar) == {}
        assert depart(hangar) == ["a"]
        flight.is_admitted = True
    advance(flight)
    assert isinstance(die(hangar)["a"], RequestAbandoned)
    assert len(hangar) == 0


def test_without_resuming_the_client_may_try_again() -> None:
    hangar = Hangar(max_resumes=0)
    advance(launch(hangar, "a"))
    error = die(hangar)["a"]
    assert not isinstance(error, RequestAbandoned) and error.retry_after_s
