"""An engine that dies, hangs or stumbles under its requests: they go on, and nothing is told twice.

The engine counts: each token is the one after the token before it. So an answer that was taken up
again is right if it has no gap and no repetition.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineUnavailable, RequestAbandoned
from deepinfer.generation import Grammar
from deepinfer.runtime.client import EngineClient
from tests.runtime.running import collect, pid_of, raises_soon, request, running, until

VOCAB = 512
STEP_US = 5_000
COUNTING = {"counts": True, "step_us": STEP_US}
POISON = 400


def counted(last: int, num_tokens: int) -> tuple[int, ...]:
    return tuple((last + 1 + i) % VOCAB for i in range(num_tokens))


def kill(client: EngineClient, number: signal.Signals = signal.SIGKILL) -> None:
    pid = pid_of(client)
    assert pid is not None
    os.kill(pid, number)


def is_running(client: EngineClient) -> bool:
    """Whether a request runs, though its first step may take for ever."""
    return any(resumable.is_admitted for resumable in client._dispatcher._in_flight.dispatched)


async def test_running_and_waiting_requests_outlive_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING, max_batch_size=2) as client:
        asked = [request(str(i), (i, i + 1), 100, ignore_eos=True) for i in range(5)]
        answers = asyncio.create_task(collect(client, *asked))
        await until(lambda: client.load.num_running == 2)
        for restarts in (1, 2):
            kill(client)
            await until(lambda restarts=restarts: client.num_restarts == restarts)  # type: ignore[misc]
            await until(lambda: client.load.num_running == 2)
        joined = await answers
        assert {name: chunk.token_ids for name, chunk in joined.items()} == {
            str(i): counted(i + 1, 100) for i in range(5)
        }
        assert client.num_resumed == 4
        await until(lambda: client.load.num_used_blocks == 0)


@pytest.mark.parametrize(
    "sampling",
    [
        {"grammar": Grammar("regex", "a")},
        {"frequency_penalty": 0.5},
        {"num_log_probs": 2, "with_prompt_log_probs": True},
        {"min_tokens": 30, "temperature": 1.0},
    ],
    ids=["grammar", "penalty", "log probabilities", "sampled"],
)
async def test_each_token_comes_once(tmp_path: Path, sampling: dict[str, object]) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        asked = request("a", (3, 4), 60, ignore_eos=True, **sampling)
        stream = client.generate([asked])
        chunks = await anext(stream)
        kill(client)
        chunks += [chunk async for more in stream for chunk in more]
        assert [i for chunk in chunks for i in chunk.token_ids] == list(counted(4, 60))
        scored = [score for chunk in chunks for score in chunk.log_probs]
        assert len(scored) == (60 if "num_log_probs" in sampling else 0)
        assert sum(bool(chunk.prompt_log_probs) for chunk in chunks) == (
            1 if "with_prompt_log_probs" in sampling else 0
        )
        assert client.num_restarts == 1


async def test_request_that_kills_the_engine_is_tried_alone_twice_and_others_go_on(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, settings={**COUNTING, "fault_token_id": POISON}) as client:
        long = asyncio.create_task(collect(client, request("a", (1,), 300, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        # They begin in the same step as the request that kills, and are as suspect at first.
        begun = [
            asyncio.create_task(collect(client, request(str(i), (i,), 20, ignore_eos=True)))
            for i in range(3)
        ]
        error = await raises_soon(RequestAbandoned, collect(client, request("bad", (POISON,))))
        assert "not tried again" in str(error)
        for i, task in enumerate(begun):
            assert (await task)[str(i)].token_ids == counted(i, 20)
        assert (await long)["a"].token_ids == counted(1, 300)
        # Beside all others, beside those that were seen to live, and twice alone.
        assert client.num_restarts == 4


async def test_resume_attempts_bound_the_deaths_in_a_row_without_a_token(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=1)
    silent = {**COUNTING, "step_us": 60_000_000}
    async with running(tmp_path, options, settings=silent) as client:
        # Two, so that neither runs alone.
        asked = [request(name, (1,), 400, ignore_eos=True) for name in "ab"]
        answer = asyncio.create_task(collect(client, *asked))
        for restarts in (0, 1):
            await until(lambda n=restarts: client.num_restarts == n and is_running(client))  # type: ignore[misc]
            kill(client)
        await raises_soon(RequestAbandoned, answer)


async def test_deaths_with_tokens_between_them_end_nothing(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=1)
    async with running(tmp_path, options, settings=COUNTING) as client:
        stream = client.generate([request("a", (1,), 400, ignore_eos=True)])
        tokens: list[int] = []
        for _ in range(4):
            for chunk in await anext(stream):
                tokens += chunk.token_ids
            kill(client)
        tokens += [i async for chunks in stream for chunk in chunks for i in chunk.token_ids]
        assert tuple(tokens) == counted(1, 400)


async def test_new_requests_wait_for_the_engine_that_is_started_again(tmp_path: Path) -> None:
    async with running(tmp_path, settings={**COUNTING, "load_ms": 300}) as client:
        pid = pid_of(client)
        kill(client)
        await until(lambda: not client.status.is_ready)
        answers = await collect(client, *(request(str(i), (i + 5,), 5) for i in range(4)))
        assert {name: chunk.token_ids for name, chunk in answers.items()} == {
            str(i): counted(i + 5, 5) for i in range(4)
        }
        assert pid_of(client) != pid
        assert client.num_resumed == 0


async def test_new_requests_wait_for_no_engine_that_cannot_be_started(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        (tmp_path / "engine.json").unlink()
        kill(client)
        await until(lambda: not client.status.is_ready)
        error = await raises_soon(EngineUnavailable, collect(client, request("a")))
        assert "cannot be started again" in str(error)
        assert client.status.phase == "failed" and client.status.message
        await raises_soon(EngineUnavailable, collect(client, request("b")))


async def test_stopped_engine_is_replaced(tmp_path: Path) -> None:
    options = EngineOptions(hang_timeout_s=0.5)
    async with running(tmp_path, options, settings=COUNTING) as client:
        answer = asyncio.create_task(collect(client, request("a", (1,), 50, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        kill(client, signal.SIGSTOP)
        assert (await answer)["a"].token_ids == counted(1, 50)
        assert client.num_restarts == 1


async def test_stumbling_backend_takes_its_requests_again_without_a_restart(
    tmp_path: Path,
) -> None:
    settings = {**COUNTING, "stumble_token_id": POISON}
    async with running(tmp_path, settings=settings) as client:
        long = asyncio.create_task(collect(client, request("a", (1,), 60, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        other = await collect(client, request("b", (POISON,), 10, ignore_eos=True))
        assert other["b"].token_ids == counted(POISON, 10)
        assert (await long)["a"].token_ids == counted(1, 60)
        assert client.num_restarts == 0
        assert client.num_resumed == 2


async def test_drain_waits_for_requests_that_are_resumed(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        answer = asyncio.create_task(collect(client, request("a", (1,), 60, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        closing = asyncio.create_task(client.close(timeout_s=20))
        kill(client)
        assert (await answer)["a"].token_ids == counted(1, 60)
        await closing


async def test_cancelled_between_two_lives_never_runs_again(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        stream = client.generate([request("a", (1,), 400, ignore_eos=True)])
        await anext(stream)
        kill(client)
        await until(lambda: not client.status.is_ready)
        await stream.aclose()
        await until(lambda: client.status.is_ready)
        assert (await collect(client, request("b", (1,), 3, ignore_eos=True)))[
            "b"
        ].token_ids == counted(1, 3)
        assert client.load.num_running == 0
        assert client.num_resumed == 0


async def test_engine_that_does_not_come_back_ends_its_requests(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=1)
    async with running(tmp_path, options, settings=COUNTING) as client:
        answer = asyncio.create_task(collect(client, request("a", (1,), 400, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        (tmp_path / "engine.json").rename(tmp_path / "gone.json")
        kill(client)
        error = await raises_soon(EngineUnavailable, answer)
        assert "cannot be started again" in str(error)
