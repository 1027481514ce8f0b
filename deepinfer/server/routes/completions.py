"""POST /v1/completions: text or token ids, one prompt or many, continued."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.errors import RequestError
from deepinfer.server.answers import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    Usage,
)
from deepinfer.server.best_of import choose_best
from deepinfer.server.body import read_json
from deepinfer.server.engines import ServedEngine
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.ids import new_completion_id
from deepinfer.server.json import json_response, json_response_with_log_probs
from deepinfer.server.log_probs import encode_completion
from deepinfer.server.openapi import (
    GENERATING_ROUTE,
    describe_answer,
    describe_body,
    describe_errors,
)
from deepinfer.server.prepare import prepare_completion
from deepinfer.server.record import record_of
from deepinfer.server.schemas import CompletionBody
from deepinfer.server.sse import CompletionEvents, error_event
from deepinfer.server.state import ServerState

RESPONSES = {**describe_answer(Completion, CompletionChunk), **describe_errors(GENERATING_ROUTE)}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/completions", responses=RESPONSES, openapi_extra=describe_body(CompletionBody)
    )
    async def create_completion(request: Request) -> Response:
        """Continue a prompt."""
        state.check_open()
        limits = state.config.server
        body = await read_json(request, CompletionBody, limits=limits)
        engine = state.engines.find(body.model)
        id_, created = new_completion_id(), int(time.time())
        plan = await prepare_completion(engine, body, id_)
        generation = Generation(engine, plan, record_of(request.scope))
        if body.stream:
            events = CompletionEvents(
                id_,
                created,
                engine.model_id,
                with_usage=body.includes_usage,
                is_continuous=body.has_continuous_usage,
            )
            return await open_stream(
                generation, _Writer(generation, events), limits.first_byte_timeout_s
            )
        return await _collect(generation, engine, body, id_, created)

    return router


@dataclass(frozen=True)
class _Writer:
    """The events of one completion; an EventWriter."""

    generation: Generation
    events: CompletionEvents

    def write(self, deltas: list[Delta]) -> bytes:
        events = self.events
        if events.is_continuous:
            events.count(self.generation.usage)
        rendered = [events.delta(d.index, d.text, d.finish_reason, d.tokens) for d in deltas]
        return rendered[0] if len(rendered) == 1 else b"".join(rendered)

    def end(self) -> bytes:
        return self.events.end(self.generation.usage)

    def fail(self, error: RequestError) -> bytes:
        return error_event(error)


async def _collect(
    generation: Generation, engine: ServedEngine, body: CompletionBody, id_: str, created: int
) -> Response:
    answers = await generation.collect()
    if body.num_candidates > body.n:
        answers = choose_best(answers, body.n, body.num_candidates)
    completion = Completion(
        id=id_,
        created=created,
        model=engine.model_id,
        choices=[
            CompletionChoice(
                index=index,
                text=answer.text,
                finish_reason=answer.finish_reason,
            )
            for index, answer in enumerate(answers)
        ],
        usage=Usage.of(generation.usage),
    )
    if body.logprobs is None:
        return json_response(completion)
    log_probs = [await encode_completion(a.tokens) if a.tokens else None for a in answers]
    return json_response_with_log_probs(completion, log_probs)
