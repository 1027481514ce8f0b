"""Tool calls and reasoning over HTTP: read out of what the model writes, or enforced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.building import BuildEngine
from tests.server.serving import DEADLINE_S, client_of, make_echo_engine, read_events, serving

CHAT = "/v1/chat/completions"
# The engine repeats its prompt, which here is the user's last message and nothing else.
ECHO_TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call>, thoughts <think> </think> #}"
    "{% if tools %}{% endif %}{{ messages[-1].content }}"
    "{% for call in messages[-1].tool_calls or [] %}{{ call.function.arguments | tojson }}"
    "{% endfor %}"
)
HERMES_TEMPLATE = (
    "{% if tools %}<tool_call>{name, arguments}</tool_call>{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["days", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ARGUMENTS = '{"city": "Zoë\'s {town}", "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=ECHO_TEMPLATE)
    with serving(folder) as server, client_of(server) as client:
        yield client


def ask(http: httpx.Client, content: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    response = http.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def stream(http: httpx.Client, content: str, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
    with http.stream("POST", CHAT, json=body) as response:
        events = [json.loads(event) for event in read_events(response) if event != "[DONE]"]
    return [event["choices"][0] for event in events]


def test_call_is_read_out_of_the_text(echo: httpx.Client) -> None:
    choice = ask(echo, f"Let me see.{CALL}", tools=[WEATHER])
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_") and call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert choice["message"]["content"].strip() == "Let me see."


def test_stream_has_the_same_calls_with_dense_indices(echo: httpx.Client) -> None:
    content = CALL + "\n" + CALL.replace("get_weather", "clock")
    whole = ask(echo, content, tools=[WEATHER, CLOCK])
    deltas = [
        call
        for choice in stream(echo, content, tools=[WEATHER, CLOCK])
        for call in choice["delta"].get("tool_calls", [])
    ]
    joined: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        if delta["index"] not in joined:
            assert delta["id"] and delta["type"] == "function" and delta["function"]["name"]
            joined[delta["index"]] = {"name": delta["function"]["name"], "arguments": ""}
        joined[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert list(joined) == [0, 1]
    assert list(joined.values()) == [call["function"] for call in whole["message"]["tool_calls"]]


def test_text_that_is_no_call_is_content(echo: httpx.Client) -> None:
    broken = "see <tool_call>\n{nothing}"
    choice = ask(echo, broken, tools=[WEATHER])
    assert choice["message"]["tool_calls"] is None
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == broken
    assert "".join(c["delta"].get("content") or "" for c in stream(echo, broken)) == broken


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_an_offer_nothing_is_a_call(echo: httpx.Client, fields: dict[str, Any]) -> None:
    choice = ask(echo, CALL, **fields)
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def test_reasoning_is_told_from_the_answer(echo: httpx.Client) -> None:
    content = "<think>two and two</think>four"
    message = ask(echo, content)["message"]
    assert (message["reasoning_content"], message["content"]) == ("two and two", "four")
    deltas = [choice["delta"] for choice in stream(echo, content)]
    assert "".join(d.get("reasoning_content") or "" for d in deltas) == "two and two"
    assert "".join(d.get("content") or "" for d in deltas) == "four"


def test_earlier_calls_are_rendered_and_malformed_ones_as_they_are(echo: httpx.Client) -> None:
    for arguments, shown in (('{"a": 1}', '{"a": 1}'), ("{oops", '"{oops"')):
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        answer = echo.post(CHAT, json={"messages": messages}).json()
        assert answer["choices"][0]["message"]["content"] == shown


def test_result_of_a_tool_is_a_message(echo: httpx.Client) -> None:
    messages = [{"role": "tool", "tool_call_id": "1", "content": "sunny"}]
    answer = echo.post(CHAT, json={"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == "sunny"


def write_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(HERMES_TEMPLATE, encoding="utf-8")


@pytest.fixture(scope="module")
def sdk(build_engine: BuildEngine) -> Iterator[openai.OpenAI]:
    """A real model with random weights: it writes a call only because it must."""
    built = build_engine("llama", "fp32", "--max-batch-size", "4", edit_checkpoint=write_template)
    with serving(built.engine.path) as server:
        url = f"{server.wait_ready()}/v1"
        with openai.OpenAI(base_url=url, api_key="x", timeout=DEADLINE_S) as client:
            yield client


@pytest.mark.parametrize("choice", ["required", "named"])
def test_required_call_cannot_fail(sdk: openai.OpenAI, choice: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for seed in range(4):
        answer = sdk.chat.completions.create(
            model=sdk.models.list().data[0].id,
            messages=[{"role": "user", "content": "hi"}],
            tools=[WEATHER] if choice == "required" else [CLOCK, WEATHER],  # type: ignore[list-item]
            tool_choice="required" if choice == "required" else named,  # type: ignore[arg-type]
            parallel_tool_calls=False,
            temperature=1,
            seed=seed,
            max_tokens=100,
        )
        assert answer.choices[0].finish_reason == "tool_calls", answer
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "get_weather"
        parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
        jsonschema.validate(json.loads(call.function.arguments), parameters)


def test_tool_that_is_not_there_cannot_be_required(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model=sdk.models.list().data[0].id,
            messages=[{"role": "user", "content": "hi"}],
            tools=[CLOCK],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "gone"}},
        )
    assert caught.value.param == "tool_choice"
