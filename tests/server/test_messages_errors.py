"""Every mistake that a client of /v1/messages can make, in the envelope that its SDK reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from deepinfer.server.messages_api.answer import MessagesErrorBody
from deepinfer.server.messages_api.errors import TYPES
from tests.server.messaging import WEATHER, assistant, messages_client, user
from tests.server.serving import (
    CONTEXT_LENGTH,
    MODEL_ID,
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
)

INVALID, UNSUPPORTED = (400, "invalid_value"), (400, "unsupported_parameter")
MISSING, TOO_LONG = (400, "missing_required_parameter"), (400, "context_length_exceeded")
TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/x.png"}}
DOCUMENT = {"type": "document", "source": {"type": "text", "data": "x"}}
CALL = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "1"}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search"}
CLEARING = {"type": "clear_tool_uses_20250919"}
KEY = "a-key-of-some-length"

Case = tuple[dict[str, Any], tuple[int, str], str | None]


def content(*blocks: Any) -> dict[str, Any]:
    return {"messages": [user(list(blocks))]}


def edits(*some: Any) -> dict[str, Any]:
    return {"context_management": {"edits": list(some)}}


CASES: dict[str, Case] = {
    "no messages": ({"messages": ...}, MISSING, "messages"),
    "messages empty": ({"messages": []}, INVALID, "messages"),
    "too many messages": ({"messages": [user("x")] * 10_001}, INVALID, "messages"),
    "no max_tokens": ({"max_tokens": ...}, MISSING, "max_tokens"),
    "max_tokens -1": ({"max_tokens": -1}, INVALID, "max_tokens"),  # a number by the reference
    "max_tokens text": ({"max_tokens": "5"}, INVALID, "max_tokens"),
    "another role": ({"messages": [{"role": "tool", "content": "x"}]}, INVALID, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, MISSING, "messages[0].content"),
    "content null": ({"messages": [user(None)]}, INVALID, "messages[0].content"),
    "content empty": ({"messages": [user([])]}, INVALID, "messages[0].content"),
    "content number": ({"messages": [user(5)]}, INVALID, "messages[0].content"),
    "block string": (content("x"), INVALID, "messages[0].content[0]"),
    "block without text": (content({"type": "text"}), INVALID, "messages[0].content[0].text"),
    "image": (content(TEXT, IMAGE), UNSUPPORTED, "messages[0].content[1].type"),
    "document": (content(DOCUMENT), UNSUPPORTED, "messages[0].content[0].type"),
    "call in a result": (
        content({**RESULT, "content": [CALL]}),
        UNSUPPORTED,
        "messages[0].content[0].content[0].type",
    ),
    "reference without a tool": (
        content({**RESULT, "content": [{"type": "tool_reference"}]}),
        INVALID,
        "messages[0].content[0].content[0].tool_name",
    ),
    "call of a user": (content(CALL), INVALID, "messages[0].content[0]"),
    "result of an assistant": (
        {"messages": [assistant([RESULT]), user("x")]},
        INVALID,
        "messages[0].content[0]",
    ),
    "input string": (
        {"messages": [assistant([{**CALL, "input": "{}"}]), user("x")]},
        INVALID,
        "messages[0].content[0].input",
    ),
    "is_error text": (
        content({**RESULT, "is_error": "yes"}),
        INVALID,
        "messages[0].content[0].is_error",
    ),
    "call without a result": (
        {"messages": [user("x"), assistant([TEXT, CALL])]},
        INVALID,
        "messages[1].content[1]",
    ),
    "too many blocks": (content(*[TEXT] * 10_001), INVALID, "messages[0].content"),
    "system number": ({"system": 5}, INVALID, "system"),
    "system image": ({"system": [IMAGE]}, UNSUPPORTED, "system[0].type"),
    "prompt too long": ({"messages": [user("x " * CONTEXT_LENGTH)]}, TOO_LONG, "messages"),
    "temperature": ({"temperature": 2.5}, INVALID, "temperature"),
    "top_p": ({"top_p": 1.5}, INVALID, "top_p"),
    "top_k": ({"top_k": -2}, INVALID, "top_k"),
    "stream text": ({"stream": "yes"}, INVALID, "stream"),
    "stop string": ({"stop_sequences": "x"}, INVALID, "stop_sequences"),
    "stop null": ({"stop_sequences": ["x", None]}, INVALID, "stop_sequences"),
    "stop long": ({"stop_sequences": ["x" * 1_001]}, INVALID, "stop_sequences[0]"),
    "stop too many": ({"stop_sequences": ["x"] * 65}, INVALID, "stop_sequences"),
    "stop too much": ({"stop_sequences": ["x" * 1_000] * 9}, INVALID, "stop_sequences"),
    "tool without schema": ({"tools": [{"name": "f"}]}, MISSING, "tools[0].input_schema"),
    "tool name": ({"tools": [{**WEATHER, "name": "a b"}]}, INVALID, "tools[0].name"),
    "too many tools": ({"tools": [WEATHER] * 129}, INVALID, "tools"),
    "tool of another route": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        UNSUPPORTED,
        "tools[0].type",
    ),
    "caller of a tool": (
        {"tools": [{**WEATHER, "allowed_callers": ["code_execution_20250825"]}]},
        UNSUPPORTED,
        "tools[0].allowed_callers",
    ),
    "examples of a tool": (
        {"tools": [{**WEATHER, "input_examples": ["x"]}]},
        INVALID,
        "tools[0].input_examples[0]",
    ),
    "any of tools that are not served": (
        {"tools": [WEATHER, WEB_SEARCH], "tool_choice": {"type": "any"}},
        UNSUPPORTED,
        "tools[1].type",
    ),
    "choice of a tool that is not served": (
        {"tools": [WEB_SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
        UNSUPPORTED,
        "tools[0].type",
    ),
    "any of no tools": ({"tool_choice": {"type": "any"}}, INVALID, "tool_choice"),
    "choice string": ({"tool_choice": "any"}, INVALID, "tool_choice"),
    "choice type": ({"tool_choice": {"type": "required"}}, INVALID, "tool_choice.type"),
    "choice without name": (
        {"tools": [WEATHER], "tool_choice": {"type": "tool"}},
        MISSING,
        "tool_choice.name",
    ),
    "choice of another tool": (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "gone"}},
        INVALID,
        "tool_choice.name",
    ),
    "thinking string": ({"thinking": "enabled"}, INVALID, "thinking"),
    "thinking type": ({"thinking": {"type": "between_tools"}}, UNSUPPORTED, "thinking.type"),
    "no budget": ({"thinking": {"type": "enabled"}}, MISSING, "thinking.budget_tokens"),
    "effort": ({"output_config": {"effort": "huge"}}, INVALID, "output_config.effort"),
    "format type": (
        {"output_config": {"format": {"type": "regex"}}},
        UNSUPPORTED,
        "output_config.format.type",
    ),
    "no schema": (
        {"output_config": {"format": {"type": "json_schema"}}},
        INVALID,
        "output_config.format.schema",
    ),
    "schema keyword": (
        {"output_format": {"type": "json_schema", "schema": {"not": {}}}},
        INVALID,
        "output_format.schema.not",
    ),
    "two formats": (
        {"output_format": SCHEMA, "output_config": {"format": SCHEMA}},
        INVALID,
        "output_format",
    ),
    "container": ({"container": "c"}, UNSUPPORTED, "container"),
    "mcp_servers": ({"mcp_servers": [{"url": "x"}]}, UNSUPPORTED, "mcp_servers"),
    "context_management": ({"context_management": []}, INVALID, "context_management"),
    "edit without type": (edits({}), INVALID, "context_management.edits[0]"),
    "edit unknown": (
        edits({"type": "clear_all"}),
        UNSUPPORTED,
        "context_management.edits[0].type",
    ),
    "edit with a trigger of text": (
        edits({**CLEARING, "trigger": "now"}),
        INVALID,
        "context_management.edits[0].trigger",
    ),
    "edit with another trigger": (
        edits({**CLEARING, "trigger": {"type": "days", "value": 1}}),
        UNSUPPORTED,
        "context_management.edits[0].trigger.type",
    ),
    "edit that keeps less than nothing": (
        edits({**CLEARING, "keep": {"type": "tool_uses", "value": -1}}),
        INVALID,
        "context_management.edits[0].keep.value",
    ),
    "edit that keeps some thoughts": (
        edits({"type": "clear_thinking_20251015", "keep": "some"}),
        INVALID,
        "context_management.edits[0].keep",
    ),
    "compaction that is due": (
        edits(
            {"type": "clear_thinking_20251015", "keep": "all"},
            {"type": "compact_20260112", "trigger": {"type": "input_tokens", "value": 1}},
        ),
        UNSUPPORTED,
        "context_management.edits[1].type",
    ),
    "compaction": ({"compaction": {"type": "enabled"}}, UNSUPPORTED, "compaction"),
    "speed": ({"speed": "fast"}, UNSUPPORTED, "speed"),
    "another model": ({"model": "gone"}, (404, "model_not_found"), "model"),
}


def make_body(fields: dict[str, Any]) -> dict[str, Any]:
    body = {"model": MODEL_ID, "max_tokens": 5, "messages": [user("x")]} | fields
    return {key: value for key, value in body.items() if value is not ...}


def assert_envelope(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    MessagesErrorBody.model_validate(body, strict=True)
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    assert body["error"]["type"] == TYPES.get(status, "invalid_request_error")
    assert body["error"]["details"] == {"error_code": code}
    assert (
        param is None
        or f"`{param.split('[')[0].split('.')[0]}" in body["detail"]
        or (code == "context_length_exceeded" or status == 404 or param == "tools")
    )
    assert body["request_id"] == response.headers["request-id"]
    assert response.headers["x-request-id"] == response.headers["request-id"]


@pytest.mark.parametrize(("fields", "expected", "param"), CASES.values(), ids=CASES)
def test_mistake_is_named(
    http: httpx.Client, fields: dict[str, Any], expected: tuple[int, str], param: str | None
) -> None:
    assert_envelope(http.post("/v1/messages", json=make_body(fields)), *expected, param)


def test_what_asks_for_nothing_is_accepted(http: httpx.Client) -> None:
    fields = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "container": None,
        "mcp_servers": [],
        "context_management": {"edits": []},
        "fallbacks": [{"model": "another"}],
        "thinking": None,
        "tools": [],
        "system": None,
        "stop_sequences": None,
        "betas": ["unknown"],
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-beta"}
    response = http.post("/v1/messages?beta=true", json=make_body(fields), headers=headers)
    assert response.status_code == 200, response.text


BAD_BODIES = {
    "not JSON": (b"{", "application/json", 400, "invalid_json"),
    "array": (b"[]", "application/json", 400, "invalid_json"),
    "form": (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(("data", "kind", "status", "code"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_body_that_is_none(
    http: httpx.Client, path: str, data: bytes, kind: str, status: int, code: str
) -> None:
    response = http.post(path, content=data, headers={"content-type": kind})
    assert_envelope(response, status, code, None)


def test_errors_of_the_framework_have_the_envelope(http: httpx.Client) -> None:
    assert_envelope(http.get("/v1/messages"), 405, "method_not_allowed", None)
    assert_envelope(http.post("/v1/messages/batches", json={}), 404, "not_found", None)


def test_errors_of_other_routes_are_as_they_were(http: httpx.Client) -> None:
    for path in ("/v1/completions", "/v1/messages-of-another-kind"):
        response = http.post(path, json={})
        assert set(response.json()) == {"error", "detail"}
        assert "request-id" not in response.headers


def test_model_that_is_not_there_has_the_envelope_of_its_client(http: httpx.Client) -> None:
    headers = {"anthropic-version": "2023-06-01"}
    response = http.get("/v1/models/gone", headers=headers)
    assert_envelope(response, 404, "model_not_found", "model")


def test_sdk_raises_what_it_should(server: ServerProcess) -> None:
    with messages_client(server) as client:
        with pytest.raises(anthropic.BadRequestError) as bad:
            client.messages.create(**make_body({"extra_body": {"temperature": 3}}))
        with pytest.raises(anthropic.NotFoundError) as gone:
            client.messages.create(**make_body({"model": "gone"}))
        with pytest.raises(anthropic.BadRequestError):
            client.messages.count_tokens(model=MODEL_ID, messages=[])
    assert (bad.value.type, bad.value.error_code) == ("invalid_request_error", "invalid_value")
    assert (gone.value.type, gone.value.error_code) == ("not_found_error", "model_not_found")
    assert gone.value.request_id is not None


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("locked")
    make_echo_engine(folder / "echo")
    (folder / "keys.txt").write_text(f"{KEY}\n")
    with serving(folder / "echo", "--api-key-file", str(folder / "keys.txt")) as server:
        yield server


@pytest.mark.parametrize("options", [{"api_key": KEY}, {"auth_token": KEY}])
def test_sdk_sends_a_key_in_either_way(locked: ServerProcess, options: dict[str, str]) -> None:
    with messages_client(locked, **options) as client:
        assert client.messages.create(**make_body({})).role == "assistant"


def test_wrong_key_is_refused(locked: ServerProcess) -> None:
    with messages_client(locked, api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            client.messages.create(**make_body({}))
    assert (refused.value.type, refused.value.error_code) == (
        "authentication_error",
        "invalid_api_key",
    )
    with client_of(locked) as http:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = http.post(path, json={})
            assert_envelope(response, 401, "invalid_api_key", None)
            assert "`x-api-key: <key>`" in response.json()["detail"]


def test_body_that_is_too_large(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with serving(tmp_path, "--max-body-bytes", "1024") as server, client_of(server) as http:
        response = http.post("/v1/messages", json=make_body({"system": "x" * 1024}))
        assert_envelope(response, 413, "content_too_large", None)
