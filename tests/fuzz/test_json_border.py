"""Whatever bytes a client sends as a body: a model that is right, or an error of the client's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from deepinfer.config import ServerSection
from deepinfer.errors import RequestError
from deepinfer.server.body import read_json
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages_api.body import MessagesBody
from deepinfer.server.responses_api.body import ResponsesBody
from deepinfer.server.schema_base import Schema
from deepinfer.server.schemas import CompletionBody
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody

always = settings(derandomize=True, deadline=None, max_examples=100)
SCHEMAS = (CompletionBody, ChatBody, MessagesBody, ResponsesBody, TokenizeBody, DetokenizeBody)
EVERY_SCHEMA = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
WORDS = ("role", "user", "content", "type", "text", "function", "name", "auto", "json_schema")
GOOD: dict[type[Schema], dict[str, Any]] = {
    CompletionBody: {"prompt": ["a", "é"], "n": 2, "logit_bias": {"1": -1.5}, "stop": ["x"]},
    ChatBody: {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    MessagesBody: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    ResponsesBody: {"input": [{"role": "user", "content": "hi"}], "text": {}},
    TokenizeBody: {"prompt": "hi"},
    DetokenizeBody: {"tokens": [1, 2, 3]},
}

words = st.sampled_from(WORDS) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=15,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


async def read(schema: type[Schema], body: bytes) -> Schema:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": []}
    return await read_json(Request(scope, receive), schema, limits=ServerSection())


def assert_read_or_refused(runner: asyncio.Runner, schema: type[Schema], body: bytes) -> None:
    try:
        found = runner.run(read(schema, body))
    except RequestError as error:
        assert 400 <= error.status < 500
        assert len(error.message) < 1000
        error.message.encode()
    else:
        assert isinstance(found, schema)


@EVERY_SCHEMA
@always
@given(data=st.data())
def test_known_fields_with_any_values(
    runner: asyncio.Runner, schema: type[Schema], data: st.DataObject
) -> None:
    names = st.sampled_from(sorted({*schema.model_fields, *schema.refused}))
    fields = data.draw(st.dictionaries(names, values, max_size=4))
    body = json.dumps({**GOOD[schema], **fields}).encode()
    assert_read_or_refused(runner, schema, body)


@EVERY_SCHEMA
@always
@given(
    changes=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=3),
    length=st.integers(0, 999),
)
def test_good_bodies_with_a_few_bytes_changed_or_cut(
    runner: asyncio.Runner, schema: type[Schema], changes: list[tuple[int, int]], length: int
) -> None:
    body = bytearray(json.dumps(GOOD[schema], ensure_ascii=False).encode())
    for place, byte in changes:
        body[place % len(body)] = byte
    assert_read_or_refused(runner, schema, bytes(body[: length % len(body) or None]))


@EVERY_SCHEMA
@always
@given(body=st.binary(max_size=60))
def test_bytes(runner: asyncio.Runner, schema: type[Schema], body: bytes) -> None:
    assert_read_or_refused(runner, schema, body)


@EVERY_SCHEMA
def test_good_bodies_are_good(runner: asyncio.Runner, schema: type[Schema]) -> None:
    assert isinstance(runner.run(read(schema, json.dumps(GOOD[schema]).encode())), schema)
