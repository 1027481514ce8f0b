"""What agents send to /v1/messages with every request, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.messaging import (
    CALL,
    INPUT,
    LISTING_TEMPLATE,
    SAYING_TEMPLATE,
    WEATHER,
    assistant,
    serving_template,
    user,
)
from tests.server.serving import MODEL_ID, ServerProcess, client_of

CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
KEEP_ALL = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
# Thoughts behind the role, as templates of models that think show them.
THINKING_TEMPLATE = LISTING_TEMPLATE.replace(
    ": {{ message.content }}",
    ":{% if message.reasoning_content %} ({{ message.reasoning_content }}){% endif %}"
    " {{ message.content }}",
)


def thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "x"}


def call(id_: str, name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": arguments}


def result(id_: str, content: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content}


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Answers with the last message."""
    with serving_template(tmp_path_factory.mktemp("saying"), SAYING_TEMPLATE) as server:
        with client_of(server) as client:
            yield client


@pytest.fixture(scope="module")
def listing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Answers with all that the chat template was given."""
    with serving_template(tmp_path_factory.mktemp("listing"), THINKING_TEMPLATE) as server:
        yield server


@pytest.fixture(scope="module")
def listing(listing_server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(listing_server) as client:
        yield client


def ask(http: httpx.Client, *messages: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL_ID, "max_tokens": 1000, "messages": messages} | fields
    response = http.post("/v1/messages?beta=true", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def list_prompt(http: httpx.Client, *messages: Any, **fields: Any) -> str:
    (block,) = ask(http, *messages, **fields)["content"]
    return str(block["text"])


def count(http: httpx.Client, *messages: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL_ID, "messages": messages} | fields
    response = http.post("/v1/messages/count_tokens?beta=true", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(http: httpx.Client, *messages: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL_ID, "max_tokens": 1000, "messages": messages, "stream": True} | fields
    response = http.post("/v1/messages", json=body)
    assert response.status_code == 200, response.text
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_request_of_a_coding_agent_is_answered(saying: httpx.Client) -> None:
    """Its shape, in other words: everything that such an agent sends beside its texts."""
    reminder = {"type": "text", "text": "<reminder>none</reminder>"}
    tool = {**WEATHER, **CACHED, "eager_input_streaming": True, "defer_loading": True}
    fields = {
        "system": [{"type": "text", "text": "You are an agent", **CACHED}],
        "tools": [tool, {**WEB_SEARCH, **CACHED}],
        "metadata": {"user_id": '{"device_id":"d","session_id":"s"}'},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "output_config": {"effort": "high"},
        "context_management": KEEP_ALL,
        "temperature": 1,
    }
    asked = user([reminder, {"type": "text", "text": f"See{CALL}", **CACHED}])
    answer = ask(saying, asked, **fields)
    assert [block["type"] for block in answer["content"]] == ["text", "tool_use"]
    assert answer["content"][1]["input"] == INPUT
    assert answer["context_management"] == {"applied_edits": []}
    counted = count(saying, asked, **fields)
    assert counted["input_tokens"] == answer["usage"]["input_tokens"]


def test_edits_are_reported_in_the_end_of_a_stream(saying: httpx.Client) -> None:
    events = stream(saying, user("hi"), context_management=KEEP_ALL)
    (end,) = [event for event in events if event["type"] == "message_delta"]
    assert end["context_management"] == {"applied_edits": []}
    assert "context_management" not in events[0]["message"]


def test_whole_number_may_be_written_with_a_fraction_of_zero(saying: httpx.Client) -> None:
    edit = {
        "type": "clear_tool_uses_20250919",
        "trigger": {"type": "tool_uses", "value": 7.0},
        "clear_at_least": {"type": "input_tokens", "value": 0.0},
    }
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "context_management": {"edits": [edit]},
    }
    assert saying.post("/v1/messages", json=body).status_code == 200
    edit["trigger"] = {"type": "tool_uses", "value": 7.5}
    assert saying.post("/v1/messages", json=body).status_code == 400


def test_nothing_is_reported_where_nothing_was_asked(saying: httpx.Client) -> None:
    assert "context_management" not in ask(saying, user("hi"))
    assert set(count(saying, user("hi"))) == {"input_tokens"}
    assert not [e for e in stream(saying, user("hi")) if "context_management" in e]


LONG = "sunny " * 50
CALLS = [
    user("How is it?"),
    assistant([call("1", city="A")]),
    user([result("1", LONG)]),
    assistant([call("2", "clock", zone="B")]),
    user([result("2", LONG)]),
    assistant([call("3", city="C")]),
    user([result("3", "fine")]),
]


def clearing(**fields: Any) -> dict[str, Any]:
    edit = {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 1}}
    return {"edits": [edit | fields]}


def at(kind: str, value: int) -> dict[str, Any]:
    return {"type": kind, "value": value}


def test_results_are_kept_below_the_threshold(listing: httpx.Client) -> None:
    num_tokens = count(listing, *CALLS)["input_tokens"]
    for edits in (
        {"edits": [{"type": "clear_tool_uses_20250919"}]},
        clearing(trigger=at("input_tokens", num_tokens + 1)),
        clearing(trigger=at("tool_uses", 4)),
        clearing(trigger=at("tool_uses", 1), keep=at("tool_uses", 3)),
        clearing(trigger=at("tool_uses", 1), clear_at_least=at("input_tokens", num_tokens)),
        clearing(trigger=at("tool_uses", 1), exclude_tools=["clock", "get_weather"]),
    ):
        answer = ask(listing, *CALLS, context_management=edits)
        assert answer["context_management"] == {"applied_edits": []}, edits
        assert answer["usage"]["input_tokens"] == num_tokens
        counted = count(listing, *CALLS, context_management=edits)
        assert counted["context_management"] == {"original_input_tokens": num_tokens}


@pytest.mark.parametrize("kind", ["input_tokens", "tool_uses"])
def test_oldest_results_are_cleared_at_the_threshold(listing: httpx.Client, kind: str) -> None:
    num_tokens = count(listing, *CALLS)["input_tokens"]
    threshold = num_tokens if kind == "input_tokens" else 3
    edits = clearing(trigger=at(kind, threshold))
    answer = ask(listing, *CALLS, context_management=edits)
    (applied,) = answer["context_management"]["applied_edits"]
    left = answer["usage"]["input_tokens"]
    assert applied == {
        "type": "clear_tool_uses_20250919",
        "cleared_tool_uses": 2,
        "cleared_input_tokens": num_tokens - left,
    }
    assert left < num_tokens
    prompt = answer["content"][0]["text"]
    assert LONG not in prompt and "tool 3: fine" in prompt
    assert '[get_weather {"city": "A"}]' in prompt, "inputs stay unless they are to go as well"
    counted = count(listing, *CALLS, context_management=edits)
    assert counted == {
        "input_tokens": left,
        "context_management": {"original_input_tokens": num_tokens},
    }


@pytest.mark.parametrize(
    ("fields", "cleared", "gone"),
    [
        ({"exclude_tools": ["clock"]}, 1, []),
        ({"clear_tool_inputs": True}, 2, ['"A"', '"B"']),
        ({"clear_tool_inputs": ["clock"]}, 2, ['"B"']),
        ({"keep": at("tool_uses", 0)}, 3, ["fine"]),
    ],
)
def test_what_is_cleared_can_be_chosen(
    listing: httpx.Client, fields: dict[str, Any], cleared: int, gone: list[str]
) -> None:
    edits = clearing(trigger=at("tool_uses", 1), **fields)
    answer = ask(listing, *CALLS, context_management=edits)
    (applied,) = answer["context_management"]["applied_edits"]
    assert applied["cleared_tool_uses"] == cleared
    prompt = answer["content"][0]["text"]
    assert [text for text in ('"A"', '"B"', "fine") if text not in prompt] == gone


THOUGHTS = [
    user("old"),
    assistant([thinking("long gone"), {"type": "text", "text": "yes"}]),
    user("How is it?"),
    assistant([thinking("first"), call("1")]),
    user([result("1", "x"), {"type": "text", "text": "<reminder>x</reminder>"}]),
    assistant([thinking("second"), {"type": "redacted_thinking", "data": "x"}, call("2")]),
    user([result("2", "y")]),
]


def test_thoughts_are_handed_to_the_template(listing: httpx.Client) -> None:
    prompt = list_prompt(listing, *THOUGHTS)
    assert "assistant: (first) [get_weather" in prompt
    assert "assistant: (second) [get_weather" in prompt
    assert "assistant: (long gone) yes" in prompt


def test_thoughts_of_earlier_turns_are_cleared_as_asked(listing: httpx.Client) -> None:
    edits = {
        "edits": [
            {"type": "clear_thinking_20251015", "keep": {"type": "thinking_turns", "value": 1}}
        ]
    }
    answer = ask(listing, *THOUGHTS, context_management=edits)
    prompt = answer["content"][0]["text"]
    assert "(second)" in prompt and "(first)" not in prompt and "(long gone)" not in prompt
    (applied,) = answer["context_management"]["applied_edits"]
    num_tokens = count(listing, *THOUGHTS)["input_tokens"]
    assert applied == {
        "type": "clear_thinking_20251015",
        "cleared_thinking_turns": 2,
        "cleared_input_tokens": num_tokens - answer["usage"]["input_tokens"],
    }


def test_compaction_that_is_not_due_changes_nothing(listing: httpx.Client) -> None:
    edits = {"edits": [{"type": "compact_20260112"}]}
    answer = ask(listing, *CALLS, context_management=edits)
    assert answer["context_management"] == {"applied_edits": []}


def test_tools_of_others_are_left_out_and_logged(
    listing: httpx.Client, listing_server: ServerProcess
) -> None:
    prompt = list_prompt(listing, user("hi"), tools=[WEB_SEARCH, WEATHER, {"type": "mcp_toolset"}])
    assert prompt.count('"name":') == 1 and "get_weather" in prompt
    listing_server.wait_for_log("'mcp_toolset', 'web_search_20250305'")
    assert list_prompt(listing, user("hi"), tools=[WEB_SEARCH]) == "user: hi\n"


def test_examples_of_inputs_are_shown(listing: httpx.Client) -> None:
    tool = {**WEATHER, "input_examples": [{"city": "Ulm"}, {"city": "Bonn"}]}
    prompt = list_prompt(listing, user("hi"), tools=[tool])
    assert "Says the weather" in prompt and "Ulm" in prompt and "Bonn" in prompt


def test_call_wins_over_a_format(saying: httpx.Client) -> None:
    schema = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {"tools": [WEATHER], "tool_choice": {"type": "any"}}
    answer = ask(saying, user(CALL), output_config={"format": schema}, **fields)
    assert answer["stop_reason"] == "tool_use"


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def test_image_in_a_result_is_a_note(listing: httpx.Client) -> None:
    plain = {"type": "document", "source": {"type": "text", "data": "plain text"}}
    pdf = {"type": "document", "source": {"type": "url", "url": "http://127.0.0.1:9/x.pdf"}}
    found = {"type": "tool_reference", "tool_name": "clock"}
    parts = [{"type": "text", "text": "shot"}, IMAGE, plain, pdf, found]
    prompt = list_prompt(listing, user("x"), assistant([call("1")]), user([result("1", parts)]))
    lines = prompt.splitlines()[2:]
    assert lines[0] == "tool 1: shot" and "image" in lines[1]
    assert lines[2] == "plain text" and "file" in lines[3] and "`clock`" in lines[4]
    assert "AA==" not in prompt


@pytest.mark.parametrize("content", [None, [], ""])
def test_empty_turn_of_the_assistant_is_taken(listing: httpx.Client, content: Any) -> None:
    prompt = list_prompt(listing, user("a"), assistant(content), user("b"))
    assert prompt == "user: a\nassistant: \nuser: b\n"


def test_text_blocks_have_no_citations(saying: httpx.Client) -> None:
    (block,) = ask(saying, user("hi"))["content"]
    assert block == {"type": "text", "text": "hi"}
    (start,) = [e for e in stream(saying, user("hi")) if e["type"] == "content_block_start"]
    assert start["content_block"] == {"type": "text", "text": ""}
