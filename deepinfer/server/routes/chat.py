"""POST /v1/chat/completions: a conversation, answered."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.server.body import read_json
from deepinfer.server.engines import ServedEngine
from deepinfer.server.generate import Generation
from deepinfer.server.ids import new_chat_id
from deepinfer.server.json import json_response
from deepinfer.server.log_probs import as_chat
from deepinfer.server.openapi import (
    GENERATING_ROUTE,
    describe_answer,
    describe_body,
    describe_errors,
)
from deepinfer.server.prepare import prepare_chat
from deepinfer.server.record import record_of
from deepinfer.server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogProbs,
    Usage,
)
from deepinfer.server.schemas import ChatBody
from deepinfer.server.sse import ChatEvents, open_stream
from deepinfer.server.state import ServerState

RESPONSES = {**describe_answer(ChatCompletion, "ChatChunk"), **describe_errors(GENERATING_ROUTE)}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=RESPONSES, openapi_extra=describe_body(ChatBody))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        state.check_open()
        max_bytes = state.config.server.max_body_bytes
        body = await read_json(request, ChatBody, max_bytes=max_bytes)
        engine = state.engines.find(body.model)
        id_, created = new_chat_id(), int(time.time())
        plan = await prepare_chat(engine, body, id_)
        generation = Generation(engine, plan, record_of(request.scope))
        if body.stream:
            events = ChatEvents(id_, created, engine.model_id, with_usage=body.includes_usage)
            return await open_stream(_stream(generation, events))
        return json_response(await _collect(generation, engine, id_, created))

    return router


async def _stream(generation: Generation, events: ChatEvents) -> AsyncGenerator[bytes, None]:
    # The roles come first, and not before the engine has taken the request.
    head = b"".join([events.role(index) for index in range(generation.num_choices)])
    async with aclosing(generation.deltas()) as stream:
        async for deltas in stream:
            yield head + b"".join(
                [events.delta(d.index, d.text, d.finish_reason, d.tokens) for d in deltas]
            )
            head = b""
    yield events.end(generation.usage)


async def _collect(
    generation: Generation, engine: ServedEngine, id_: str, created: int
) -> ChatCompletion:
    answers = await generation.collect()
    return ChatCompletion(
        id=id_,
        created=created,
        model=engine.model_id,
        choices=[
            ChatChoice(
                index=index,
                message=AssistantMessage(content=answer.text),
                logprobs=ChatLogProbs(**as_chat(answer.tokens)) if answer.tokens else None,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(generation.usage),
    )
