"""Engine processes and their clients, for the tests of what lies between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deepinfer.engine import EngineOptions
from deepinfer.generation import GenerationRequest, SamplingParams, TokenChunk
from deepinfer.manifest import EngineFolder
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.handle import DEFAULT_OPTIONS, GenerationOptions
from deepinfer.runtime.supervisor import EngineSupervisor
from tests.engines import make_simulated_engine

DEADLINE_S = 60.0


def request(
    name: str, prompt: tuple[int, ...] = (5, 6, 7), max_tokens: int = 16, **sampling: object
) -> GenerationRequest:
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
    )


@asynccontextmanager
async def running(
    folder: Path, options: EngineOptions | None = None, **engine: object
) -> AsyncIterator[EngineClient]:
    made = make_simulated_engine(folder, **engine)  # type: ignore[arg-type]
    async with connected(made, options or EngineOptions()) as client:
        yield client


@asynccontextmanager
async def connected(engine: EngineFolder, options: EngineOptions) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine, options)
    await client.start()
    try:
        await asyncio.wait_for(client.wait_ready(), DEADLINE_S)
        yield client
    finally:
        await client.close(timeout_s=0)


def pid_of(client: EngineClient) -> int | None:
    """The process id of a client's own engine."""
    assert isinstance(client.supervisor, EngineSupervisor)
    return client.supervisor.pid


async def collect(
    client: EngineClient, *requests: GenerationRequest, terms: GenerationOptions = DEFAULT_OPTIONS
) -> dict[str, TokenChunk]:
    """Each request's chunks joined into one."""
    joined: dict[str, TokenChunk] = {}
    async for chunks in client.generate(requests, terms):
        for chunk in chunks:
            before = joined.get(chunk.request_id)
            token_ids = (before.token_ids if before else ()) + chunk.token_ids
            joined[chunk.request_id] = TokenChunk(
                chunk.request_id, token_ids, chunk.finish_reason, chunk.message
            )
    return joined


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until `condition` holds; fail the test when it never does."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def raises_soon(kind: type[Exception], call: Awaitable[object]) -> Exception:
    with pytest.raises(kind) as caught:
        await asyncio.wait_for(call, DEADLINE_S)  # type: ignore[arg-type]
    return caught.value
