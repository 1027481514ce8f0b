"""Reports: statistics that can be checked by hand, the JSON document, comparison, the curve."""

from __future__ import annotations

import re
import statistics
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.bench import chart
from deepinfer.bench.chart import check_png, make_panels, render_page, ticks, write_png
from deepinfer.bench.report import (
    SWEEP_HEADERS,
    Objective,
    Percentiles,
    compare,
    differences,
    find_goodput,
    overview,
    parse_objective,
    percentile,
    percentile_rows,
    percentiles,
    read_document,
    summarize,
    sweep_row,
    warnings,
    write_document,
)
from deepinfer.errors import BenchError, ConfigError
from tests.bench.results import document, result, run


def test_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = document(run(1), run(rate_per_s=2.5))
    write_document(tmp_path / "a.json", written)
    assert read_document(tmp_path / "a.json") == written


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"kind": "engine"}'],
    ids=["empty", "object", "array", "other kind"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BenchError, match="is not the report of a benchmark"):
        read_document(tmp_path / "a.json")


def test_report_of_another_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", msgspec.structs.replace(document(), schema_version=2))
    with pytest.raises(BenchError, match="schema version 2"):
        read_document(tmp_path / "a.json")


def test_file_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot write"):
        write_document(tmp_path / "no folder" / "a.json", document())


def test_ratios_are_of_the_second_to_the_first() -> None:
    rows = compare(document(run(4)), document(run(4, scale=2.0)))
    ratios = {figure: float(ratio) for _, figure, _, _, ratio in rows}
    assert ratios["requests/s"] == ratios["output tokens/s"] == 0.5
    assert ratios["ttft p50, ms"] == ratios["itl p99, ms"] == ratios["e2e p50, ms"] == 2.0


def test_runs_are_compared_at_the_loads_that_both_have() -> None:
    rows = compare(document(run(1), run(4), run(16)), document(run(4), run(1), run(8)))
    assert {row[0] for row in rows} == {"1", "4"}


def test_reports_of_other_loads_cannot_be_compared() -> None:
    with pytest.raises(BenchError, match="no load in common: 1 in the first, 2/s in the second"):
        compare(document(run(1)), document(run(rate_per_s=2)))


def test_loads_that_differ_otherwise_are_told() -> None:
    other = run(4)
    other = msgspec.structs.replace(other, load=msgspec.structs.replace(other.load, route="chat"))
    (line,) = differences(document(run(4)), document(other))
    assert line == "`route` is completions in the first and chat in the second"


def test_tables_have_a_cell_for_each_header() -> None:
    assert len(sweep_row(run())) == len(SWEEP_HEADERS)
    assert dict(overview(run()))["output tokens/s"] == "5.0"
    assert dict(overview(run()))["goodput"] == "2.00 requests/s, 100.0% of all"
    names = [name for name, *_ in percentile_rows(run())]
    assert names[:2] == ["time to first token, ms", "inter-token latency, ms"]


def test_busy_or_late_client_is_told() -> None:
    busy = msgspec.structs.replace(run(), client_cpu_share=0.95)
    late = msgspec.structs.replace(run(), client_max_lag_s=0.5)
    assert warnings([run()]) == []
    assert ["--processes" in line for line in warnings([busy, late])] == [True, False]


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (0.0, [0, 1]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (7.0, [0, 2, 4, 6, 8]),
        (23_000.0, [0, 5000, 10_000, 15_000, 20_000, 25_000]),
    ],
)
def test_ticks_are_round_and_reach_the_top(top: float, expected: list[float]) -> None:
    assert ticks(top) == pytest.approx(expected)


def test_curve_has_a_point_a_level() -> None:
    panels = make_panels([run(1), run(4), run(16)])
    assert [panel.title.split(",")[0] for panel in panels] == [
        "Time to first token",
        "Inter-token latency",
        "End to end",
    ]
    assert [label for _, _, label in panels[0].series[0].points] == ["1", "4", "16"]


def test_page_holds_all_it_needs() -> None:
    page = render_page(document(run(1), run(4), model="<b>&model"))
    HTMLParser().feed(page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert [len(ET.fromstring(svg).findall(".//{*}circle")) for svg in drawings] == [4, 4, 4]
    assert "<b>" not in page and "&lt;b&gt;&amp;model" in page
    links = re.findall(r"(?:src|href)=|@import|url\(|<script", page)
    assert links == []


def test_points_lie_within_the_drawing() -> None:
    for svg in re.findall(r"<svg.*?</svg>", render_page(document(run(1), run(4))), re.DOTALL):
        drawing = ET.fromstring(svg)
        for dot in drawing.findall(".//{*}circle"):
            assert 0 <= float(dot.attrib["cx"]) <= float(drawing.attrib["width"])
            assert 0 <= float(dot.attrib["cy"]) <= float(drawing.attrib["height"])


def test_page_of_runs_without_tokens_has_the_table_only() -> None:
    whole = run()
    summary = msgspec.structs.replace(whole.summary, output_tokens_per_s=None)
    page = render_page(document(msgspec.structs.replace(whole, summary=summary)))
    assert "<svg" not in page and "<table>" in page


def test_png_without_its_library_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_png(Path("a.png"))
    monkeypatch.setattr(chart, "find_spec", lambda _: None)
    with pytest.raises(BenchError) as caught:
        check_png(Path("a.png"))
    assert caught.value.hint and "deepinfer[bench]" in caught.value.hint


def test_png_is_a_png(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", document(run(1), run(4)))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


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
