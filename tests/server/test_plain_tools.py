"""Tools with models whose chat templates know none, and histories that templates do not take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.building import BuildEngine
from tests.server.serving import client_of, make_echo_engine, serving
from tests.server.test_tools import CALL, CLOCK, WEATHER, ask
from tests.text.test_plain_turns import STRICT

CHAT = "/v1/chat/completions"
# Shows the last turn, or all of them where that says so; it has system turns once, in front.
TURNS = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('one system turn') }}{% endif %}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}"
    "{% if mood is defined %}[{{ mood }}]{% endif %}{% set own = 1 %}{{ own }}"
)
USER = {"role": "user", "content": "hi"}
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "fact",
        "schema": {
            "type": "object",
            "properties": {"is_true": {"type": "boolean"}},
            "required": ["is_true"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An engine that says its prompt, for a template that has neither tools nor two systems."""
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=TURNS)
    with serving(folder) as server, client_of(server) as client:
        yield client


def say(http: httpx.Client, *messages: dict[str, Any], **fields: Any) -> str:
    response = http.post(CHAT, json={"messages": list(messages), "max_tokens": 2000, **fields})
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    return str(message["content"] or "")


def test_tools_are_described_in_the_system_turn(turns: httpx.Client) -> None:
    tools = [{**CLOCK, "function": {"name": f"tool_{i}"}} for i in range(8)]
    said = say(turns, {"role": "system", "content": "Be brief."}, USER, tools=tools)
    assert said.startswith("<system>Be brief.") and said.endswith("<user>hi1")
    assert all(f'"tool_{i}"' in said for i in range(8))


def test_null_tool_choice_is_the_default(turns: httpx.Client) -> None:
    asked = say(turns, USER, tools=[CLOCK], tool_choice=None)
    assert asked == say(turns, USER, tools=[CLOCK], tool_choice="auto")


def test_only_allowed_tools_are_offered(turns: httpx.Client) -> None:
    wish = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": wish}
    said = say(turns, USER, tools=[CLOCK, WEATHER], tool_choice=choice)
    assert said == say(turns, USER, tools=[CLOCK])
    assert "get_weather" not in said


