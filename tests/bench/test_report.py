"""Reports: what is written can be read, compared and drawn."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from deepinfer.bench import chart
from deepinfer.bench.chart import check_png, make_panels, render_page, ticks, write_png
from deepinfer.bench.report import (
    SWEEP_HEADERS,
    compare,
    differences,
    overview,
    percentile_rows,
    read_document,
    sweep_row,
    warnings,
    write_document,
)
from deepinfer.errors import BenchError
from tests.bench.results import document, run


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
