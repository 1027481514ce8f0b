"""Which requests leave again after an engine's death, in which order, and which never do."""

from __future__ import annotations

import pytest

from deepinfer.errors import EngineUnavailable, QueueFull, RequestAbandoned
from deepinfer.generation import TokenChunk
from deepinfer.runtime.call import Call
from deepinfer.runtime.flight import Flight
from deepinfer.runtime.hangar import MAX_ALONE_S, Hangar
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


def test_who_was_there_at_two_deaths_in_a_row_leaves_alone_and_before_all_others() -> None:
    hangar = Hangar(max_resumes=5)
    flights = {name: launch(hangar, name) for name in "abc"}
    die(hangar)
    assert depart(hangar) == ["a"]
    flights["a"].is_admitted = True
    waiting = launch(hangar, "w")
    advance(waiting)
    assert die(hangar) == {}  # something else ran, so nothing is proven
    assert depart(hangar) == ["a"] and hangar.has_trial
    assert depart(hangar) == []
    advance(flights["a"])
    assert not hangar.has_trial
    assert depart(hangar) == ["w"]


def test_two_deaths_at_which_it_ran_alone_end_a_request() -> None:
    hangar = Hangar(max_resumes=5)
    flights = {name: launch(hangar, name) for name in "ab"}
    assert die(hangar) == {}
    for _ in range(2):
        assert depart(hangar) == ["a"]
        flights["a"].is_admitted = True
        ended = die(hangar)
    assert list(ended) == ["a"] and isinstance(ended["a"], RequestAbandoned)
    assert depart(hangar) == ["b"]
    assert len(hangar) == 1


def test_others_wait_for_who_is_tried_alone_for_some_seconds_only() -> None:
    now = 0.0
    hangar = Hangar(max_resumes=5, clock=lambda: now)
    flights = {name: launch(hangar, name) for name in "ab"}
    for _ in range(2):
        assert die(hangar) == {}
        assert depart(hangar) == ["a"]
        flights["a"].is_admitted = True
        waiting = hangar.find("w") or launch(hangar, "w", is_admitted=False)
    hangar.hold(waiting)
    assert hangar.has_trial and hangar.must_ask_again
    assert depart(hangar) == []
    now = MAX_ALONE_S
    assert not hangar.has_trial
    assert depart(hangar) == ["w"]
    waiting.is_admitted = True
    assert die(hangar) == {}  # it did not run alone


def test_request_that_never_runs_alone_is_not_blamed() -> None:
    hangar = Hangar(max_resumes=50)
    for _ in range(10):
        launch(hangar, "company")
        bad = hangar.find("a") or launch(hangar, "a")
        bad.is_admitted = True
        assert die(hangar) == {}
        assert not bad.blames
        depart(hangar)


def test_lost_connection_is_no_death() -> None:
    hangar = Hangar(max_resumes=1)
    for _ in range(10):
        flight = hangar.find("a") or launch(hangar, "a")
        flight.is_admitted = True
        hangar.lose()
        assert list(hangar.decide(is_death=False)) == []
        assert not flight.is_suspect
        assert depart(hangar) == ["a"]


def test_death_that_is_known_later_counts_as_one() -> None:
    hangar = Hangar(max_resumes=5)
    flight = launch(hangar, "a")
    hangar.lose()
    assert not flight.is_suspect
    assert list(hangar.decide(is_death=True)) == []
    assert flight.is_suspect and len(flight.blames) == 1


def test_new_requests_wait_in_bounded_number() -> None:
    hangar = Hangar(max_resumes=5, max_new=2)
    flights = [Flight(request(name), Call(), max_input_len=100) for name in "abc"]
    with pytest.raises(QueueFull):
        hangar.keep(flights)
    assert len(hangar) == 0
    hangar.keep(flights[:2])
    with pytest.raises(QueueFull):
        hangar.keep(flights[2:])
    assert depart(hangar) == ["a", "b"] and hangar.new == ()
    hangar.keep(flights[2:])


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


def test_deaths_in_a_row_without_a_token_are_bounded() -> None:
    hangar = Hangar(max_resumes=2)
    flights = [launch(hangar, name) for name in "ab"]
    for _ in range(2):
        assert die(hangar) == {}
        depart(hangar)
        for flight in flights:  # as if both had left
            flight.is_admitted = True
            hangar.hold(flight)
            hangar.launch(flight)
    assert {type(error) for error in die(hangar).values()} == {RequestAbandoned}
    assert len(hangar) == 0


def test_deaths_with_a_token_between_them_are_not_counted() -> None:
    hangar = Hangar(max_resumes=2)
    flight = launch(hangar, "a")
    for _ in range(10):
        flight.is_admitted = True
        advance(flight)
        assert die(hangar) == {}
        assert depart(hangar) == ["a"]


def test_without_resuming_the_client_may_try_again() -> None:
    hangar = Hangar(max_resumes=0)
    advance(launch(hangar, "a"))
    error = die(hangar)["a"]
    assert not isinstance(error, RequestAbandoned) and error.retry_after_s
