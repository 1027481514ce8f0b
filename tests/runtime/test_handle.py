"""Chunks of a call, received by a task or poured into a sink as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from deepinfer.errors import EngineUnavailable
from deepinfer.generation import TokenChunk
from deepinfer.runtime.handle import GenerationHandle
from tests.runtime.running import raises_soon


def step(call: GenerationHandle, *tokens: int) -> None:
    """One engine step, with a chunk a token."""
    for token in tokens:
        call.deliver(TokenChunk("r", (token,)))
    call.flush()


def tokens_of(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


class Collector:
    """A sink that keeps what it is given, and wants no more after some pieces."""

    def __init__(self, max_pieces: int = 100, then: Callable[[], None] | None = None) -> None:
        self.pieces: list[list[int]] = []
        self._max_pieces = max_pieces
        self._then = then

    def __call__(self, chunks: list[TokenChunk]) -> bool:
        self.pieces.append(tokens_of(chunks))
        if self._then is not None:
            then, self._then = self._then, None
            then()
        return len(self.pieces) < self._max_pieces


async def pouring(
    call: GenerationHandle, sink: Callable[[list[TokenChunk]], bool]
) -> asyncio.Task[None]:
    """A task that has begun to push."""
    task = asyncio.create_task(call.push(sink))
    await asyncio.sleep(0)
    return task


async def test_sink_has_the_chunks_of_a_step_before_anybody_else_runs() -> None:
    call, sink = GenerationHandle(), Collector(max_pieces=2)
    task = await pouring(call, sink)
    step(call, 1, 2)
    assert sink.pieces == [[1, 2]]
    step(call, 3)
    assert sink.pieces == [[1, 2], [3]]
    await asyncio.wait_for(task, 1)


async def test_what_came_before_is_poured_first() -> None:
    call, sink = GenerationHandle(), Collector(max_pieces=1)
    step(call, 1)
    step(call, 2)
    await asyncio.wait_for(call.push(sink), 1)
    assert sink.pieces == [[1, 2]]


async def test_what_comes_while_nobody_pours_is_one_piece_for_the_next() -> None:
    call = GenerationHandle()
    task = await pouring(call, Collector(max_pieces=1))
    for token in range(4):
        step(call, token)
    await asyncio.wait_for(task, 1)
    assert tokens_of(await call.receive()) == [1, 2, 3]


async def test_chunks_that_a_sink_itself_brings_about_come_after_the_others() -> None:
    call = GenerationHandle()
    sink = Collector(max_pieces=2, then=lambda: step(call, 9))
    task = await pouring(call, sink)
    step(call, 1)
    assert sink.pieces == [[1], [9]]
    await asyncio.wait_for(task, 1)


async def test_error_of_a_sink_is_the_pouring_task_s_and_no_one_else_s() -> None:
    call = GenerationHandle()

    def fail(chunks: list[TokenChunk]) -> bool:
        raise ValueError("not a token")

    task = await pouring(call, fail)
    step(call, 1)  # in the callback that serves every other call as well
    with pytest.raises(ValueError, match="not a token"):
        await asyncio.wait_for(task, 1)


@pytest.mark.parametrize("is_early", [True, False], ids=["before it pours", "while it pours"])
async def test_failure_ends_the_pouring_after_the_chunks_before_it(is_early: bool) -> None:
    call, sink = GenerationHandle(), Collector()
    error = EngineUnavailable("It ended")
    if is_early:
        step(call, 1)
        call.fail(error)
    task = await pouring(call, sink)
    if not is_early:
        step(call, 1)
        call.fail(error)
    await raises_soon(EngineUnavailable, task)
    assert sink.pieces == [[1]]


async def test_failure_waits_for_a_sink_that_has_to_be_done_with_its_chunks_first() -> None:
    call, sink = GenerationHandle(), Collector(max_pieces=1)
    task = await pouring(call, sink)
    step(call, 1)
    call.fail(EngineUnavailable("It ended"))
    await asyncio.wait_for(task, 1)
    assert sink.pieces == [[1]]
    await raises_soon(EngineUnavailable, call.push(Collector()))


async def test_cancelled_pouring_takes_no_more() -> None:
    call, sink = GenerationHandle(), Collector()
    task = await pouring(call, sink)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    step(call, 1)
    assert sink.pieces == []
    assert tokens_of(await call.receive()) == [1]
