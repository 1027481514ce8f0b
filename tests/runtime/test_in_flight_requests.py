"""Which requests leave again after an engine's death, in which order, and which never do."""

from __future__ import annotations

import pytest

from deepinfer.errors import EngineUnavailable, QueueFull, RequestAbandoned
from deepinfer.generation import TokenChunk
from deepinfer.runtime.handle import GenerationHandle
from deepinfer.runtime.resume import MAX_ALONE_S, InFlightRequests, ResumableRequest
from tests.runtime.running import request


def launch(in_flight: InFlightRequests, name: str, *, is_admitted: bool = True) -> ResumableRequest:
    resumable = ResumableRequest(
        request(name), GenerationHandle(), max_input_len=100, is_admitted=is_admitted
    )
    in_flight.add_dispatched(resumable)
    return resumable


def advance(resumable: ResumableRequest) -> None:
    resumable.accept(TokenChunk(resumable.wire_id, (9,)))


def die(in_flight: InFlightRequests) -> dict[str, EngineUnavailable]:
    return {f.request.request_id: error for f, error in in_flight.interrupt(in_flight.dispatched)}


def depart(in_flight: InFlightRequests) -> list[str]:
    return [resumable.request.request_id for resumable, _ in in_flight.dispatch()]


def test_those_that_had_come_further_leave_together() -> None:
    in_flight = InFlightRequests(max_resumes=5)
    for name in "abc":
        advance(launch(in_flight, name))
    assert die(in_flight) == {}
    assert depart(in_flight) == ["a", "b", "c"]
    assert depart(in_flight) == []


def test_suspects_leave_one_by_one_when_the_others_are_seen_to_live() -> None:
    in_flight = InFlightRequests(max_resumes=5)
    resumables = {name: launch(in_flight, name) for name in "abc"}
    waiting = launch(in_flight, "w", is_admitted=False)
    assert die(in_flight) == {}
    assert depart(in_flight) == ["w"]
    assert depart(in_flight) == []
    advance(waiting)
    assert depart(in_flight) == ["a"]
    assert depart(in_flight) == []
    advance(resumables["a"])
    assert depart(in_flight) == ["b"]
    in_flight.remove(resumables["b"])
    assert depart(in_flight) == ["c"]
    assert not waiting.is_suspect


def test_who_was_there_at_two_deaths_in_a_row_leaves_alone_and_before_all_others() -> None:
    in_flight = InFlightRequests(max_resumes=5)
    resumables = {name: launch(in_flight, name) for name in "abc"}
    die(in_flight)
    assert depart(in_flight) == ["a"]
    resumables["a"].is_admitted = True
    waiting = launch(in_flight, "w")
    advance(waiting)
    assert die(in_flight) == {}  # something else ran, so nothing is proven
    assert depart(in_flight) == ["a"] and in_flight.has_trial
    assert depart(in_flight) == []
    advance(resumables["a"])
    assert not in_flight.has_trial
    assert depart(in_flight) == ["w"]


def test_two_deaths_at_which_it_ran_alone_end_a_request() -> None:
    in_flight = InFlightRequests(max_resumes=5)
    resumables = {name: launch(in_flight, name) for name in "ab"}
    assert die(in_flight) == {}
    for _ in range(2):
        assert depart(in_flight) == ["a"]
        resumables["a"].is_admitted = True
        ended = die(in_flight)
    assert list(ended) == ["a"] and isinstance(ended["a"], RequestAbandoned)
    assert depart(in_flight) == ["b"]
    assert len(in_flight) == 1


def test_others_wait_for_who_is_tried_alone_for_some_seconds_only() -> None:
    now = 0.0
    in_flight = InFlightRequests(max_resumes=5, clock=lambda: now)
    resumables = {name: launch(in_flight, name) for name in "ab"}
    for _ in range(2):
        assert die(in_flight) == {}
        assert depart(in_flight) == ["a"]
        resumables["a"].is_admitted = True
        waiting = in_flight.find("w") or launch(in_flight, "w", is_admitted=False)
    in_flight.requeue(waiting)
    assert in_flight.has_trial and in_flight.must_poll
    assert depart(in_flight) == []
    now = MAX_ALONE_S
    assert not in_flight.has_trial
    assert depart(in_flight) == ["w"]
    waiting.is_admitted = True
    assert die(in_flight) == {}  # it did not run alone


