"""Several clients of one engine, of which one process keeps it alive."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineUnavailable, InternalError
from deepinfer.generation import FinishReason
from deepinfer.runtime import wire
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.distant import DistantKeeper
from deepinfer.runtime.gate import SuspectGate
from deepinfer.runtime.keeper import EngineKeeper
from deepinfer.runtime.lives import Lives
from tests.engines import make_simulated_engine
from tests.runtime.running import collect, pid_of, raises_soon, request, running, until
from tests.runtime.test_resume import COUNTING, POISON, counted


@asynccontextmanager
async def sharing(
    owner: EngineClient, options: EngineOptions | None = None
) -> AsyncIterator[EngineClient]:
    """Another client of the same engine, told of its lives as one in another process is."""
    assert isinstance(owner.keeper, EngineKeeper)
    keeper = DistantKeeper(owner.keeper.socket_path, owner.keeper.lives)
    owner.keeper.listeners.append(keeper.tell)
    gate = SuspectGate(owner.engine.path / "gate")
    client = EngineClient(owner.engine, options or EngineOptions(), keeper, gate)
    await client.start()
    try:
        yield client
    finally:
        await client.close(timeout_s=0)


async def test_both_are_served_and_know_the_load(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as owner, sharing(owner) as other:
        await other.wait_ready()
        stream = owner.generate([request("a", max_tokens=500, ignore_eos=True)])
        await anext(stream)
        assert (await collect(other, request("b", (1,), 5, ignore_eos=True)))["b"].token_ids == (
            counted(1, 5)
        )
        await until(lambda: other.load.num_running == 1)
        await stream.aclose()
        await until(lambda: other.load.num_running == owner.load.num_running == 0)


async def test_keeper_sees_tokens_that_go_to_others(tmp_path: Path) -> None:
    """Or it would take an engine that works for others only for one that hangs."""
    async with running(tmp_path, settings=COUNTING) as owner, sharing(owner) as other:
        await other.wait_ready()
        await collect(other, request("a", (1,), 5, ignore_eos=True))
        owner.ping()
        await until(lambda: owner.num_chunks == 5)


async def test_nobody_ends_or_takes_over_the_requests_of_another(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as owner, sharing(owner) as other:
        await other.wait_ready()
        stream = owner.generate([request("a", (1,), 60, ignore_eos=True)])
        chunks = await anext(stream)
        await raises_soon(InternalError, collect(other, request("a")))
        other.send(wire.Cancel(("a",)))
        chunks += [chunk async for more in stream for chunk in more]
        assert [i for chunk in chunks for i in chunk.token_ids] == list(counted(1, 60))
        assert chunks[-1].finish_reason is FinishReason.LENGTH


async def test_streams_of_both_outlive_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as owner, sharing(owner) as other:
        await other.wait_ready()
        answers = [
            asyncio.create_task(collect(client, request("ab"[i], (i,), 200, ignore_eos=True)))
            for i, client in enumerate((owner, other))
        ]
        await until(lambda: other.load.num_running == 2)
        pid = pid_of(owner)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for i, answer in enumerate(answers):
            assert (await answer)["ab"[i]].token_ids == counted(i, 200)
        assert (other.num_restarts, other.num_resumed, owner.num_resumed) == (1, 1, 1)


async def test_killer_in_one_process_costs_the_others_nothing(tmp_path: Path) -> None:
    settings = {**COUNTING, "fault_token_id": POISON}
    async with running(tmp_path, settings=settings) as owner, sharing(owner) as other:
        await other.wait_ready()
        long = asyncio.create_task(collect(owner, request("a", (1,), 300, ignore_eos=True)))
        await until(lambda: other.load.num_running == 1)
        bad = collect(other, request("bad", (POISON,)))
        assert "died 2 times" in str(await raises_soon(EngineUnavailable, bad))
        assert (await long)["a"].token_ids == counted(1, 300)


async def test_engine_that_is_given_up_is_given_up_by_all(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=1)
    async with (
        running(tmp_path, options, settings=COUNTING) as owner,
        sharing(owner, options) as other,
    ):
        await other.wait_ready()
        answer = asyncio.create_task(collect(other, request("a", (1,), 400, ignore_eos=True)))
        await until(lambda: other.load.num_running == 1)
        (tmp_path / "engine.json").rename(tmp_path / "gone.json")
        pid = pid_of(owner)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        error = await raises_soon(EngineUnavailable, answer)
        assert "cannot be started again" in str(error)
        # Whoever comes now is told the same as those that saw it die.
        async with sharing(owner, options) as late:
            assert late.status.phase == "failed"
            await raises_soon(EngineUnavailable, collect(late, request("b")))


async def test_engine_that_never_came_up_is_no_secret(tmp_path: Path) -> None:
    failure = wire.Failed("it does not fit", "make it smaller")
    keeper = DistantKeeper(tmp_path / "none.sock", Lives(1, failure=failure, num_failed=1))
    client = EngineClient(make_simulated_engine(tmp_path), EngineOptions(), keeper)
    client.on_lives(keeper.lives)
    assert client.status.phase == "failed"
    refused = await raises_soon(EngineUnavailable, collect(client, request("a")))
    assert "it does not fit" in str(refused)
