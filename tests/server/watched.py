"""The application on an engine that does, and says of itself, whatever a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx

from deepinfer.config import ServeConfig
from deepinfer.engine import READY, Capacity, EngineStatus, Load
from deepinfer.errors import RequestError
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.manifest import EngineManifest
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.handle import DEFAULT_OPTIONS, GenerationHandle, GenerationOptions
from deepinfer.server.app import create_app
from deepinfer.server.engines import EngineCatalog, ServedEngine
from deepinfer.server.names import EngineNames
from deepinfer.server.state import ServerState
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from tests.server.serving import make_echo_engine

Chunks = AsyncGenerator[list[TokenChunk], None]
Generate = Callable[..., Chunks]

A, B, C = 70, 71, 72  # tokens with text


async def answer_in_three(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
    """Every sequence has three tokens, one a wake-up; the queue is left before the first."""
    if terms is not None and terms.on_admitted is not None:
        terms.on_admitted()
    for token_id, reason in ((A, None), (B, None), (C, FinishReason.LENGTH)):
        yield [TokenChunk(request.request_id, (token_id,), reason) for request in requests]


class GeneratingCalls:
    """Hands out calls as an engine client does, with the chunks of a generator of its own."""

    generate: Generate

    @contextmanager
    def submit(
        self, requests: Sequence[GenerationRequest], terms: GenerationOptions = DEFAULT_OPTIONS
    ) -> Iterator[GenerationHandle]:
        call = GenerationHandle(terms)
        task = asyncio.create_task(self._carry_out(call, requests))
        try:
            yield call
        finally:
            task.cancel()

    async def _carry_out(
        self, call: GenerationHandle, requests: Sequence[GenerationRequest]
    ) -> None:
        try:
            async with aclosing(self.generate(requests, call.options)) as steps:
                async for chunks in steps:
                    for chunk in chunks:
                        call.deliver(chunk)
                    call.flush()
                    await asyncio.sleep(0)  # whoever waits reads it before the next step
        except Exception as error:
            call.fail(cast(RequestError, error))  # or what nobody has foreseen


@dataclass
class WatchedClient(GeneratingCalls):
    """What the server reads of an engine client."""

    manifest: EngineManifest
    generate: Generate
    status: EngineStatus = EngineStatus(READY, 100)
    load: Load = Load()
    capacity: Capacity | None = None
    num_restarts: int = 0
    num_resumed: int = 0
    cancelled: list[str] = field(default_factory=list)

    def cancel(self, request_ids: Sequence[str]) -> None:
        self.cancelled += request_ids


def make_state(
    folder: Path, generate: Generate = answer_in_three, **state: Any
) -> tuple[ServerState, WatchedClient]:
    engine = make_echo_engine(folder)
    client = WatchedClient(engine.manifest, generate)
    served = ServedEngine(
        cast(EngineClient, client),
        Tokenizer.load(engine.tokenizer_dir),
        ChatTemplate.load(engine.tokenizer_dir),
        EngineNames((engine.manifest.model.id,)),
    )
    settings = {"config": ServeConfig(), **state}
    return ServerState(
        engines=EngineCatalog([served]), read_gpus=lambda: (), gpus=(), **settings
    ), client


@asynccontextmanager
async def client_for(state: ServerState) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
