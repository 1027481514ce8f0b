"""Every mistake in a request for a response: status, code, and the field by its own name."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from deepinfer.server import refused
from tests.server.serving import CONTEXT_LENGTH, MODEL_ID
from tests.server.test_bad_requests import (
    INVALID,
    MISSING,
    TOO_LONG,
    UNSUPPORTED,
    Case,
    assert_error,
    assert_serves,
)
from tests.server.test_responses import PATH

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "name": "f"}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "x"}


def content(*parts: Any) -> dict[str, Any]:
    return {"input": [{**USER, "content": list(parts)}]}


def text_format(**fields: Any) -> dict[str, Any]:
    return {"input": "hi", "text": {"format": fields}}


def one_item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


def also(**fields: Any) -> dict[str, Any]:
    return {"input": "hi", **fields}


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": list(tools)}


NOT_FOUND = (404, "not_found")
ENCRYPTED = UNSUPPORTED, "input[0].encrypted_content"
WEB_SEARCH = {"type": "web_search"}
NAMESPACE = {"type": "namespace", "name": "n", "description": "d"}
LARK = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
IMAGE = {"type": "input_image", "image_url": "http://127.0.0.1/x.png"}
CASES: list[Case] = [
    ("no input", {}, MISSING, "input"),
    ("input number", {"input": 5}, INVALID, "input"),
    ("input object", {"input": USER}, INVALID, "input"),
    ("no items", {"input": []}, INVALID, "input"),
    ("too many items", {"input": [USER] * 10_001}, INVALID, "input"),
    ("item string", {"input": ["hi"]}, INVALID, "input[0]"),
    ("item without role", {"input": [USER, {"content": "x"}]}, MISSING, "input[1].role"),
    ("item without content", one_item(role="user"), MISSING, "input[0].content"),
    ("role unknown", one_item(role="tool", content="x"), INVALID, "input[0].role"),
    ("reference", one_item(type="item_reference", id="x"), NOT_FOUND, "input[0].id"),
    ("reference without type", one_item(id="x"), NOT_FOUND, "input[0].id"),
    ("compaction of others", one_item(type="compaction", encrypted_content="x"), *ENCRYPTED),
    ("status", {"input": [{**CALL, "status": "done"}]}, INVALID, "input[0].status"),
    ("kind unknown", one_item(type="web_search_call"), UNSUPPORTED, "input[0].type"),
    ("kind number", one_item(type=5), INVALID, "input[0].type"),
    ("call without id", {"input": [{**CALL, "call_id": None}]}, INVALID, "input[0].call_id"),
    ("call id long", {"input": [{**CALL, "call_id": "x" * 257}]}, INVALID, "input[0].call_id"),
    ("arguments number", {"input": [{**CALL, "arguments": 5}]}, INVALID, "input[0].arguments"),
    ("result number", {"input": [{**RESULT, "output": 1}]}, INVALID, "input[0].output"),
    (
        "result of another kind",
        {"input": [{**RESULT, "output": [{"type": "computer_screenshot"}]}]},
        UNSUPPORTED,
        "input[0].output[0].type",
    ),
    ("no content of a user", one_item(role="user", content=None), INVALID, "input[0].content"),
    ("no parts", content(), INVALID, "input[0].content"),
    ("part number", content(1), INVALID, "input[0].content[0]"),
    ("image", content(IMAGE), UNSUPPORTED, "input[0].content[0].type"),
    ("file", content({"type": "input_file"}), UNSUPPORTED, "input[0].content[0].type"),
    (
        "part without text",
        content({"type": "input_text", "text": "x"}, {"type": "input_text"}),
        INVALID,
        "input[0].content[1].text",
    ),
    ("too long", {"input": "x " * CONTEXT_LENGTH}, TOO_LONG, "input"),
    ("no room", also(max_output_tokens=CONTEXT_LENGTH), TOO_LONG, "input"),
    ("no tokens", also(max_output_tokens=0), INVALID, "max_output_tokens"),
    ("more than there may be", also(min_tokens=9, max_output_tokens=3), INVALID, "min_tokens"),
    ("temperature", also(temperature=3), INVALID, "temperature"),
    ("stream text", also(stream="yes"), INVALID, "stream"),
    ("store number", also(store=1), INVALID, "store"),
    ("tool without type", also(tools=[{"name": "f"}]), MISSING, "tools[0].type"),
    (
        "hosted tool required",
        also(tools=[TOOL, {"type": "web_search"}], tool_choice="required"),
        UNSUPPORTED,
        "tools[1].type",
    ),
    (
        "hosted tool allowed and required",
        also(tools=[TOOL, {"type": "web_search"}], tool_choice=allowed("required", WEB_SEARCH)),
        UNSUPPORTED,
        "tool_choice.tools[0].type",
    ),
    (
        "custom tool with a grammar required",
        also(tools=[{"type": "custom", "name": "c", "format": LARK}], tool_choice="required"),
        UNSUPPORTED,
        "tools[0].format.syntax",
    ),
    ("namespace without tools", also(tools=[NAMESPACE]), MISSING, "tools[0].tools"),
    (
        "tool in a namespace",
        also(tools=[{**NAMESPACE, "tools": [{**TOOL, "name": "a b"}]}]),
        INVALID,
        "tools[0].tools[0].name",
    ),
    (
        "too many tools in namespaces",
        also(
            tools=[{**NAMESPACE, "name": f"n{n}", "tools": [TOOL] * 100} for n in range(2)],
        ),
        INVALID,
        "tools",
    ),
    ("tool without name", also(tools=[{"type": "function"}]), MISSING, "tools[0].name"),
    ("tool name", also(tools=[{**TOOL, "name": "a b"}]), INVALID, "tools[0].name"),
    ("too many tools", also(tools=[TOOL] * 129), INVALID, "tools"),
    ("tool async", also(tools=[{**TOOL, "async": True}]), UNSUPPORTED, "tools[0].async"),
    ("choice without tools", also(tool_choice="required"), INVALID, "tool_choice"),
    ("choice unknown", also(tool_choice="maybe"), INVALID, "tool_choice"),
    ("choice hosted", also(tool_choice={"type": "mcp"}), UNSUPPORTED, "tool_choice.type"),
    ("choice unnamed", also(tool_choice={"type": "function"}), INVALID, "tool_choice.name"),
    (
        "choice of another tool",
        also(tools=[TOOL], tool_choice={"type": "custom", "name": "f"}),
        INVALID,
        "tool_choice.name",
    ),
    ("allowed tools mode", also(tool_choice=allowed("none", TOOL)), INVALID, "tool_choice.mode"),
    ("allowed tools none", also(tool_choice=allowed("auto")), INVALID, "tool_choice.tools"),
    (
        "allowed tool unknown",
        also(tools=[TOOL], tool_choice=allowed("auto", {**TOOL, "name": "g"})),
        INVALID,
        "tool_choice.tools[0]",
    ),
    ("text string", also(text="json"), INVALID, "text"),
    ("format string", also(text={"format": "json"}), INVALID, "text.format"),
    ("format unknown", text_format(type="grammar"), UNSUPPORTED, "text.format.type"),
    ("format unnamed", text_format(type="json_schema", schema={}), INVALID, "text.format.name"),
    ("no schema", text_format(type="json_schema", name="x"), INVALID, "text.format.schema"),
    (
        "schema with a keyword that is not supported",
        text_format(type="json_schema", name="x", schema={"type": "object", "not": {}}),
        INVALID,
        "text.format.schema.not",
    ),
    ("verbosity", also(text={"verbosity": "none"}), INVALID, "text.verbosity"),
    (
        "format and ignore_eos",
        {**text_format(type="json_object"), "ignore_eos": True},
        INVALID,
        "ignore_eos",
    ),
    ("effort", also(reasoning={"effort": "some"}), INVALID, "reasoning.effort"),
    ("summary", also(reasoning={"summary": "in verse"}), UNSUPPORTED, "reasoning.summary"),
    ("include", also(include=["everything"]), UNSUPPORTED, "include[0]"),
    ("truncation", also(truncation="middle"), INVALID, "truncation"),
    ("top without include", also(top_logprobs=2), INVALID, "top_logprobs"),
    ("top high", also(top_logprobs=21), INVALID, "top_logprobs"),
    ("metadata number", also(metadata={"a": 1}), INVALID, "metadata.a"),
    ("metadata many", also(metadata={str(n): "" for n in range(17)}), INVALID, "metadata"),
    ("metadata key long", also(metadata={"k" * 65: ""}), INVALID, "metadata"),
    ("metadata long", also(metadata={"k": "x" * 513}), INVALID, "metadata.k"),
    ("user long", also(user="x" * 513), INVALID, "user"),
    ("template argument", also(chat_template_kwargs={"x": 1}), UNSUPPORTED, "x"),
    ("model", also(model="gpt-none"), (404, "model_not_found"), "model"),
    (
        "response unknown",
        also(previous_response_id="resp_none"),
        (404, "not_found"),
        "previous_response_id",
    ),
]


@pytest.mark.parametrize(
    ("fields", "expected", "param"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_mistake_is_named(
    http: httpx.Client, fields: dict[str, Any], expected: tuple[int, str], param: str
) -> None:
    assert_error(http.post(PATH, json=fields), *expected, param)


@pytest.mark.parametrize("name", sorted(refused.RESPONSES))
def test_field_that_is_not_honoured_is_refused_by_name(http: httpx.Client, name: str) -> None:
    asking = also(**{name: "something"}, max_output_tokens=1)
    assert_error(http.post(PATH, json=asking), *UNSUPPORTED, name)
    for neutral in (None, *refused.RESPONSES[name]):
        response = http.post(PATH, json=also(**{name: neutral}, max_output_tokens=1))
        assert response.status_code == 200, response.text


def test_server_goes_on_and_ignores_what_nobody_knows(http: httpx.Client) -> None:
    response = http.post(PATH, json=also(never_heard_of=1, max_output_tokens=1))
    assert response.status_code == 200
    assert_serves(http)


def test_sdk_raises_its_own_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(model=MODEL_ID, input="hi", background=True)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "background")
    with pytest.raises(openai.NotFoundError):
        sdk.responses.create(model=MODEL_ID, input="hi", previous_response_id="resp_none")
