"""The statistics, on numbers that can be checked by hand."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.bench.report import (
    Objective,
    Percentiles,
    find_goodput,
    parse_objective,
    percentile,
    percentiles,
    summarize,
)
from deepinfer.errors import ConfigError
from tests.bench.results import result


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 50, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([0.0, 100.0], 99, 99.0),
        ([1.0, 2.0], 0, 1.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_percentile_lies_between_its_neighbours_in_proportion(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    found = [percentile(sorted(values), percent) for percent in (50, 90, 99)]
    assert found == pytest.approx([cuts[49], cuts[89], cuts[98]])


def test_spread_of_nothing_is_none() -> None:
    assert percentiles([]) is None
    assert percentiles([2.0, 4.0]) == Percentiles(3.0, 3.0, pytest.approx(3.8), pytest.approx(3.98))


def test_rates_and_times_of_two_streams() -> None:
    found = summarize([result(1.0, 1.5, 2.0), result(3.0, 4.0, started_at=2.0)], 5.0)
    assert (found.num_ok, found.requests_per_s, found.num_output_tokens) == (2, 0.4, 5)
    assert (found.output_tokens_per_s, found.input_tokens_per_s) == (1.0, 4.0)
    assert found.ttft_s is not None and found.ttft_s.mean == 1.0
    assert found.itl_s is not None and found.itl_s.mean == pytest.approx(2.0 / 3)
    assert found.e2e_s is not None and found.e2e_s.mean == 2.0
    assert found.tokens_per_event == 1.0


def test_failures_are_counted_by_code_and_are_in_no_other_figure() -> None:
    failed = [result(0.1, error="http_500"), result(error="timeout"), result(error="timeout")]
    found = summarize([result(1.0, 2.0), *failed], 2.0)
    assert found.errors == {"timeout": 2, "http_500": 1}
    assert (found.num_requests, found.num_ok, found.output_tokens_per_s) == (4, 1, 1.0)
    assert found.ttft_s is not None and found.ttft_s.p50 == 1.0


def test_nothing_but_failures_has_no_times() -> None:
    found = summarize([result(error="timeout")], 1.0)
    assert (found.requests_per_s, found.ttft_s, found.e2e_s) == (0.0, None, None)
    assert found.output_tokens_per_s is None


def test_tokens_are_unknown_when_one_answer_has_no_count() -> None:
    found = summarize([result(1.0), result(output_tokens=None, counted_by="nothing")], 1.0)
    assert found.output_tokens_per_s is None
    assert found.output_tokens_counted_by == "nothing and usage"


def test_answers_shorter_than_asked_are_counted() -> None:
    answers = [result(1.0, max_tokens=5), result(1.0), result(max_tokens=1)]
    assert summarize(answers, 1.0).num_short == 2


def test_several_tokens_an_event_are_told() -> None:
    assert summarize([result(1.0, 2.0, output_tokens=8)], 1.0).tokens_per_event == 4.0


@pytest.mark.parametrize(
    ("objective", "num_good"),
    [
        (Objective(), 2),
        (Objective(ttft=1.0), 1),
        (Objective(ttft=2.0), 2),
        (Objective(itl=0.5), 1),
        (Objective(e2e=1.9), 0),
        (Objective(ttft=2.0, itl=0.5, e2e=9.0), 1),
    ],
    ids=str,
)
def test_goodput_is_what_meets_every_limit(objective: Objective, num_good: int) -> None:
    quick_start = result(1.0, 2.0, 3.0)  # ttft 1, itl 1, e2e 3
    quick_pace = result(2.0, 2.2, 2.4)  # ttft 2, itl 0.2, e2e 2.4
    failed = result(0.1, 0.2, error="http_500")
    found = find_goodput([quick_start, quick_pace, failed], objective, elapsed_s=2.0)
    assert (found.share, found.requests_per_s) == (num_good / 3, num_good / 2)


def test_answer_in_one_piece_is_held_to_its_whole_time_only() -> None:
    whole = result(started_at=0.0, ended_at=1.0)
    assert Objective(ttft=0.1, itl=0.1, e2e=1.0).is_met(whole)
    assert not Objective(e2e=0.9).is_met(whole)


def test_pace_of_a_request_is_by_tokens_and_not_by_events() -> None:
    assert result(1.0, 2.0, output_tokens=11).mean_itl_s == 0.1


def test_objective_is_read() -> None:
    assert parse_objective("ttft=0.5,itl=0.05") == Objective(ttft=0.5, itl=0.05)


@pytest.mark.parametrize(
    "text", ["ttft", "ttft=fast", "ttft=0", "ttft=-1", "tpot=1", "", "e2e=nan"]
)
def test_what_is_no_objective_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_objective(text)
    assert caught.value.hint
