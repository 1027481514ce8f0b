"""Tool calls and reasoning over HTTP: read out of what the model writes, or enforced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from deepinfer.server.chat_reader import ChatReader, ToolCall
from deepinfer.text import ebnf
from deepinfer.text.free_text import text_rules
from deepinfer.text.reasoning import Reasoning, ReasoningParser
from deepinfer.text.tool_calls import Content, ToolFormat
from deepinfer.text.tool_choice import open_parser
from deepinfer.text.tool_formats.first_call import FirstCallParser
from tests.building import BuildEngine
from tests.server.serving import (
    DEADLINE_S,
    client_of,
    count_tokens,
    make_echo_engine,
    read_events,
    serving,
    starting,
)

CHAT = "/v1/chat/completions"
# The engine repeats its prompt, which here is the user's last message and nothing else.
ECHO_TEMPLATE = (
    "{# calls are <tool_call> {name, arguments} </tool_call>, thoughts <think> </think> #}"
    "{% if tools and messages[-1].content == 'hi' %}{{ tools[0].function.name }}{% endif %}"
    "{{ messages[-1].content }}"
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


SINGLE: dict[str, Any] = {"tools": [WEATHER, CLOCK], "parallel_tool_calls": False}


def usage_of(http: httpx.Client, content: str, **fields: Any) -> int:
    body = {"messages": [{"role": "user", "content": content}], **fields}
    tokens: int = http.post(CHAT, json=body).json()["usage"]["completion_tokens"]
    return tokens


def test_answer_ends_with_the_only_call_that_it_may_hold(echo: httpx.Client) -> None:
    content = f"Let me see.{CALL}"
    before_end = count_tokens(content.removesuffix("\n</tool_call>"))
    content += CALL * 20 + "bye"
    choice = ask(echo, content, **SINGLE)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert choice["message"]["content"] == "Let me see."
    assert usage_of(echo, content, **SINGLE) <= before_end + 1 < count_tokens(content)


def test_stream_ends_with_the_only_call_that_it_may_hold(echo: httpx.Client) -> None:
    content = CALL * 3 + "bye"
    *choices, last = stream(echo, content, **SINGLE)
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert {call["index"] for call in calls} == {0}
    assert "".join(call["function"]["arguments"] for call in calls) == ARGUMENTS
    assert not any(choice["delta"].get("content") for choice in choices)
    assert last["finish_reason"] == "tool_calls"


def test_what_is_no_call_does_not_end_an_answer(echo: httpx.Client) -> None:
    content = "<think>hm</think>see <tool_call>\n{nothing} " + CALL + CALL
    choice = ask(echo, content, **SINGLE)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] == "see <tool_call>\n{nothing}"
    assert choice["message"]["reasoning_content"] == "hm"
    plain = ask(echo, "just words", **SINGLE)
    assert (plain["message"]["content"], plain["finish_reason"]) == ("just words", "stop")


def join_deltas(choices: list[dict[str, Any]]) -> tuple[str, list[dict[str, str]]]:
    """The content of a stream, and its calls."""
    calls: dict[int, dict[str, str]] = {}
    for choice in choices:
        for call in choice["delta"].get("tool_calls") or []:
            function = calls.setdefault(call["index"], {"name": "", "arguments": ""})
            for key, text in call["function"].items():
                function[key] += text or ""
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    return content, list(calls.values())


@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": False}])
def test_call_that_max_tokens_cuts_is_a_partial_call(
    echo: httpx.Client, fields: dict[str, Any]
) -> None:
    seen = set()
    for max_tokens in range(count_tokens("<tool_call>"), count_tokens(CALL) - 1):
        wish = {"tools": [WEATHER], "max_tokens": max_tokens, **fields}
        choice = ask(echo, CALL, **wish)
        message = choice["message"]
        content, calls = join_deltas(streamed := stream(echo, CALL, **wish))
        whole = [call["function"] for call in message["tool_calls"] or []]
        assert (content, calls) == (message["content"] or "", whole)
        assert streamed[-1]["finish_reason"] == choice["finish_reason"]
        assert not message["content"]
        for call in whole:
            assert choice["finish_reason"] in ("length", "tool_calls")
            assert call["name"] == "get_weather" and ARGUMENTS.startswith(call["arguments"])
            seen.add(call["arguments"])
    assert len(seen) > 5


@pytest.mark.parametrize("fields", [{}, {"parallel_tool_calls": False}])
@pytest.mark.parametrize("is_stop_string", [True, False], ids=["stop string", "end of text"])
def test_call_that_ends_early_is_the_same_in_a_stream(
    echo: httpx.Client, is_stop_string: bool, fields: dict[str, Any]
) -> None:
    seen = set()
    for length in range(len("<tool_call>"), CALL.rindex("}") + 1, 3):
        content = f"{CALL[:length]}STOP" if is_stop_string else CALL[:length]
        wish = {"tools": [WEATHER], "stop": ["STOP"], **fields}
        choice = ask(echo, content, **wish)
        message = choice["message"]
        whole = [call["function"] for call in message["tool_calls"] or []]
        streamed = stream(echo, content, **wish)
        assert join_deltas(streamed) == (message["content"] or "", whole)
        assert streamed[-1]["finish_reason"] == choice["finish_reason"] == "stop"
        if not whole:
            assert message["content"] == CALL[:length], "no call has begun"
            continue
        assert not message["content"], "the text of a call is not said twice"
        seen.add(whole[0]["arguments"])
        assert whole[0]["name"] == "get_weather" and ARGUMENTS.startswith(whole[0]["arguments"])
    assert len(seen) > 5


def test_whole_call_before_one_that_ends_early_is_called(echo: httpx.Client) -> None:
    choice = ask(echo, f"{CALL}\n{CALL[:70]}", tools=[WEATHER])
    whole, begun = (call["function"]["arguments"] for call in choice["message"]["tool_calls"])
    assert whole == ARGUMENTS and ARGUMENTS.startswith(begun) and begun != ARGUMENTS
    assert choice["finish_reason"] == "tool_calls"


def test_text_that_was_read_ahead_is_not_read_again() -> None:
    parser = FirstCallParser(open_parser(ToolFormat.HERMES))
    reader = ChatReader(ReasoningParser(is_open=True), parser, new_id=lambda: "call_1")
    pieces = ("hm</think>See ", CALL[:40], CALL[40:] + CALL)
    assert [reader.read_ahead(piece) for piece in pieces] == [False, False, True]
    assert reader.read("".join(pieces), is_over=True) == [
        Reasoning("hm"),
        Content("See"),
        ToolCall("call_1", "get_weather", ARGUMENTS),
    ]


def test_tokens_of_tools_are_those_that_a_chat_counts(echo: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER]}
    counted = echo.post("/tokenize", json=body).json()["count"]
    assert counted == count_tokens("get_weatherhi")
    assert counted == echo.post(CHAT, json=body).json()["usage"]["prompt_tokens"]


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


@pytest.mark.parametrize(
    ("content", "is_open"), [("<think>two and", True), ("<think>hm</think>so", False)]
)
def test_message_that_is_continued_within_its_thoughts_goes_on_thinking(
    echo: httpx.Client, content: str, is_open: bool
) -> None:
    # The engine repeats its prompt; what it says then goes on from thoughts, or from words.
    messages = [{"role": "assistant", "content": f"x{content}"}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}
    message = echo.post(CHAT, json=body).json()["choices"][0]["message"]
    expected = f"x{content}" if is_open else None
    assert message["reasoning_content"] == expected
    assert message["content"] == ("" if is_open else f"x{content}")


def test_earlier_calls_are_rendered_and_malformed_ones_as_they_are(echo: httpx.Client) -> None:
    for arguments, shown in (
        ('{"a": 1}', '{"a": 1}'),
        ("{oops", '"{oops"'),
        (r'{"a": "\ud83d\ude00"}', '{"a": "\U0001f600"}'),
        (r'{"a": "\ud800"}', json.dumps(r'{"a": "\ud800"}')),  # no text has half a character
    ):
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


NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "maxLength": 12},
                "unit": {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]},
                "days": {"type": "integer", "minimum": 1, "maximum": 99},
                "day": {"type": "string", "format": "date"},
                "tags": {"type": "array", "items": {"enum": ["<a>", "b"]}, "maxItems": 2},
            },
            "required": ["text", "unit", "days", "day"],
            "additionalProperties": False,
            "$defs": {"Unit": {"enum": ["C", "F"]}},
        },
    },
}


def write_plain_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[-1].content }}", encoding="utf-8")


@pytest.fixture(scope="module", params=["qwen3-coder", "glm-4.5"])
def tagged(build_engine: BuildEngine, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """The same model with a template that shows no calls, said to write them between tags."""
    built = build_engine(
        "llama", "fp32", "--max-batch-size", "4", edit_checkpoint=write_plain_template
    )
    with serving(built.engine.path, "--tool-format", request.param) as server:
        server.wait_ready()
        with client_of(server) as client:
            yield client


@pytest.mark.parametrize("parallel", [True, False])
def test_required_call_between_tags_cannot_fail(tagged: httpx.Client, parallel: bool) -> None:
    wish = {"tool_choice": "required", "parallel_tool_calls": parallel, "max_tokens": 400}
    wish |= {"tools": [NOTE], "temperature": 1}
    for seed in range(4):
        choice = ask(tagged, "hi", seed=seed, **wish)
        if choice["finish_reason"] == "length":
            assert parallel, "one call of this tool is shorter"
            continue
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        assert parallel or len(calls) == 1
        for call in calls:
            parameters = NOTE["function"]["parameters"]  # type: ignore[index]
            arguments = json.loads(call["function"]["arguments"])
            jsonschema.validate(arguments, parameters)
            date.fromisoformat(arguments["day"])


@pytest.mark.parametrize("tag", ["</parameter>", "</arg_value>"])
def test_text_up_to_a_tag_holds_beginnings_of_it_and_never_all(
    tagged: httpx.Client, tag: str
) -> None:
    near = " ".join(f"{ebnf.literal(tag[:place])} tag{place}" for place in range(1, len(tag)))
    grammar = f"root ::= {near} {ebnf.literal(tag)}\n{text_rules(tag)}"
    for seed in range(4):
        choice = ask(tagged, "hi", guided_grammar=grammar, seed=seed, temperature=1, max_tokens=400)
        text = choice["message"]["content"]
        assert choice["finish_reason"] == "stop" and text.index(tag) == len(text) - len(tag)
        assert all(tag[:place] in text for place in range(1, len(tag)))
    free = f"root ::= text\n{text_rules(tag)}"
    assert tag not in ask(tagged, "hi", guided_grammar=free, max_tokens=40)["message"]["content"]


def test_call_that_the_tags_cannot_hold_is_refused(tagged: httpx.Client) -> None:
    either = {"type": "object", "properties": {"x": {"type": ["string", "integer"]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": either}}
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool]}
    response = tagged.post(CHAT, json={**body, "tool_choice": "required"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0].function.parameters.properties.x"
    assert "beside other values than null" in response.json()["error"]["message"]


def test_tool_that_the_tags_cannot_hold_is_offered_beside_a_format(tagged: httpx.Client) -> None:
    odd = {"type": "object", "properties": {"x": {"type": ["string", "integer"]}}}
    tool = {"type": "function", "function": {"name": "odd", "parameters": odd}}
    schema = {"enum": ["yes", "no"]}
    wish = {
        "tools": [NOTE, tool],
        "response_format": {"type": "json_object", "schema": schema},
        "parallel_tool_calls": False,
        "temperature": 2,
        "max_tokens": 60,
    }
    for seed in range(8):
        choice = ask(tagged, "hi", seed=seed, **wish)
        calls = choice["message"]["tool_calls"] or []
        assert calls or json.loads(choice["message"]["content"]) in ("yes", "no")
        assert {call["function"]["name"] for call in calls} <= {"note", "odd"}


def test_unknown_format_is_refused_at_the_start(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with starting(tmp_path, "--tool-format", "pythonic") as server:
        assert server.wait() != 0
    (line,) = [line for line in server.log.splitlines() if "`--tool-format`" in line]
    assert "`engine.tool_format`" in line and "hermes" in line and "pythonic" in line


def test_tool_that_is_not_there_cannot_be_required(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model=sdk.models.list().data[0].id,
            messages=[{"role": "user", "content": "hi"}],
            tools=[CLOCK],  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "gone"}},
        )
    assert caught.value.param == "tool_choice"
