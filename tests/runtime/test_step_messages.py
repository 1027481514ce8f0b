"""What a stream costs the client of an engine process: messages per step, memory after its end."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from deepinfer.runtime import wire
from deepinfer.runtime.client import EngineClient
from tests.runtime.running import collect, request, running

NUM_STREAMS = 16
STEP_US = 2_000
NUM_TOKENS = 100
MAX_BLOCKS_PER_TOKEN = 0.25  # of Python's allocator; a kept token id or event takes more than one


async def run_streams(client: EngineClient, num_streams: int, num_tokens: int) -> None:
    # Ids below 2 have a meaning of their own, and the engine repeats the prompt.
    requests = [
        request(str(index), (5,), num_tokens, min_tokens=num_tokens, ignore_eos=True)
        for index in range(num_streams)
    ]
    answers = await collect(client, *requests)
    assert {len(answer.token_ids) for answer in answers.values()} == {num_tokens}


async def test_an_engine_step_is_one_message_whatever_the_number_of_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = wire.decode_from_engine
    steps: list[wire.Step] = []

    def count_steps(body: bytes) -> wire.FromEngine:
        message = decode(body)
        if isinstance(message, wire.Step):
            steps.append(message)
        return message

    monkeypatch.setattr(wire, "decode_from_engine", count_steps)
    async with running(
        tmp_path, max_batch_size=NUM_STREAMS, max_seq_len=512, settings={"step_us": STEP_US}
    ) as client:
        await run_streams(client, NUM_STREAMS, NUM_TOKENS)
    # A message for each stream would be 16 times as many. Admission may take a few steps more.
    assert 0 < len(steps) < 2 * NUM_TOKENS


async def test_no_memory_is_kept_of_a_stream_that_ended(tmp_path: Path) -> None:
    async def blocks_after(client: EngineClient, num_tokens: int) -> int:
        await run_streams(client, NUM_STREAMS, num_tokens)
        gc.collect()
        return sys.getallocatedblocks()

    async with running(tmp_path, max_batch_size=NUM_STREAMS, max_seq_len=2048) as client:
        await blocks_after(client, NUM_TOKENS)  # what the first requests leave behind
        before = await blocks_after(client, NUM_TOKENS)
        after = await blocks_after(client, 10 * NUM_TOKENS)
    assert (after - before) / (NUM_STREAMS * 10 * NUM_TOKENS) < MAX_BLOCKS_PER_TOKEN
