"""`make bench`: turns, medians, ratios and counts, with contenders that are scripted."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.side_by_side import added_latency, plan, report
from benchmarks.side_by_side.alone import compact, run_script
from benchmarks.side_by_side.api_process import describe
from benchmarks.side_by_side.bare_asgi import EVENT, app
from benchmarks.side_by_side.child import Child
from benchmarks.side_by_side.comparison import Comparison, compare
from benchmarks.side_by_side.contender import Load, Measured, Model, Unavailable, check_count
from benchmarks.side_by_side.environment import Environment, find_reason
from benchmarks.side_by_side.over_http import write_dataset
from benchmarks.side_by_side.plan import RUN_BUDGET_S, Setup, Step, run_steps
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.rounds import Level, run_lives, run_rounds, started
from benchmarks.side_by_side.start_up import MARKS, read_cost, read_phases
from benchmarks.side_by_side.tables import find_ratios, judge, ratio_rows, spread, table
from deepinfer.bench.machine import MachineRates
from deepinfer.bench.prompts import read_dataset

MODEL = Model(Path("checkpoint"), Path("engine"), max_streams=4, max_seq_len=64)
RATES = MachineRates(num_threads=2, read_bytes_per_s=1e10, copy_bytes_per_s=1e10, gemm_flops=1e11)


class Scripted:
    """Takes a second for so many tokens; fails, or is short of a token, in the turn it is told."""

    precision = "int8"
    note = ""
    version = "1.0"

    def __init__(
        self,
        name: str,
        order: list[str],
        *,
        rate: float = 8.0,
        missing: str = "",
        short_at: int | None = None,
    ) -> None:
        self.name = name
        self.is_stopped = False
        self._order, self._rate = order, rate
        self._missing, self._short_at = missing, short_at

    def prepare(self, model: Model) -> None:
        if self._missing:
            raise Unavailable(self._missing)

    def start(self, model: Model) -> None:
        self.is_stopped = False
        self.is_paused = False

    def measure(self, load: Load) -> Measured:
        self._order.append(self.name)
        num_tokens = load.num_tokens - (load.number == self._short_at)
        return Measured(num_tokens, load.num_tokens / self._rate, num_events=num_tokens)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def stop(self) -> None:
        self.is_stopped = True


def quiet(_words: str) -> None:
    pass


def test_median_stands_with_its_extremes() -> None:
    found = spread([3.0, 1.0, 10.0, 2.0, 4.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (3.0, 1.0, 10.0, 5)
    assert found.show(1) == "3.0 (1.0 to 10.0)"
    assert spread([]) is None


def test_ratio_is_the_median_of_turns_and_not_of_rates() -> None:
    turns = [{"a": 10.0, "b": 10.0}, {"a": 40.0, "b": 20.0}, {"a": 5.0, "b": 1.0}]
    assert find_ratios(turns, "a", "b") == [1.0, 2.0, 5.0]
    assert ratio_rows({4: turns}, "a", ["b"]) == [["4", "2.000 (1.000 to 5.000)"]]


def test_turn_without_one_of_the_two_has_no_ratio() -> None:
    assert find_ratios([{"a": 1.0}, {"a": 6.0, "b": 2.0}], "a", "b") == [3.0]
    assert ratio_rows({1: [{"a": 1.0}]}, "a", ["b"]) == [["1", "-"]]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.97, "met"), (0.96, "missed"), (None, "not measured")],
    ids=["at it", "below", "nothing"],
)
def test_target_is_judged(value: float | None, verdict: str) -> None:
    assert judge(value, 0.97) == verdict


def test_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_other_number_of_tokens_than_asked_is_refused() -> None:
    load = Load(streams=2, prompt_tokens=4, output_tokens=8)
    assert check_count("peer", load, Measured(16, 1.0)).num_tokens == 16
    with pytest.raises(Unavailable, match="peer generated 15 tokens instead of 16 at 2 streams"):
        check_count("peer", load, Measured(15, 1.0))


def test_prompts_have_their_length_and_differ_between_loads() -> None:
    first, second = (Load(4, 32, 8, number).prompts for number in (0, 1))
    assert {len(prompt) for prompt in first} == {32}
    assert len({*first, *second}) == 8
    assert first == Load(4, 32, 8, 0).prompts


def test_client_reads_the_prompts_and_lengths_of_a_load(tmp_path: Path) -> None:
    load = Load(3, 16, 5)
    write_dataset(tmp_path / "prompts.jsonl", load)
    samples = read_dataset(tmp_path / "prompts.jsonl")
    assert [one.prompt for one in samples] == load.prompts
    assert {one.output_tokens for one in samples} == {5}


def test_contenders_take_turns_in_alternating_order() -> None:
    order: list[str] = []
    contenders = [Scripted(name, order) for name in "abc"]
    with started(contenders, MODEL, quiet) as taking_part:
        seen = run_rounds(taking_part, [Level(1, 4, 8)], 3, math.inf, quiet)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"  # the first warms up
    assert len(seen[1]) == 3
    assert all(one.is_stopped for one in contenders)


def test_each_life_is_started_anew_and_has_the_other_order() -> None:
    order: list[str] = []

    class Starting(Scripted):
        def start(self, model: Model) -> None:
            order.append(self.name.upper())
            super().start(model)

    contenders = [Starting("a", order), Starting("b", order)]
    seen, absent = run_lives(contenders, MODEL, [Level(1, 4, 8)], 3, 1, math.inf, quiet)
    assert " ".join(order) == "A B a b a b A B a b b a A B a b a b"  # each warms up first
    assert len(seen[1]) == 3 and not absent


def test_who_fails_in_one_life_is_not_started_in_the_next() -> None:
    order: list[str] = []
    contenders = [Scripted("a", order), Scripted("b", order, short_at=0)]
    seen, absent = run_lives(contenders, MODEL, [Level(1, 4, 8)], 2, 1, math.inf, quiet)
    assert "".join(order) == "ab" + "ab" + "a" + "a"
    assert [sorted(turn) for turn in seen[1]] == [["a"], ["a"]]
    assert absent == {"b": "b generated 7 tokens instead of 8 at 1 streams"}


def test_no_life_begins_when_the_time_is_over() -> None:
    order: list[str] = []
    levels = [Level(1, 4, 8)]
    seen, _ = run_lives([Scripted("a", order)], MODEL, levels, 3, 1, -math.inf, quiet)
    assert seen == {1: []} and order == ["a"]  # the warm-up of the first


def test_others_are_paused_while_one_is_measured() -> None:
    awake: list[list[str]] = []

    class Watching(Scripted):
        def measure(self, load: Load) -> Measured:
            awake.append([one.name for one in contenders if not one.is_paused])
            return super().measure(load)

    contenders = [Watching(name, []) for name in "abc"]
    with started(contenders, MODEL, quiet) as taking_part:
        run_rounds(taking_part, [Level(1, 4, 8)], 2, math.inf, quiet)
    assert awake == [[name] for name in "abc" + "abc" + "cba"]


def test_paused_process_stands_still_and_still_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "for line in open(0): print(line, end='', flush=True)"]
    child = Child(command, tmp_path / "log", is_asked=True)
    assert child.ask("a") == "a\n"
    child.pause()
    deadline = time.monotonic() + 10
    while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.resume()
    assert child.ask("b") == "b\n"
    child.pause()
    child.close()
    assert not child.is_running


def test_no_round_begins_when_the_time_is_over() -> None:
    order: list[str] = []
    with started([Scripted("a", order)], MODEL, quiet) as taking_part:
        seen = run_rounds(taking_part, [Level(1, 4, 8)], 5, -math.inf, quiet)
    assert seen == {1: []} and order == ["a"]  # the warm-up


def test_level_has_as_many_turns_a_round_as_it_says() -> None:
    with started([Scripted("a", [])], MODEL, quiet) as taking_part:
        seen = run_rounds(
            taking_part, [Level(1, 4, 8, turns=3), Level(2, 4, 8)], 2, math.inf, quiet
        )
    assert {streams: len(turns) for streams, turns in seen.items()} == {1: 6, 2: 2}


def test_peer_that_does_not_install_is_named_and_the_others_are_measured() -> None:
    order: list[str] = []
    peers = [Scripted("ours", order, rate=16), Scripted("gone", order, missing="not installed: no")]
    peers.append(Scripted("peer", order, rate=8))
    part = compare(Comparison("Peers", (Level(1, 4, 8),), num_rounds=5), peers, MODEL, 60, quiet)
    assert "- gone: left out, not installed: no" in part.text
    assert "| streams | over peer |" in part.text
    assert "| 1 | 2.000 (2.000 to 2.000) |" in part.text
    assert "gone" not in order and peers[1].is_stopped


def test_contender_with_a_wrong_count_takes_no_further_part() -> None:
    order: list[str] = []
    contenders = [Scripted("ours", order), Scripted("short", order, short_at=1)]
    comparison = Comparison("Peers", (Level(1, 4, 8),), num_rounds=3)
    part = compare(comparison, contenders, MODEL, 60, quiet)
    assert "short: left out, short generated 7 tokens instead of 8" in part.text
    assert order.count("short") == 3  # the warm-up, a good turn and the short one
    assert order.count("ours") == 4


def test_rounds_go_on_when_the_first_contender_is_missing() -> None:
    contenders = [Scripted("ours", [], missing="no engine"), Scripted("peer", [])]
    comparison = Comparison("HTTP", (Level(1, 4, 8),), num_rounds=2, target=0.97)
    part = compare(comparison, contenders, MODEL, 60, quiet)
    assert "- ours: left out, no engine" in part.text
    assert "Target" not in part.text


def test_target_is_for_the_first_over_the_second() -> None:
    contenders = [Scripted("ours", [], rate=6), Scripted("bare", [], rate=8)]
    comparison = Comparison("HTTP", (Level(1, 4, 8),), num_rounds=2, target=0.97)
    text = compare(comparison, contenders, MODEL, 60, quiet).text
    assert "Target, at least 0.97 times bare: missed at 1." in text


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Collecting x\nERROR: No matching distribution\nmore", "ERROR: No matching distribution"),
        ("one\nlast\n\n", "last"),
        ("", "it said nothing"),
        ("error: " + "x" * 500, "error: " + "x" * 153),
    ],
    ids=["error", "last line", "nothing", "long"],
)
def test_reason_is_one_short_line(output: str, reason: str) -> None:
    assert find_reason(output) == reason


def test_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "installed.txt").write_text("peer==1\nwithout extra")
    Environment(tmp_path, ("peer==1",), unwanted=("extra",)).install()
    assert [path.name for path in tmp_path.iterdir()] == ["installed.txt"]


def test_script_that_fails_or_takes_too_long_is_left_out() -> None:
    with pytest.raises(Unavailable, match="failed: ValueError: broken error"):
        run_script([sys.executable, "-c", "raise ValueError('broken error')"], 60)
    with pytest.raises(Unavailable, match="stopped after 0 s"):
        run_script([sys.executable, "-c", "import time; time.sleep(60)"], 0.01)


def test_json_of_a_script_is_shown_a_line_a_field() -> None:
    assert compact('{\n "a": 1,\n "b": [2]\n}') == "a: 1\nb: [2]"
    assert compact("| a |") == "| a |"


def test_cost_of_a_build_is_read_from_its_last_words() -> None:
    said = "seal\nbuilt `a/b` in 83.7 s, peak memory 2.3 GiB, 483 MiB on disk\nserve it: ..."
    assert read_cost(said) == "83.7 s, peak memory 2.3 GiB"
    assert read_cost("") == "-"


def test_phases_of_a_start_are_read_from_its_log() -> None:
    log = (
        "2026-01-01 10:00:01.500 INFO deepinfer.commands.serve: listening on http://a:1\n"
        "2026-01-01 10:00:01.600 WARNING deepinfer.server.offer: loading weights takes long\n"
        "2026-01-01 10:00:01.700 INFO deepinfer.commands.serve: tokenizers loaded in 0.0 s\n"
        "2026-01-01 10:00:02.000 INFO deepinfer.runtime.engine_process: one: importing OpenVINO\n"
        "2026-01-01 10:00:02.250 INFO deepinfer.runtime.engine_process: one: loading weights\n"
        "2026-01-01 10:00:04.250 INFO deepinfer.runtime.engine_process: one: warming up\n"
        "2026-01-01 10:00:04.300 INFO deepinfer.runtime.engine_process: one: moving weights to "
        "huge pages\n"
        "2026-01-01 10:00:04.500 INFO deepinfer.runtime.client: engine `one` loaded in 2.5 s\n"
    )
    phases = read_phases(log, datetime(2026, 1, 1, 10, 0, 1))
    assert list(phases) == [phase for _, phase in MARKS]
    assert list(phases.values()) == [0.5, 0.5, 0.25, 2.0, 0.05, 0.2]
    cut = read_phases(log[: log.index("2026-01-01 10:00:04.250")], datetime(2026, 1, 1, 10))
    assert list(cut) == [phase for _, phase in MARKS[:3]]


def test_first_tokens_and_gaps_are_judged() -> None:
    assert "1.50 (1.00 to 2.00) ms" in added_latency.describe_first_tokens([0.001, 0.002])
    assert "at most 3 ms: met" in added_latency.describe_first_tokens([0.001, 0.002])
    assert "at most 3 ms: missed" in added_latency.describe_first_tokens([0.004])
    gaps = added_latency.describe_gaps([{"ours": 0.004, "bare": 0.001}], 256)
    assert "| ours | 4.0 (4.0 to 4.0) |" in gaps
    assert "at most 20 ms: met" in gaps
    events = added_latency.describe_events([{"1": 10.0}, {"1": 15.0}], 256)
    assert "12 (10 to 15) events/s" in events


def test_cost_of_an_event_is_told_as_a_ratio_first() -> None:
    turns = [{"ours": 40.0, "bare": 20.0}, {"ours": 60.0, "bare": 20.0}]
    text = describe(256, turns, ["ours", "bare"]).text
    assert "ours takes 2.50 (2.00 to 3.00) times what the bare takes" in text
    assert "| ours | 50.0 (40.0 to 60.0) |" in text


async def test_bare_application_sends_an_event_a_token() -> None:
    sent: list[Mapping[str, Any]] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"max_tokens": 2, "stream": true}'}

    await app({"type": "http", "method": "POST", "path": "/v1/completions"}, receive, send)
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[:2] == [EVENT, EVENT] and len(bodies) == 3
    assert b'"completion_tokens":2' in bodies[2] and bodies[2].endswith(b"data: [DONE]\n\n")


def make_setup(folder: Path) -> Setup:
    return Setup(folder=folder, peers=(), pip_args="", is_quick=True, say=quiet)


def test_part_that_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    parts: list[Part] = []
    steps = [
        Step("long", RUN_BUDGET_S + 1, lambda *_: pytest.fail("there is no time for it")),
        Step("short", 1, lambda *_: Part(title="Short", text="seen")),
    ]
    run_steps(steps, make_setup(tmp_path), parts.append)
    assert [part.title for part in parts] == ["long", "Short"]
    assert parts[0].text.startswith("Left out: 1801 s are planned for it")


def test_part_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    def fail(_setup: Setup, _budget_s: float) -> Part:
        raise Unavailable("no numpy")

    parts: list[Part] = []
    run_steps([Step("decode", 1, fail)], make_setup(tmp_path), parts.append)
    assert parts == [Part(title="decode", text="Left out: no numpy.")]


def test_all_parts_fit_the_half_hour_together() -> None:
    assert sum(step.budget_s for step in plan.STEPS) <= RUN_BUDGET_S
    comparisons = (plan.HTTP_COST, plan.PEERS_BESIDE, plan.EVENTS)
    assert all(one.num_rounds * one.num_lives >= 5 for one in comparisons)


def test_page_and_figures_are_written_together(tmp_path: Path) -> None:
    found = report.begin(RATES, is_quick=True)
    found.parts.append(Part(title="Peers", text="| a |", figures={"turns": {1: []}}))
    report.write(found, tmp_path)
    page = (tmp_path / report.PAGE).read_text()
    assert "memory read at 10.0 GB/s" in page and "## Peers\n\n| a |" in page
    assert "A quick run" in page
    figures = json.loads((tmp_path / report.FIGURES).read_text())
    assert figures["parts"][0]["figures"] == {"turns": {"1": []}}
    assert figures["rates"]["gemm_flops"] == 1e11
