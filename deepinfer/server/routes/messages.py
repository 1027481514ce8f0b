"""POST /v1/messages and /v1/messages/count_tokens: a conversation in Anthropic's terms."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.server.body import read_json
from deepinfer.server.event_stream import open_stream
from deepinfer.server.json import json_response
from deepinfer.server.messages_api.answer import (
    MESSAGE_EVENTS,
    ManagedTokenCount,
    Message,
    MessagesErrorBody,
    OriginalTokenCount,
    TokenCount,
)
from deepinfer.server.messages_api.body import MessagesBody, PromptBody
from deepinfer.server.messages_api.clearing import clear_prompt
from deepinfer.server.messages_api.clearing import count_tokens as count_prompt_tokens
from deepinfer.server.messages_api.conversation import PARAM_NAMES
from deepinfer.server.messages_api.run import prepare_message
from deepinfer.server.openapi import (
    GENERATING_ROUTE,
    TOKENIZING_ROUTE,
    describe_body,
    describe_errors,
    describe_named_events,
)
from deepinfer.server.param_names import renaming_params
from deepinfer.server.record import record_of
from deepinfer.server.state import ServerState

STREAM = describe_named_events(MESSAGE_EVENTS, MessagesErrorBody)
ANSWER: dict[str, Any] = {
    "model": Message,
    "description": "The answer; with `stream: true` as server-sent events",
    "content": {"text/event-stream": {"schema": STREAM}},
}
CREATE_RESPONSES = {200: ANSWER, **describe_errors(GENERATING_ROUTE, MessagesErrorBody)}
COUNT_RESPONSES = {
    200: {"model": TokenCount},
    **describe_errors(TOKENIZING_ROUTE, MessagesErrorBody),
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()
    limits = state.config.server

    @router.post(
        "/v1/messages", responses=CREATE_RESPONSES, openapi_extra=describe_body(MessagesBody)
    )
    async def create_message(request: Request) -> Response:
        """Answer a conversation."""
        state.check_open()
        body = await read_json(request, MessagesBody, limits=limits)
        engine = state.engines.find(body.model)
        run = await prepare_message(engine, body, record_of(request.scope))
        if body.stream:
            return await open_stream(run.generation, run, limits.first_byte_timeout_s)
        return json_response(await run.collect())

    @router.post(
        "/v1/messages/count_tokens",
        responses=COUNT_RESPONSES,
        openapi_extra=describe_body(PromptBody),
    )
    async def count_tokens(request: Request) -> Response:
        """The tokens of a conversation, as `/v1/messages` would count them. No engine runs."""
        state.check_open()
        body = await read_json(request, PromptBody, limits=limits)
        engine = state.engines.find(body.model)
        with renaming_params(PARAM_NAMES):
            cleared = await clear_prompt(engine, body)
            count = await count_prompt_tokens(engine, cleared.body)
            if body.context_management is None:
                return json_response(TokenCount(input_tokens=count))
            original = await count_prompt_tokens(engine, body) if cleared.applied else count
        management = OriginalTokenCount(original_input_tokens=original)
        return json_response(ManagedTokenCount(input_tokens=count, context_management=management))

    return router
