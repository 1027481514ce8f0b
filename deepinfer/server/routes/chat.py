"""POST /v1/chat/completions: a conversation, answered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.errors import RequestError
from deepinfer.generation import FinishReason
from deepinfer.server.answers import (
    AssistantMessage,
    CalledFunction,
    CallOfTool,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatFinishReason,
    ReadMessage,
    Usage,
)
from deepinfer.server.body import read_json
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.chat_reader import ChatPart, ChatReader, make_readers
from deepinfer.server.engines import ServedEngine
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Answer, Delta, Generation
from deepinfer.server.ids import new_chat_id
from deepinfer.server.json import json_response, json_response_with_log_probs
from deepinfer.server.log_probs import encode_chat
from deepinfer.server.openapi import (
    GENERATING_ROUTE,
    describe_answer,
    describe_body,
    describe_errors,
)
from deepinfer.server.prepare import prepare_chat
from deepinfer.server.record import record_of
from deepinfer.server.sse import ChatEvents, error_event
from deepinfer.server.state import ServerState

RESPONSES = {**describe_answer(ChatCompletion, ChatChunk), **describe_errors(GENERATING_ROUTE)}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=RESPONSES, openapi_extra=describe_body(ChatBody))
    async def create_chat_completion(request: Request) -> Response:
        """Answer a conversation."""
        state.check_open()
        limits = state.config.server
        body = await read_json(request, ChatBody, limits=limits)
        engine = state.engines.find(body.model)
        id_, created = new_chat_id(), int(time.time())
        plan = await prepare_chat(engine, body, id_)
        readers = make_readers(engine, body, plan)
        generation = Generation(engine, plan, record_of(request.scope))
        if body.stream:
            events = ChatEvents(
                id_,
                created,
                engine.model_id,
                with_usage=body.includes_usage,
                is_continuous=body.has_continuous_usage,
            )
            return await open_stream(
                generation, _Writer(generation, events, readers), limits.first_byte_timeout_s
            )
        return await _collect(generation, engine, id_, created, readers)

    return router


@dataclass
class _Writer:
    """The events of one chat; an EventWriter."""

    generation: Generation
    events: ChatEvents
    readers: Sequence[ChatReader] | None
    _has_begun: bool = field(default=False, init=False)

    def write(self, deltas: list[Delta]) -> bytes:
        if self.events.is_continuous:
            self.events.count(self.generation.usage)
        rendered = [self._render(delta) for delta in deltas]
        if not self._has_begun:
            # The roles come first, and not before the engine has taken the request.
            self._has_begun = True
            rendered[:0] = [self.events.role(i) for i in range(self.generation.num_choices)]
        return rendered[0] if len(rendered) == 1 else b"".join(rendered)

    def end(self) -> bytes:
        return self.events.end(self.generation.usage)

    def fail(self, error: RequestError) -> bytes:
        return error_event(error)

    def _render(self, delta: Delta) -> bytes:
        events, is_over = self.events, delta.finish_reason is not None
        if self.readers is None:
            return events.delta(delta.index, delta.text, delta.finish_reason, delta.tokens)
        reader = self.readers[delta.index]
        is_cut = delta.finish_reason == FinishReason.LENGTH
        part = reader.feed(delta.text, is_over=is_over, is_cut=is_cut)
        event = events.part(delta.index, part, delta.tokens)
        if delta.finish_reason is None:
            return event
        return event + events.finish(delta.index, _finish_reason(delta.finish_reason, reader))


async def _collect(
    generation: Generation,
    engine: ServedEngine,
    id_: str,
    created: int,
    readers: Sequence[ChatReader] | None,
) -> Response:
    answers = await generation.collect()
    completion = ChatCompletion(
        id=id_,
        created=created,
        model=engine.model_id,
        choices=[
            _choice(index, answer, None if readers is None else readers[index])
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(generation.usage),
    )
    if not any(answer.tokens for answer in answers):
        return json_response(completion)
    log_probs = [await encode_chat(a.tokens) if a.tokens else None for a in answers]
    return json_response_with_log_probs(completion, log_probs)


def _choice(index: int, answer: Answer, reader: ChatReader | None) -> ChatChoice:
    message: AssistantMessage = AssistantMessage(content=answer.text)
    reason: ChatFinishReason = answer.finish_reason
    if reader is not None:
        is_cut = answer.finish_reason == "length"
        part = reader.feed(answer.text, is_over=True, is_cut=is_cut)
        reason = _finish_reason(answer.finish_reason, reader)
        message = _message(part, reader)
    return ChatChoice(index=index, message=message, finish_reason=reason)


def _message(part: ChatPart, reader: ChatReader) -> ReadMessage:
    calls = [
        CallOfTool(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))
        for call in reader.written_calls
    ]
    return ReadMessage(
        content=part.content or (None if calls else ""),
        reasoning_content=part.reasoning or None,
        tool_calls=calls or None,
    )


def _finish_reason(reason: str, reader: ChatReader) -> ChatFinishReason:
    if reason == "length":
        return "length"
    return "tool_calls" if reader.calls else "stop"
