"""Rates of an engine, and the limits that they are held against."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from deepinfer.bench import machine
from deepinfer.bench.engine import (
    HEADERS,
    EngineBenchPlan,
    EngineReport,
    EngineSize,
    Point,
    Trial,
    TrialClock,
    bench_engine,
    compute_bounds,
    engine_overview,
    make_requests,
    point_row,
    read_engine_size,
)
from deepinfer.bench.machine import MachineRates
from deepinfer.errors import BenchError
from deepinfer.manifest import EngineFolder, FileRecord
from tests.engines import EOS, make_simulated_engine

RATES = MachineRates(num_threads=2, read_bytes_per_s=10e9, copy_bytes_per_s=15e9, gemm_flops=100e9)
SIZE = EngineSize(weight_bytes=10**9, num_parameters=10**9, kv_bytes_per_token=10**5)


def test_one_sequence_decodes_as_fast_as_its_weights_are_read() -> None:
    bounds = compute_bounds(SIZE, RATES, batch_size=1, context_len=0)
    assert bounds is not None
    assert bounds.decode_tokens_per_s == 10.0


def test_cache_of_every_sequence_is_read_as_well() -> None:
    bounds = compute_bounds(SIZE, RATES, batch_size=2, context_len=5_000)
    assert bounds is not None
    assert bounds.decode_tokens_per_s == pytest.approx(2 * 10e9 / (1e9 + 1e9))


def test_many_sequences_are_bound_by_arithmetic() -> None:
    bounds = compute_bounds(SIZE, RATES, batch_size=1000, context_len=0)
    assert bounds is not None
    assert bounds.decode_tokens_per_s == pytest.approx(50.0)
    assert bounds.prefill_tokens_per_s == 50.0


def test_weights_are_the_payload_without_tokenizers(tmp_path: Path) -> None:
    manifest = make_simulated_engine(tmp_path).manifest
    files = {
        "payload/openvino_model.bin": 1000,
        "payload/openvino_tokenizer.bin": 50,
        "tokenizer/tokenizer.json": 7,
    }
    records = {path: FileRecord(size_bytes=size, sha256="0" * 64) for path, size in files.items()}
    assert read_engine_size(manifest.model_copy(update={"files": records})).weight_bytes == 1000


def test_engine_without_weights_has_no_limit(tmp_path: Path) -> None:
    size = read_engine_size(make_simulated_engine(tmp_path).manifest)
    assert compute_bounds(size, RATES, batch_size=1, context_len=10) is None


def test_clock_divides_prefill_from_decoding() -> None:
    clock = TrialClock({"a", "b"}, started_at=10.0)
    clock.add_tokens("a", 1, 11.0)
    clock.add_tokens("a", 1, 12.0)  # while the other prompt is read
    clock.add_tokens("b", 1, 12.0)
    clock.add_tokens("a", 1, 13.0)
    clock.add_tokens("b", 1, 13.0)
    clock.add_tokens("a", 2, 14.0)
    clock.add_tokens("b", 2, 14.0)
    clock.end(14.0)
    clock.add_tokens("b", 5, 15.0)  # a smaller batch by now
    clock.end(15.0)
    trial = clock.trial(num_prompt_tokens=100)
    assert trial == Trial(prefill_tokens_per_s=50.0, decode_tokens_per_s=3.0)


def test_tokens_of_the_step_that_ends_the_prefill_are_no_decoding() -> None:
    clock = TrialClock({"a", "b"}, started_at=0.0)
    clock.add_tokens("b", 1, 1.0)
    clock.add_tokens("a", 1, 2.0)
    clock.add_tokens("b", 1, 2.0)
    clock.add_tokens("a", 1, 3.0)
    clock.end(3.0)
    assert clock.trial(1).decode_tokens_per_s == 1.0


def test_answers_that_end_with_the_prefill_have_no_rate_of_decoding() -> None:
    clock = TrialClock({"a"}, started_at=0.0)
    clock.add_tokens("a", 5, 1.0)
    clock.end(1.0)
    assert clock.trial(5) == Trial(5.0, None)


def test_point_is_the_median_of_its_trials() -> None:
    trials = tuple(Trial(rate, rate / 10) for rate in (30.0, 10.0, 20.0))
    point = Point(1, 64, (*trials, Trial(20.0, None)), compute_bounds(SIZE, RATES, 1, 0))
    assert (point.prefill_tokens_per_s, point.decode_tokens_per_s) == (20.0, 2.0)
    cells = point_row(point)
    assert len(cells) == len(HEADERS)
    assert cells == ("1", "64", "20.0", "40%", "2.0", "20%", "1.0 to 3.0")


def test_requests_hold_no_special_token_and_run_to_their_end(tmp_path: Path) -> None:
    manifest = make_simulated_engine(tmp_path, vocab_size=8).manifest
    requests = make_requests(manifest, Random(0), batch_size=4, prompt_len=100, output_tokens=9)
    assert len({request.prompt_token_ids for request in requests}) == 4
    for request in requests:
        assert EOS not in request.prompt_token_ids
        assert (request.sampling.max_tokens, request.sampling.ignore_eos) == (9, True)


def measure(engine: EngineFolder, *batch_sizes: int, prompt_len: int = 16) -> EngineReport:
    plan = EngineBenchPlan(
        batch_sizes=batch_sizes,
        prompt_lens=(prompt_len,),
        output_tokens=8,
        num_trials=2,
        num_threads=None,
    )
    return asyncio.run(bench_engine(engine, plan, None, lambda _: None))


def test_machine_is_measured_by_real_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ARRAY_BYTES", 2**20)
    monkeypatch.setattr(machine, "GEMM_SIZE", 64)
    rates = machine.measure(num_threads=2)
    assert rates.num_threads == 2
    assert min(rates.read_bytes_per_s, rates.copy_bytes_per_s, rates.gemm_flops) > 0


def test_machine_without_numpy_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    with pytest.raises(BenchError) as caught:
        machine.measure_machine(num_threads=1)
    assert caught.value.hint and "--rates-only" in caught.value.hint


def test_engine_is_measured_at_each_batch_size(tmp_path: Path) -> None:
    report = measure(make_simulated_engine(tmp_path), 1, 4)
    assert [point.batch_size for point in report.points] == [1, 4]
    assert {len(point.trials) for point in report.points} == {2}
    assert all(point.prefill_tokens_per_s > 0 for point in report.points)
    assert dict(engine_overview(report))["engine"].startswith("simulated")


def test_what_an_engine_has_no_room_for_is_skipped_with_the_reason(tmp_path: Path) -> None:
    engine = make_simulated_engine(
        tmp_path, max_batch_size=4, max_seq_len=512, settings={"num_blocks": 2}
    )
    report = measure(engine, 1, 4, 5)
    assert [point.batch_size for point in report.points] == [1]
    assert report.skipped == (
        "4 x 16: the KV cache holds 64 tokens",
        "5 x 16: the engine accepts at most 4 sequences",
    )
    assert measure(engine, 1, prompt_len=505).skipped == (
        "1 x 505: the engine accepts at most 512 tokens per sequence",
    )


def test_engine_that_fails_is_an_error_for_people(tmp_path: Path) -> None:
    engine = make_simulated_engine(tmp_path, vocab_size=8, settings={"fault_token_id": 5})
    with pytest.raises(BenchError):
        measure(engine, 1, prompt_len=100)