def test_calls_and_results_of_earlier_turns_are_shown(turns: httpx.Client) -> None:
    function = {"name": "clock", "arguments": {"zone": "UTC"}}
    history = [
        USER,
        {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    said = say(turns, *history)
    assert '"arguments": {"zone": "UTC"}' in said
    assert said.endswith("<user><tool_response>\nnoon\n</tool_response>1")
    assert "<tool>" not in said


def test_several_system_turns_are_one(turns: httpx.Client) -> None:
    developer, system = ({"role": role, "content": role} for role in ("developer", "system"))
    assert say(turns, developer, USER, system) == "<system>developer\n\nsystem<user>hi1"
    response = turns.post(
        "/v1/responses", json={"input": [developer, USER], "instructions": "first"}
    )
    (item,) = response.json()["output"]
    assert item["content"][0]["text"] == "<system>first\n\ndeveloper<user>hi1"
    body = {"max_tokens": 99, "system": "first", "messages": [USER, system, USER]}
    block = turns.post("/v1/messages", json=body).json()["content"][0]
    assert block["text"] == "<system>first\n\nsystem<user>hi<user>hi1"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_earlier_thoughts_reach_the_template(turns: httpx.Client, name: str) -> None:
    assert say(turns, USER, {"role": "assistant", "content": "x", name: "hm"}).endswith(
        "<assistant>(hm)x1"
    )
    assert say(turns, {**USER, name: "hm"}) == "<user>hi1"


def test_thoughts_of_a_tool_loop_reach_the_template_in_the_other_dialects(
    turns: httpx.Client,
) -> None:
    items = [
        USER,
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "1", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "noon"},
    ]
    (item,) = turns.post("/v1/responses", json={"input": items}).json()["output"]
    assert "<assistant>(hm)<tool_call>" in item["content"][0]["text"]
    thinking = {"type": "thinking", "thinking": "hm", "signature": ""}
    call = {"type": "tool_use", "id": "1", "name": "clock", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "noon"}
    messages = [
        USER,
        {"role": "assistant", "content": [thinking, call]},
        {"role": "user", "content": [result]},
    ]
    body = {"max_tokens": 500, "messages": messages}
    block = turns.post("/v1/messages", json=body).json()["content"][0]
    assert "<assistant>(hm)<tool_call>" in block["text"]


SILENT: dict[str, tuple[dict[str, Any], str]] = {
    "null": ({"content": None}, ""),
    "left out": ({}, ""),
    "no parts": ({"content": []}, ""),
    "refusal part": ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
    "refusal": ({"content": None, "refusal": "No."}, "No."),
    "text before a refusal": ({"content": "x", "refusal": None}, "x"),
    "no calls": ({"content": None, "tool_calls": []}, ""),
}


@pytest.mark.parametrize(("fields", "shown"), SILENT.values(), ids=SILENT)
def test_assistant_may_have_said_nothing_or_refused(
    turns: httpx.Client, fields: dict[str, Any], shown: str
) -> None:
    said = say(turns, USER, {"role": "assistant", **fields}, USER)
    assert said == f"<user>hi<assistant>{shown}<user>hi1"


@pytest.mark.parametrize("content", [None, []])
def test_result_of_a_tool_may_be_empty(turns: httpx.Client, content: Any) -> None:
    said = say(turns, USER, {"role": "tool", "tool_call_id": "1", "content": content})
    assert "<tool_response>\n\n</tool_response>" in said


ARGUMENTS: dict[str, tuple[Any, str]] = {
    "an object": ({"a": 1}, '{"a": 1}'),
    "no JSON": ("{oops", r'"{oops"'),
    "empty": ("", "{}"),
    "null": (None, "{}"),
    "deep": ("[" * 100_000, "[[["),
}


@pytest.mark.parametrize(("arguments", "shown"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_earlier_calls_are_taken_as_they_are(
    turns: httpx.Client, arguments: Any, shown: str
) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    counted = turns.post("/tokenize", json={"messages": messages})
    assert counted.status_code == 200, counted.text
    if shown != "[[[":
        assert f'"arguments": {shown}' in say(turns, *messages)


def test_template_that_takes_objects_only_is_given_an_object(tmp_path: Path) -> None:
    items = (
        "{# <tool_call> <function= <parameter= #}{% for m in messages %}{{ m.content }}"
        "{% for call in m.tool_calls or [] %}"
        "{% for key, value in call.function.arguments | items %}{{ key }}={{ value }};{% endfor %}"
        "{% endfor %}{% endfor %}"
    )
    make_echo_engine(tmp_path / "echo", chat_template=items)
    calls = [{"id": "1", "function": {"name": "f", "arguments": text}} for text in ("{oops", "")]
    with serving(tmp_path) as server, client_of(server) as http:
        said = say(http, USER, {"role": "assistant", "tool_calls": calls})
    assert said == "hiarguments={oops;"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_image_in_a_result_is_a_note_and_one_of_a_user_is_refused(turns: httpx.Client) -> None:
    parts = [{"type": "text", "text": "see"}, IMAGE]
    said = say(turns, USER, {"role": "tool", "tool_call_id": "1", "content": parts})
    assert "see\n[image omitted]" in said
    refused = turns.post(CHAT, json={"messages": [{"role": "user", "content": parts}]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages[0].content[1].type"


def test_arguments_that_the_template_reads_are_handed_on(turns: httpx.Client) -> None:
    said = say(turns, USER, chat_template_kwargs={"mood": "calm", "enable_thinking": True})
    assert said.endswith("[calm]1")
    for name in ("own", "messages", "bos_token", "range", "raise_exception", "unknown"):
        body = {"messages": [USER], "chat_template_kwargs": {name: "x"}}
        refused = turns.post(CHAT, json=body)
        assert refused.status_code == 400 and f"`{name}`" in refused.json()["error"]["message"]


def test_what_tools_say_besides_costs_nothing(turns: httpx.Client) -> None:
    extra = {"cache_control": {"type": "ephemeral"}, "defer_loading": True, "input_examples": [{}]}
    tool = {**CLOCK, **extra, "function": {"name": "clock", "strict": None, **extra}}
    assert say(turns, USER, tools=[tool]) == say(turns, USER, tools=[CLOCK])


def test_attachments_can_be_refused_and_tools_left_out(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", chat_template=TURNS)
    options = ("--result-attachments", "refuse", "--tool-format", "none")
    with serving(tmp_path, *options) as server, client_of(server) as http:
        result = {"role": "tool", "tool_call_id": "1", "content": [IMAGE]}
        refused = http.post(CHAT, json={"messages": [USER, result]})
        assert refused.json()["error"]["param"] == "messages[1].content[0].type"
        assert say(http, USER, tools=[CLOCK]) == "<user>hi1"
        server.wait_for_log(r"left out 1 tools")
        body = {"messages": [USER], "tools": [CLOCK], "tool_choice": "required"}
        required = http.post(CHAT, json=body)
        assert required.status_code == 400
        assert required.json()["error"]["param"] == "tool_choice"


def test_call_in_the_generic_form_is_read(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", chat_template="{{ messages[-1].content }}")
    with serving(tmp_path) as server, client_of(server) as http:
        choice = ask(http, CALL, tools=[WEATHER])
    assert choice["finish_reason"] == "tool_calls"
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["get_weather"]


def write_template(checkpoint: Path) -> None:
    """And more positions: the description of a tool alone has some 400 tokens here."""
    (checkpoint / "chat_template.jinja").write_text(STRICT, encoding="utf-8")
    config = json.loads((checkpoint / "config.json").read_text())
    config["max_position_embeddings"] = 1024
    (checkpoint / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def real(build_engine: BuildEngine) -> Iterator[httpx.Client]:
    """A model with random weights, whose template takes neither tools nor a system turn."""
    options = ("--max-batch-size", "4", "--max-seq-len", "1024")
    built = build_engine("llama", "fp32", *options, edit_checkpoint=write_template)
    with serving(built.engine.path) as server, client_of(server) as client:
        yield client


@pytest.mark.parametrize("with_format", [False, True])
@pytest.mark.parametrize("choice", ["required", "named", "allowed"])
def test_required_call_works_in_the_generic_form_and_wins_over_a_format(
    real: httpx.Client, choice: str, with_format: bool
) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    allowed = {"mode": "required", "tools": [named]}
    wish = {
        "required": {"tools": [WEATHER], "tool_choice": "required"},
        "named": {"tools": [CLOCK, WEATHER], "tool_choice": named},
        "allowed": {
            "tools": [CLOCK, WEATHER],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed},
        },
    }[choice]
    fields: dict[str, Any] = {"response_format": FORMAT} if with_format else {}
    for seed in range(2):
        answer = ask(
            real, "hi", **wish, **fields, parallel_tool_calls=False, seed=seed, temperature=1
        )
        assert answer["finish_reason"] == "tool_calls"
        (call,) = answer["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
        jsonschema.validate(json.loads(call["function"]["arguments"]), parameters)


def test_tools_and_a_format_give_a_call_or_an_answer_in_the_format(real: httpx.Client) -> None:
    schema = FORMAT["json_schema"]["schema"]  # type: ignore[index]
    kinds = set()
    for seed in range(40):
        fields = {"response_format": FORMAT, "parallel_tool_calls": False, "temperature": 2}
        answer = ask(real, "hi", tools=[WEATHER], seed=seed, max_tokens=100, **fields)
        kinds.add(answer["finish_reason"])
        if answer["finish_reason"] == "tool_calls":
            assert answer["message"]["content"] is None
        else:
            jsonschema.validate(json.loads(answer["message"]["content"]), schema)
    # Weights are fixed and seeds too; each of the two first characters has some probability.
    assert kinds == {"stop", "tool_calls"}


def test_tool_that_cannot_be_enforced_is_offered_beside_a_format(real: httpx.Client) -> None:
    odd = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    fields: dict[str, Any] = {"tools": [odd], "response_format": FORMAT, "max_tokens": 40}
    assert ask(real, "hi", **fields)["finish_reason"] in ("stop", "length", "tool_calls")
    body = {"messages": [USER], **fields, "tool_choice": "required"}
    refused = real.post(CHAT, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools[0].function.parameters.not"