def test_request_that_never_runs_alone_is_not_blamed() -> None:
    in_flight = InFlightRequests(max_resumes=50)
    for _ in range(10):
        launch(in_flight, "company")
        bad = in_flight.find("a") or launch(in_flight, "a")
        bad.is_admitted = True
        assert die(in_flight) == {}
        assert not bad.blames
        depart(in_flight)


def test_lost_connection_is_no_death() -> None:
    in_flight = InFlightRequests(max_resumes=1)
    for _ in range(10):
        resumable = in_flight.find("a") or launch(in_flight, "a")
        resumable.is_admitted = True
        in_flight.lose_connection()
        assert list(in_flight.resolve_loss(is_death=False)) == []
        assert not resumable.is_suspect
        assert depart(in_flight) == ["a"]


def test_death_that_is_known_later_counts_as_one() -> None:
    in_flight = InFlightRequests(max_resumes=5)
    resumable = launch(in_flight, "a")
    in_flight.lose_connection()
    assert not resumable.is_suspect
    assert list(in_flight.resolve_loss(is_death=True)) == []
    assert resumable.is_suspect and len(resumable.blames) == 1


def test_new_requests_wait_in_bounded_number() -> None:
    in_flight = InFlightRequests(max_resumes=5, max_new=2)
    resumables = [
        ResumableRequest(request(name), GenerationHandle(), max_input_len=100) for name in "abc"
    ]
    with pytest.raises(QueueFull):
        in_flight.add_waiting(resumables)
    assert len(in_flight) == 0
    in_flight.add_waiting(resumables[:2])
    with pytest.raises(QueueFull):
        in_flight.add_waiting(resumables[2:])
    assert depart(in_flight) == ["a", "b"] and in_flight.new == ()
    in_flight.add_waiting(resumables[2:])


def test_two_deaths_prove_nothing_where_engines_die_all_the_time() -> None:
    now = 0.0
    in_flight = InFlightRequests(max_resumes=50, clock=lambda: now)
    for _ in range(5):
        assert die(in_flight) == {}  # nothing runs that could have caused them
    innocent = launch(in_flight, "a")
    for _ in range(4):
        assert die(in_flight) == {}
        assert depart(in_flight) == ["a"]
        innocent.is_admitted = True
    now = 1_000.0  # what was long ago is forgotten
    assert list(die(in_flight)) == ["a"]


def test_what_a_request_has_explained_does_not_excuse_the_next_one() -> None:
    in_flight = InFlightRequests(max_resumes=50)
    for name in "abcdef":
        guilty = launch(in_flight, name)
        assert die(in_flight) == {}
        assert depart(in_flight) == [name]
        guilty.is_admitted = True
        assert list(die(in_flight)) == [name]


def test_deaths_in_a_row_without_a_token_are_bounded() -> None:
    in_flight = InFlightRequests(max_resumes=2)
    resumables = [launch(in_flight, name) for name in "ab"]
    for _ in range(2):
        assert die(in_flight) == {}
        depart(in_flight)
        for resumable in resumables:  # as if both had left
            resumable.is_admitted = True
            in_flight.requeue(resumable)
            in_flight.add_dispatched(resumable)
    assert {type(error) for error in die(in_flight).values()} == {RequestAbandoned}
    assert len(in_flight) == 0


def test_deaths_with_a_token_between_them_are_not_counted() -> None:
    in_flight = InFlightRequests(max_resumes=2)
    resumable = launch(in_flight, "a")
    for _ in range(10):
        resumable.is_admitted = True
        advance(resumable)
        assert die(in_flight) == {}
        assert depart(in_flight) == ["a"]


def test_without_resuming_the_client_may_try_again() -> None:
    in_flight = InFlightRequests(max_resumes=0)
    advance(launch(in_flight, "a"))
    error = die(in_flight)["a"]
    assert not isinstance(error, RequestAbandoned) and error.retry_after_s
