"""The engine process and its client, over a real socket, with the simulated backend."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest

from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import (
    BackendError,
    ContextLengthExceeded,
    EngineLoading,
    EngineUnavailable,
    InvalidValue,
    QueueFull,
    ShuttingDown,
)
from deepinfer.generation import FinishReason
from deepinfer.runtime.client import EngineClient
from tests.engines import EOS, make_simulated_engine
from tests.runtime.running import collect, pid_of, raises_soon, request, running, until

SLOW_STEP_US = 20_000


async def test_tokens_arrive_in_order_and_end_with_eos(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        answer = await collect(client, request("a"))
        assert answer["a"].token_ids == (5, 6, 7, EOS)
        assert answer["a"].finish_reason is FinishReason.STOP


async def test_idle_client_closes_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as client:
        await collect(client, request("a"))
        await client.close(timeout_s=0)
    assert "in time" not in caplog.text


async def test_requests_of_one_call_run_together(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        many = [request(str(i), (i + 2,) * (i + 1)) for i in range(20)]
        answers = await collect(client, *many)
        assert {int(name): len(answer.token_ids) for name, answer in answers.items()} == {
            i: min(i + 2, 16) for i in range(20)
        }


async def test_generate_before_the_engine_is_ready_is_refused(tmp_path: Path) -> None:
    client = EngineClient(make_simulated_engine(tmp_path), EngineOptions())
    try:
        error = await raises_soon(EngineLoading, collect(client, request("a")))
        assert "loading" in str(error)
    finally:
        await client.close(timeout_s=0)


async def test_every_life_of_an_engine_has_the_limit_that_it_is_served_with(
    tmp_path: Path,
) -> None:
    """Asked by a client that knows only what the engine was built for."""

    async def check(client: EngineClient) -> None:
        assert client.capacity == Capacity(8, num_blocks=8 * 4, tokens_per_block=32)
        error = await raises_soon(InvalidValue, collect(client, request("long", (5,), 100)))
        assert "exceed the engine's 100" in str(error)
        assert (await collect(client, request("short", (5,), 99)))["short"].token_ids

    options = EngineOptions(max_seq_len=100)
    async with running(tmp_path, options, max_seq_len=512, max_batch_size=8) as client:
        await check(client)
        pid = pid_of(client)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: client.num_ready == 2)
        await check(client)


async def test_engine_that_cannot_have_the_limit_does_not_start(tmp_path: Path) -> None:
    client = EngineClient(make_simulated_engine(tmp_path), EngineOptions(max_seq_len=513))
    await client.start()
    try:
        await raises_soon(BackendError, client.wait_ready())
    finally:
        await client.close(timeout_s=0)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "kind"),
    [
        ((), 5, InvalidValue),
        ((512,), 5, InvalidValue),
        ((-1,), 5, InvalidValue),
        ((5,), 512, InvalidValue),
    ],
    ids=["no prompt", "outside the vocabulary", "negative", "beyond the sequence length"],
)
async def test_bad_request_is_refused_and_the_next_one_served(
    tmp_path: Path, prompt: tuple[int, ...], max_tokens: int, kind: type[Exception]
) -> None:
    async with running(tmp_path) as client:
        await raises_soon(kind, collect(client, request("bad", prompt, max_tokens)))
        assert (await collect(client, request("good")))["good"].token_ids == (5, 6, 7, EOS)


async def test_request_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"num_blocks": 2}) as client:
        error = await raises_soon(ContextLengthExceeded, collect(client, request("a", (5,), 64)))
        assert "64 tokens" in str(error)
        assert (await collect(client, request("b", (5,), 63)))["b"].token_ids == (5, EOS)


async def test_full_queue_refuses_all_requests_of_a_call(tmp_path: Path) -> None:
    options = EngineOptions(max_waiting=2)
    async with running(tmp_path, options) as client:
        error = await raises_soon(
            QueueFull, collect(client, request("a"), request("b"), request("c"))
        )
        assert isinstance(error, QueueFull) and error.retry_after_s is not None
        assert set(await collect(client, request("a"), request("b"))) == {"a", "b"}


async def test_waiting_requests_run_when_a_slot_is_free(tmp_path: Path) -> None:
    async with running(tmp_path, max_batch_size=1) as client:
        answers = await collect(client, *(request(str(i)) for i in range(5)))
        assert [answers[str(i)].token_ids for i in range(5)] == [(5, 6, 7, EOS)] * 5


async def test_closing_the_stream_frees_its_slot(tmp_path: Path) -> None:
    settings = {"step_us": SLOW_STEP_US}
    async with running(tmp_path, settings=settings, max_batch_size=1) as client:
        endless = client.generate([request("a", max_tokens=500, ignore_eos=True)])
        await anext(endless)
        assert client.load.num_running == 1
        await endless.aclose()
        await until(lambda: client.load.num_running == 0 and client.load.num_used_blocks == 0)
        assert (await collect(client, request("b")))["b"].finish_reason is FinishReason.STOP


async def test_one_of_several_sequences_can_be_cancelled(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"step_us": SLOW_STEP_US}) as client:
        endless, short = request("a", max_tokens=500, ignore_eos=True), request("b")
        stream = client.generate([endless, short])
        await anext(stream)
        client.cancel(["a", "nobody"])
        reasons = {
            chunk.request_id: chunk.finish_reason
            async for chunks in stream
            for chunk in chunks
            if chunk.finish_reason
        }
        assert reasons == {"a": FinishReason.CANCELLED, "b": FinishReason.STOP}
        await until(lambda: client.load.num_running == 0 and client.load.num_used_blocks == 0)


async def test_cancelled_while_waiting_never_runs(tmp_path: Path) -> None:
    settings = {"step_us": SLOW_STEP_US}
    async with running(tmp_path, settings=settings, max_batch_size=1) as client:
        endless = client.generate([request("a", max_tokens=500, ignore_eos=True)])
        await anext(endless)
        waiting = asyncio.create_task(collect(client, request("b")))
        await until(lambda: client.load.num_waiting == 1)
        waiting.cancel()
        await until(lambda: client.load.num_waiting == 0)
        assert client.load.num_running == 1
        await endless.aclose()


async def test_failed_step_without_resuming_ends_requests(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=0)
    async with running(tmp_path, options, settings={"fault_token_id": 13}) as client:
        await raises_soon(EngineUnavailable, collect(client, request("a", (13,))))
        await until(lambda: client.status.is_ready)
        assert (await collect(client, request("b")))["b"].finish_reason is FinishReason.STOP


async def test_close_lets_running_requests_finish(tmp_path: Path) -> None:
    async with running(tmp_path, settings={"step_us": 1000}) as client:
        answer = asyncio.create_task(collect(client, request("a", max_tokens=50, ignore_eos=True)))
        await until(lambda: client.num_in_flight == 1)
        closing = asyncio.create_task(client.close(timeout_s=20))
        await asyncio.sleep(0)
        await raises_soon(ShuttingDown, collect(client, request("b")))
        assert len((await answer)["a"].token_ids) == 50
        await closing
        assert pid_of(client) is None


async def test_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    engine = make_simulated_engine(tmp_path)
    record = engine.manifest.backend.model_copy(update={"name": "openvino"})
    manifest = engine.manifest.model_copy(update={"backend": record})
    (tmp_path / "engine.json").write_text(manifest.model_dump_json())
    client = EngineClient(engine, EngineOptions())
    await client.start()
    try:
        error = await raises_soon(BackendError, client.wait_ready())
        assert isinstance(error, BackendError) and error.message
        assert client.status.phase == "failed"
    finally:
        await client.close(timeout_s=0)


async def test_socket_is_private(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        directory = client.supervisor.socket_path.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert not directory.exists()


async def test_idle_engine_costs_no_cpu(tmp_path: Path) -> None:
    async with running(tmp_path) as client:
        await collect(client, request("a"))
        before = _cpu_ticks(pid_of(client))
        await asyncio.sleep(0.5)  # the time that the claim is about, not a synchronisation
        assert _cpu_ticks(pid_of(client)) - before <= 1


def _cpu_ticks(pid: int | None) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])  # utime and stime, in hundredths of a second
