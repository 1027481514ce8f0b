"""How the double's executor batches, counts, aborts and fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.double.guided import REFUSED_MARK
from tests.contract.double.record import recorded
from tests.contract.loading import LIMITS, PROMPT, Loader, ids, loader_on, params, steps

SLOW_MS = 20.0  # an iteration that leaves time to do something while a request runs
FAULT_TOKEN = 99


async def test_abort_ends_with_cancelled(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, iteration_ms=SLOW_MS) as load:
        llm = load(engine_dir, **LIMITS)
        result = llm.generate_async(PROMPT, params(max_tokens=200), streaming=True)
        await anext(result)
        result.abort()
        reasons = [step.outputs[0].finish_reason async for step in result]
        assert reasons[-1] == "cancelled" and result.aborted()
        assert result.outputs[0].length < 200


async def test_cancelling_the_reader_does_not_abort(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, iteration_ms=SLOW_MS) as load:
        llm = load(engine_dir, **LIMITS)
        result = llm.generate_async(PROMPT, params(max_tokens=6))
        reader = asyncio.ensure_future(result.aresult())
        await asyncio.sleep(0)
        reader.cancel()
        assert (await result.aresult()).outputs[0].length == 6


async def test_batch_does_not_change_an_answer(llm: Any) -> None:
    alone = [await steps(llm, [prompt], max_tokens=9) for prompt in range(5, 13)]
    together = await asyncio.gather(
        *(steps(llm, [prompt], max_tokens=9) for prompt in range(5, 13))
    )
    assert list(together) == alone
    assert max(item["numActiveRequests"] for item in llm.get_stats(0)) <= LIMITS["max_batch_size"]


async def test_requests_wait_for_room_in_the_cache(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, assumptions={"small_cache_lowers_max_seq_len": False}) as load:
        from tensorrt_llm.llmapi import KvCacheConfig

        llm = load(engine_dir, kv_cache_config=KvCacheConfig(max_tokens=64), **LIMITS)
        answers = await asyncio.gather(*(steps(llm, [9], max_tokens=40) for _ in range(3)))
        assert [answer[-1][1] for answer in answers] == ["length"] * 3
        stats = llm.get_stats(0)
        assert max(item["numActiveRequests"] for item in stats) == 1
        assert {item["kvCacheStats"]["maxNumBlocks"] for item in stats} == {2}
        with pytest.raises(RuntimeError, match="maxTokensInPagedKvCache must be large enough"):
            ids(llm, max_tokens=100)


def test_cache_that_holds_no_full_sequence_lowers_the_limit(load: Loader, engine_dir: Path) -> None:
    from tensorrt_llm.llmapi import KvCacheConfig

    llm = load(engine_dir, kv_cache_config=KvCacheConfig(max_tokens=64), **LIMITS)
    assert len(ids(llm, [9], max_tokens=40)) == 32  # one block and one token, less the prompt


def test_statistics_have_the_recorded_keys_and_are_handed_out_once(llm: Any) -> None:
    ids(llm, max_tokens=4)
    stats = llm.get_stats(0)
    keys = recorded("statistics")
    assert len(stats) == 4 and list(stats[0]) == keys["iteration"]
    for part in ("kvCacheStats", "inflightBatchingStats"):
        assert list(stats[0][part]) == keys[part]
    assert stats[0]["kvCacheStats"]["usedNumBlocks"] == 1
    assert stats[-1]["kvCacheStats"]["usedNumBlocks"] == 0
    assert llm.get_stats(0) == []


async def test_statistics_keep_the_default_number_of_iterations_whatever_is_asked(
    load: Loader, engine_dir: Path
) -> None:
    llm = load(engine_dir, iter_stats_max_iterations=3, **LIMITS)
    await steps(llm, max_tokens=9)
    assert [item["iter"] async for item in llm.get_stats_async(0)] == list(range(9))


async def test_statistics_of_an_executor_in_the_process_fail_in_an_event_loop(
    load: Loader, engine_dir: Path
) -> None:
    llm = load(engine_dir, gather_generation_logits=True, **LIMITS)
    await steps(llm, max_tokens=2)
    with pytest.raises(TypeError, match="JSON object must be"):
        llm.get_stats(0)


def test_executor_in_the_process_has_no_statistics(load: Loader, engine_dir: Path) -> None:
    llm = load(engine_dir, gather_generation_logits=True, **LIMITS)
    ids(llm, max_tokens=2)
    assert llm.get_stats(0) == []


async def test_error_of_a_grammar_ends_all_that_runs(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, iteration_ms=SLOW_MS) as load:
        from tensorrt_llm.executor.utils import RequestError
        from tensorrt_llm.llmapi import GuidedDecodingParams

        llm = load(engine_dir, guided_decoding_backend="xgrammar", **LIMITS)
        running = llm.generate_async(PROMPT, params(max_tokens=200), streaming=True)
        await anext(running)
        wrong = GuidedDecodingParams(grammar=REFUSED_MARK)
        for result in (llm.generate_async(PROMPT, params(guided_decoding=wrong)), running):
            with pytest.raises(RequestError, match="forwardAsync.*EBNF parser error"):
                await result
        assert await steps(llm, max_tokens=2)


async def test_broken_gpu_fails_each_request_and_the_executor_goes_on(
    double_root: Path, engine_dir: Path
) -> None:
    with loader_on(double_root, sticky_fault_token=FAULT_TOKEN) as load:
        from tensorrt_llm.executor.utils import RequestError

        llm = load(engine_dir, **LIMITS)
        for prompt in ([FAULT_TOKEN], PROMPT, PROMPT):
            with pytest.raises(RequestError, match="illegal memory access"):
                await llm.generate_async(prompt, params())
        assert llm._check_health()


async def test_worker_that_dies_tells_no_request(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, worker_death_token=FAULT_TOKEN) as load:
        llm = load(engine_dir, **LIMITS)
        unanswered = llm.generate_async([FAULT_TOKEN], params())
        llm._executor._thread.join()
        assert llm._check_health() and not unanswered.finished
        assert all(future.done() for future in llm._executor.mpi_futures)
        with pytest.raises(RuntimeError, match="Failed during generation"):
            llm.generate_async(PROMPT, params())
        assert not llm._check_health()


async def test_output_that_cannot_be_read_goes_on_until_it_is_aborted(
    double_root: Path, engine_dir: Path
) -> None:
    with loader_on(double_root, bad_output_token=FAULT_TOKEN, iteration_ms=SLOW_MS) as load:
        llm = load(engine_dir, **LIMITS)
        result = llm.generate_async([FAULT_TOKEN], params(max_tokens=100), streaming=True)
        for _ in range(2):
            with pytest.raises(ValueError, match="Unknown finish reason"):
                await anext(result)
        result.abort()
        while not result.finished:
            with suppress(ValueError):
                await anext(result)
        assert result.outputs[0].finish_reason == "cancelled"


async def test_fault_of_a_request_harms_no_other(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, request_fault_token=FAULT_TOKEN) as load:
        from tensorrt_llm.executor.utils import RequestError

        llm = load(engine_dir, **LIMITS)
        good = llm.generate_async(PROMPT, params(max_tokens=20))
        with pytest.raises(RequestError):
            await llm.generate_async([FAULT_TOKEN], params())
        assert (await good).outputs[0].length == 20


async def test_fault_of_the_executor_ends_everything(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, executor_fault_token=FAULT_TOKEN, iteration_ms=SLOW_MS) as load:
        from tensorrt_llm.executor import CppExecutorError

        llm = load(engine_dir, **LIMITS)
        running = llm.generate_async(PROMPT, params(max_tokens=200))
        for result in (llm.generate_async([FAULT_TOKEN], params()), running):
            with pytest.raises(CppExecutorError):
                await result
        llm._executor._thread.join()
        with pytest.raises(RuntimeError, match="LLM is shutting down"):
            llm.generate_async(PROMPT, params())


def test_shutdown_is_final_and_can_be_repeated(llm: Any) -> None:
    with llm:
        ids(llm, max_tokens=2)
    llm.shutdown()
    with pytest.raises(RuntimeError, match="LLM is shutting down"):
        llm.generate_async(PROMPT, params())


# What the record leaves open can be turned


def test_unseeded_requests_differ_when_assumed(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, assumptions={"unseeded_requests_repeat": False}) as load:
        llm = load(engine_dir, **LIMITS)
        assert ids(llm, temperature=1.0) != ids(llm, temperature=1.0)


async def test_last_abort_leaves_a_record_when_assumed(double_root: Path, engine_dir: Path) -> None:
    for writes in (False, True):
        assumed = {"idle_executor_writes_statistics": writes}
        with loader_on(double_root, assumptions=assumed, iteration_ms=SLOW_MS) as load:
            llm = load(engine_dir, **LIMITS)
            result = llm.generate_async(PROMPT, params(max_tokens=200), streaming=True)
            await anext(result)
            result.abort()
            await result
            llm._executor.shutdown()
            used = llm._executor.take_stats(0)[-1]["kvCacheStats"]["usedNumBlocks"]
            assert used == int(not writes)
