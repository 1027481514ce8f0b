"""POST /tokenize and /detokenize: what a prompt is in tokens, and the way back. No engine runs."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.server.answers import Detokenized, Tokenized
from deepinfer.server.body import read_json
from deepinfer.server.engines import ServedEngine
from deepinfer.server.json import json_response
from deepinfer.server.openapi import TOKENIZING_ROUTE, describe_body, describe_errors
from deepinfer.server.prepare import check_token_ids, tokenize_chat_body, tokenize_prompts
from deepinfer.server.schemas import TokenIds
from deepinfer.server.state import ServerState
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody

ERRORS = describe_errors(TOKENIZING_ROUTE)
# Above so many tokens the text is made in a thread, so that the event loop goes on.
INLINE_TOKENS = 4_096


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()
    limits = state.config.server

    @router.post(
        "/tokenize",
        responses={200: {"model": Tokenized}, **ERRORS},
        openapi_extra=describe_body(TokenizeBody),
    )
    async def tokenize(request: Request) -> Response:
        """The tokens of a text or a conversation, as a generating route would read it."""
        state.check_open()
        body = await read_json(request, TokenizeBody, limits=limits)
        engine = state.engines.find(body.model)
        tokens = await _tokenize(engine, body)
        max_model_len = engine.manifest.limits.max_seq_len
        return json_response(
            Tokenized(count=len(tokens), max_model_len=max_model_len, tokens=list(tokens))
        )

    @router.post(
        "/detokenize",
        responses={200: {"model": Detokenized}, **ERRORS},
        openapi_extra=describe_body(DetokenizeBody),
    )
    async def detokenize(request: Request) -> Response:
        """The text of some tokens, special ones included."""
        state.check_open()
        body = await read_json(request, DetokenizeBody, limits=limits)
        engine = state.engines.find(body.model)
        check_token_ids(engine, body.tokens, "tokens")
        return json_response(Detokenized(prompt=await _spell_out(engine, body.tokens)))

    return router


async def _tokenize(engine: ServedEngine, body: TokenizeBody) -> TokenIds:
    if body.messages:
        return await tokenize_chat_body(engine, body.chat)
    assert body.prompt is not None, "the schema has seen to it"
    with_special = body.add_special_tokens is not False
    [tokens] = await tokenize_prompts(engine, [body.prompt], add_special_tokens=with_special)
    return tokens


async def _spell_out(engine: ServedEngine, tokens: list[int]) -> str:
    def decode() -> str:
        detokenizer = engine.tokenizer.detokenizer(shown=engine.tokenizer.special_token_ids)
        return detokenizer.push(tokens) + detokenizer.finish()

    return decode() if len(tokens) <= INLINE_TOKENS else await asyncio.to_thread(decode)
