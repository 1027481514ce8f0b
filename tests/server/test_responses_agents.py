"""What agents send to /v1/responses: tools of every kind, history as it was answered, and more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deepinfer.server.responses_api.compaction import read_summary, write_summary
from deepinfer.server.responses_api.store import ResponseStore, StoredResponse
from deepinfer.server.responses_api.tools import read_custom_input
from tests.server.messaging import LISTING_TEMPLATE, serving_template
from tests.server.serving import CONTEXT_LENGTH, DEADLINE_S, MODEL_ID, ServerProcess, client_of
from tests.server.test_messages_agents import THINKING_TEMPLATE
from tests.server.test_responses import PATH, WEATHER_TOOL, model
from tests.server.test_responses_store import OWNER, STRANGER, message
from tests.server.test_responses_stream import events_of
from tests.server.test_tools import ECHO_TEMPLATE

__all__ = ["model"]  # the fixture

PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "begin" /.+/ "end"'}
FILES: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__files__",
    "description": "Files of the project",
    "tools": [
        {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}},
        {"type": "custom", "name": "write"},
    ],
}
CLOCK = {"type": "namespace", "name": "clock", "tools": [{"type": "function", "name": "now"}]}
UNSERVED = [
    {"type": "web_search", "external_web_access": True},
    {"type": "local_shell"},
    {"type": "image_generation", "output_format": "png"},
    {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9"},
    {"type": "tool_search", "execution": "client"},
]


def call_of(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Says the last message."""
    with serving_template(tmp_path_factory.mktemp("echo"), ECHO_TEMPLATE) as server:
        with client_of(server) as client:
            yield client


@pytest.fixture(scope="module")
def listing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Says all that the chat template was given."""
    with serving_template(tmp_path_factory.mktemp("listing"), THINKING_TEMPLATE) as server:
        yield server


@pytest.fixture(scope="module")
def listing(listing_server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(listing_server) as client:
        yield client


def ask(http: httpx.Client, given: Any, path: str = PATH, **fields: Any) -> dict[str, Any]:
    response = http.post(path, json={"model": MODEL_ID, "input": given} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def list_prompt(http: httpx.Client, given: Any, **fields: Any) -> str:
    (message,) = ask(http, given, **fields)["output"]
    return str(message["content"][0]["text"])


def stream(http: httpx.Client, given: Any, **fields: Any) -> list[dict[str, Any]]:
    response = http.post(PATH, json={"input": given, "stream": True} | fields)
    assert response.status_code == 200, response.text
    return events_of(response.text)


def test_tools_of_others_are_left_out(listing: httpx.Client, listing_server: ServerProcess) -> None:
    answer = ask(listing, "hi", tools=[*UNSERVED, WEATHER_TOOL], tool_choice="auto")
    assert [tool["name"] for tool in answer["tools"]] == ["get_weather"]
    prompt = answer["output"][0]["content"][0]["text"]
    assert prompt.count('"name":') == 1 and '"get_weather"' in prompt
    listing_server.wait_for_log("'image_generation', 'local_shell', 'mcp', 'tool_search', 'web_")
    assert list_prompt(listing, "hi", tools=UNSERVED) == "user: hi\n"


def test_namespace_is_its_functions(echo: httpx.Client, listing: httpx.Client) -> None:
    prompt = list_prompt(listing, "hi", tools=[FILES, CLOCK])
    names = [json.loads(line)["name"] for line in prompt.splitlines()[:-1]]
    assert names == ["mcp__files__read", "mcp__files__write", "clock__now"]
    assert "Files of the project" in prompt
    calls = call_of("clock__now", "{}") + call_of("mcp__files__read", '{"a": 1}')
    answer = ask(echo, calls, tools=[FILES, CLOCK])
    said = [(item["type"], item["namespace"], item["name"]) for item in answer["output"]]
    assert said == [("function_call", "clock", "now"), ("function_call", "mcp__files__", "read")]
    assert [tool["type"] for tool in answer["tools"]] == ["namespace"] * 2
    assert answer["tools"][0]["tools"][0]["name"] == "read"


def test_call_without_a_namespace_has_none(echo: httpx.Client) -> None:
    (call,) = ask(echo, call_of("get_weather", "{}"), tools=[WEATHER_TOOL])["output"]
    assert "namespace" not in call


def test_calls_in_a_namespace_go_back_as_they_came(listing: httpx.Client) -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "status": "completed"}
    prompt = list_prompt(
        listing,
        [
            {"role": "user", "content": "x"},
            {**call, "name": "now", "namespace": "clock", "arguments": '{"zone": "B"}'},
            {"type": "function_call_output", "call_id": "c", "output": "noon"},
        ],
    )
    assert '[clock__now {"zone": "B"}]' in prompt and "tool c: noon" in prompt


TEXT = 'begin\n"x" \\ 🎉 end'


def test_custom_tool_takes_a_text(echo: httpx.Client, listing: httpx.Client) -> None:
    tool = {**PATCH, "format": GRAMMAR}
    told = json.loads(list_prompt(listing, "hi", tools=[tool]).splitlines()[0])
    assert list(told["parameters"]["properties"]) == ["input"]
    assert "Edits files" in told["description"] and GRAMMAR["definition"] in told["description"]
    said = f"I edit.{call_of('apply_patch', json.dumps({'input': TEXT}))}"
    answer = ask(echo, said, tools=[tool])
    message, call = answer["output"]
    assert message["type"] == "message" and call["type"] == "custom_tool_call"
    assert (call["name"], call["input"], call["status"]) == ("apply_patch", TEXT, "completed")
    assert call["id"].startswith("ctc_") and call["call_id"].startswith("call_")
    assert answer["tools"] == [tool]


def test_custom_call_is_streamed(echo: httpx.Client) -> None:
    said = call_of("mcp__files__write", json.dumps({"input": TEXT}))
    events = stream(echo, said, tools=[FILES])
    kinds = [event["type"] for event in events if "output_index" in event]
    assert kinds == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("input.delta")]
    assert "".join(deltas) == TEXT
    (item,) = events[-1]["response"]["output"]
    assert (item["namespace"], item["name"], item["input"]) == ("mcp__files__", "write", TEXT)


def test_custom_call_that_was_cut_is_incomplete(echo: httpx.Client) -> None:
    said = call_of("apply_patch", json.dumps({"input": "word " * 60}))
    answer = ask(echo, said, tools=[PATCH], max_output_tokens=100)
    call = answer["output"][0]
    assert (call["type"], call["status"]) == ("custom_tool_call", "incomplete")
    assert call["input"] and ("word " * 60).startswith(call["input"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb"}', "a\nb"),
        ('{"input": "a\\n', "a\n"),
        ('{"input": "a\\', "a"),
        ('{"input": "a\\u00', "a"),
        ('{"input"', ""),
        ("{", ""),
        ('{"other": 1}', '{"other": 1}'),
        ('["a"]', '["a"]'),
    ],
)
def test_text_is_read_out_of_arguments(arguments: str, text: str) -> None:
    assert read_custom_input(arguments) == text


def test_custom_calls_go_back_as_they_came(listing: httpx.Client) -> None:
    prompt = list_prompt(
        listing,
        [
            {"role": "user", "content": "x"},
            {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": TEXT},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        ],
    )
    arguments = prompt.partition("[apply_patch ")[2].partition("]")[0]
    assert json.loads(arguments) == {"input": TEXT} and "tool c: done" in prompt


ALLOWED = {"type": "allowed_tools", "mode": "auto"}


def test_only_allowed_tools_are_offered(listing: httpx.Client) -> None:
    allowed = [{"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]
    choice = {**ALLOWED, "tools": allowed}
    tools = [WEATHER_TOOL, PATCH, FILES, *UNSERVED]
    answer = ask(listing, "hi", tools=tools, tool_choice=choice)
    prompt = answer["output"][0]["content"][0]["text"]
    assert prompt.count('"name":') == 1 and '"apply_patch"' in prompt
    assert answer["tool_choice"] == choice
    named = {**ALLOWED, "tools": [{"type": "namespace", "name": "mcp__files__"}]}
    assert list_prompt(listing, "hi", tools=tools, tool_choice=named).count('"name":') == 2


def test_null_is_the_default_everywhere(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()["components"]["schemas"]["ResponsesBody"]
    names = set(schema["properties"]) - {"input"}
    assert {"tool_choice", "tools", "text", "reasoning", "max_output_tokens"} <= names
    answer = ask(http, "hi", **dict.fromkeys(names))
    assert answer["tool_choice"] == "auto"
    assert ask(http, "hi", text={"format": None, "verbosity": None})["text"] == answer["text"]


PYTHON = re.compile(r"\(mode=| object at |<class|\bNone\b|\bTrue\b")
WRONG = [None, True, -1, 1.5, "nonsense", [], [None], [[]], {}, {"type": None}, {"type": "x"}]


@pytest.mark.parametrize("route", ["ResponsesBody", "MessagesBody"])
def test_no_error_shows_an_object_of_python(http: httpx.Client, route: str) -> None:
    path = PATH if route == "ResponsesBody" else "/v1/messages"
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    needed: dict[str, Any] = {"input": "hi", "max_output_tokens": 1}
    if route == "MessagesBody":
        needed = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for name in schemas[route]["properties"]:
        for value in WRONG:
            response = http.post(path, json=needed | {name: value})
            assert response.status_code in (200, 400, 404), (name, value, response.text)
            if response.status_code == 200:
                continue
            message = response.json()["detail"]
            assert not PYTHON.search(message), message


def test_call_wins_over_a_format(model: openai.OpenAI) -> None:
    """As instructor asks, with a schema as format and the same as parameters of a forced call."""
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["age"],
        "additionalProperties": False,
    }
    response = model.responses.create(
        model=model.models.list().data[0].id,
        input="hi",
        tools=[{"type": "function", "name": "Person", "parameters": schema, "description": "d"}],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "Person"},
        text={"format": {"type": "json_schema", "name": "Person", "schema": schema}},
        max_output_tokens=200,
    )
    call = response.output[0]
    assert call.type == "function_call" and 0 <= json.loads(call.arguments)["age"] <= 150


def test_custom_and_namespaced_calls_can_be_required(model: openai.OpenAI) -> None:
    regex = {"type": "grammar", "syntax": "regex", "definition": "(yes|no)!"}
    name = model.models.list().data[0].id
    (custom,) = model.responses.create(
        model=name,
        input="hi",
        tools=[{"type": "custom", "name": "say", "format": regex}],  # type: ignore[list-item]
        tool_choice={"type": "custom", "name": "say"},
        parallel_tool_calls=False,
        max_output_tokens=100,
    ).output
    assert custom.type == "custom_tool_call" and custom.input in ("yes!", "no!")
    (function,) = model.responses.create(
        model=name,
        input="hi",
        tools=[CLOCK],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "now"},
        max_output_tokens=100,
        parallel_tool_calls=False,
    ).output
    assert function.type == "function_call"
    assert (function.namespace, function.name) == ("clock", "now")


def test_whole_answers_go_back_verbatim(echo: httpx.Client, listing: httpx.Client) -> None:
    said = f"<think>hm</think>I see.{call_of('get_weather', '{}')}"
    output = ask(echo, said, tools=[WEATHER_TOOL, PATCH])["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    (call,) = output[2:]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    prompt = list_prompt(listing, [{"role": "user", "content": "x"}, *output, result])
    assert prompt.splitlines() == [
        "user: x",
        "assistant: (hm) I see.[get_weather {}]",
        f"tool {call['call_id']}: sunny",
    ]
    kept = listing.get(f"{PATH}/{ask(listing, output)['id']}/input_items?order=asc").json()["data"]
    assert kept == output, "with their ids and statuses"


# One system turn in front, and users and the assistant in turns, as Llama's and others demand it.
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('one system turn in front') }}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
)
# And none at all, as Gemma's.
NO_SYSTEM_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}{{ '\\n' }}{% endfor %}"
)


@pytest.fixture(scope="module", params=["one in front", "none"])
def strict(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, str]]:
    """A model with such a template, and the role that says what the system does."""
    is_one = request.param == "one in front"
    template, role = (STRICT_TEMPLATE, "system") if is_one else (NO_SYSTEM_TEMPLATE, "user")
    with serving_template(tmp_path_factory.mktemp("strict"), template) as server:
        with client_of(server) as client:
            yield client, role


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALK = [turn("user", "one"), turn("assistant", "two"), turn("user", "three")]


@pytest.mark.parametrize(
    ("instructions", "items", "system"),
    [
        ("First.", TALK, ["First."]),
        ("First.", [turn("developer", "Second."), *TALK], ["First.", "Second."]),
        ("First.", [turn("system", "Second."), *TALK], ["First.", "Second."]),
        (None, [turn("system", "First."), turn("developer", "Second."), *TALK], None),
        ("First.", [*TALK[:2], turn("developer", "Second."), TALK[2]], ["First.", "Second."]),
        (None, [*TALK[:2], turn("system", "First."), TALK[2]], ["First."]),
        ("First.", [*TALK, turn("developer", "Second.")], ["First.", "Second."]),
    ],
)
def test_instructions_and_developers_are_one_system_turn(
    strict: tuple[httpx.Client, str],
    instructions: str | None,
    items: list[dict[str, str]],
    system: list[str] | None,
) -> None:
    http, role = strict
    said = "\n\n".join(system or ["First.", "Second."])
    front = f"system: {said}\nuser: one" if role == "system" else f"user: {said}\n\none"
    prompt = list_prompt(http, items, instructions=instructions)
    assert prompt == f"{front}\nassistant: two\nuser: three\n"


def test_instructions_and_a_stored_conversation_are_one_system_turn(
    strict: tuple[httpx.Client, str],
) -> None:
    http, role = strict
    first = ask(http, [turn("developer", "Kept."), turn("user", "one")], instructions="Once.")
    prompt = list_prompt(http, "three", instructions="Now.", previous_response_id=first["id"])
    start = "system: Now.\n\nKept.\nuser: one\n"
    assert prompt.startswith(start if role == "system" else "user: Now.\n\nKept.\n\none\n")
    assert "Once." not in prompt.split("assistant: ")[0], "instructions are not kept"


def test_thoughts_of_calls_are_joined(listing: httpx.Client) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    prompt = list_prompt(
        listing,
        [
            {"role": "user", "content": "x"},
            {"type": "reasoning", "id": "rs", "summary": [], "content": None},
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "one"}],
                "encrypted_content": "y",
            },
            call,
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "two"}]},
            {**call, "call_id": "2"},
        ],
    )
    assert prompt == "user: x\nassistant: (one\ntwo) [f {}][f {}]\n"


@pytest.mark.parametrize("content", [None, [], ""])
def test_empty_turn_of_the_assistant_is_taken(listing: httpx.Client, content: Any) -> None:
    said = {"role": "assistant", "content": content}
    prompt = list_prompt(listing, [said, {"role": "user", "content": "b"}])
    assert prompt == "assistant: \nuser: b\n"


def test_refusal_is_a_text(listing: httpx.Client) -> None:
    content = [{"type": "refusal", "refusal": "no"}]
    prompt = list_prompt(listing, [{"role": "assistant", "content": content}])
    assert prompt == "assistant: no\n"


@pytest.mark.parametrize(
    ("arguments", "shown"), [({"a": 1}, '{"a": 1}'), (None, "{}"), ("", "{}"), ("{oops", '"{oops"')]
)
def test_arguments_may_be_the_object_itself(
    listing: httpx.Client, arguments: Any, shown: str
) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": arguments}
    assert list_prompt(listing, [call]) == f"assistant: [f {shown}]\n"


def test_image_in_a_result_is_a_note(listing: httpx.Client) -> None:
    parts = [
        {"type": "input_text", "text": "shot"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_file", "file_data": "AA=="},
    ]
    result = {"type": "function_call_output", "call_id": "1", "output": parts}
    lines = list_prompt(listing, [{"role": "user", "content": "x"}, result]).splitlines()
    assert lines[1] == "tool 1: shot" and "image" in lines[2] and "file" in lines[3]
    assert "AA==" not in "".join(lines)


def test_item_can_be_named_in_its_place(echo: httpx.Client) -> None:
    first = ask(echo, f"see {call_of('get_weather', '{}')}", tools=[WEATHER_TOOL])
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    second = ask(echo, [{"role": "user", "content": "x"}, *references])
    kept = echo.get(f"{PATH}/{second['id']}/input_items?order=asc").json()["data"]
    assert kept[1:] == first["output"]
    other = echo.post(
        PATH,
        json={"input": [{"id": references[0]["id"]}]},
        headers={"authorization": "Bearer another"},
    )
    assert (other.status_code, other.json()["error"]["param"]) == (404, "input[0].id")
    echo.delete(f"{PATH}/{first['id']}")
    gone = echo.post(PATH, json={"input": references})
    assert gone.status_code == 404


def test_output_is_found_as_long_as_its_response_is_kept() -> None:
    item = message("x").model_copy(update={"id": "msg_out"})
    store = ResponseStore(max_responses=2)
    store.put(StoredResponse("a", OWNER, b"", (message("in"),), (item,)))
    assert store.find_output("msg_out", OWNER) == item
    assert store.find_output("msg_out", STRANGER) is None
    assert store.find_output("msg_1", OWNER) is None, "inputs are the client's own"
    store.put(StoredResponse("b", OWNER, b"", (), ()))
    assert store.find_output("msg_out", OWNER) == item  # which makes the response a used one
    store.put(StoredResponse("c", OWNER, b"", (), ()))
    assert store.find_output("msg_out", OWNER) == item
    store.put(StoredResponse("d", OWNER, b"", (), ()))
    store.put(StoredResponse("e", OWNER, b"", (), ()))
    assert store.find_output("msg_out", OWNER) is None


COUNTED: dict[str, dict[str, Any]] = {
    "text": {"input": "one two"},
    "items": {"input": [{"role": "user", "content": "one"}], "instructions": "Be brief."},
    "tools": {"input": "x", "tools": [WEATHER_TOOL, FILES, *UNSERVED]},
    "no tools": {"input": "x", "tools": [WEATHER_TOOL], "tool_choice": "none"},
    "effort": {"input": "x", "reasoning": {"effort": "xhigh"}, "text": {"verbosity": "low"}},
}


@pytest.mark.parametrize("body", COUNTED.values(), ids=COUNTED)
def test_count_is_what_an_answer_is_charged(listing: httpx.Client, body: dict[str, Any]) -> None:
    counted = listing.post(f"{PATH}/input_tokens", json=body).json()
    answered = listing.post(PATH, json=body | {"max_output_tokens": 1}).json()
    tokens = answered["usage"]["input_tokens"]
    assert counted == {"object": "response.input_tokens", "input_tokens": tokens}


def test_routes_of_the_sdk_are_there(listing: httpx.Client) -> None:
    url = f"{listing.base_url}".rstrip("/") + "/v1"
    with openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=DEADLINE_S) as sdk:
        first = sdk.responses.create(model=MODEL_ID, input="hi")
        assert sdk.responses.cancel(first.id) == first, "it has ended by then"
        with pytest.raises(openai.NotFoundError):
            sdk.responses.cancel("resp_none")
        count = sdk.responses.input_tokens.count(
            model=MODEL_ID, input="more", previous_response_id=first.id, truncation="auto"
        )
        assert count.input_tokens > 1
        compacted = sdk.responses.compact(
            model=MODEL_ID,
            input=[{"role": "user", "content": "And then?"}],
            previous_response_id=first.id,
            instructions="Be brief.",
        )
        assert compacted.object == "response.compaction" and compacted.usage.output_tokens > 0
        *said, item = compacted.output
        assert [message.to_dict(warnings=False)["role"] for message in said] == ["user", "user"]
        assert item.type == "compaction"
        summary = read_summary(item.encrypted_content)
        assert summary is not None and "assistant: user: hi" in summary, "what the model was shown"
        items: Any = [one.to_dict(warnings=False) for one in compacted.output]
        again = sdk.responses.create(model=MODEL_ID, input=items)
        assert summary in again.output_text and "user: And then?" in again.output_text


def test_nothing_to_count_or_compact_is_named(http: httpx.Client) -> None:
    for path in ("input_tokens", "compact"):
        response = http.post(f"{PATH}/{path}", json={"model": MODEL_ID})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "input"


@pytest.mark.parametrize("text", ["", "Grüße 🎉", "x" * 10_000])
def test_summary_is_read_back(text: str) -> None:
    assert read_summary(write_summary(text)) == text


@pytest.mark.parametrize("text", ["", "gAAAAA==", "di1.#", "di1.AA", "di1.gA=="])
def test_summary_of_others_is_none(text: str) -> None:
    assert read_summary(text) is None


def test_oldest_turns_are_left_out_where_asked(listing: httpx.Client) -> None:
    def turn(name: str) -> list[dict[str, Any]]:
        call = {"type": "function_call", "call_id": name, "name": "f", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": name, "output": "one two " * 150}
        return [{"role": "user", "content": f"ask {name}"}, call, result]

    items = [{"role": "developer", "content": "Obey."}]
    for number in range(12):
        items += turn(f"t{number}")
    items.append({"role": "user", "content": "last"})
    assert listing.post(PATH, json={"input": items}).status_code == 400
    answer = ask(listing, items, truncation="auto", max_output_tokens=300)
    assert answer["truncation"] == "auto"
    used = answer["usage"]["input_tokens"]
    turn_tokens = listing.post(f"{PATH}/input_tokens", json={"input": turn("t9")}).json()[
        "input_tokens"
    ]
    assert used <= CONTEXT_LENGTH - 300 < used + 2 * turn_tokens
    prompt = listing.post(
        f"{PATH}/input_tokens", json={"input": items, "truncation": "auto"}
    ).json()
    assert used <= prompt["input_tokens"] < CONTEXT_LENGTH
    start = answer["output"][0]["content"][0]["text"]
    assert start.startswith("system: Obey.\nuser: ask t") and "ask t0" not in start
    kept = listing.get(f"{PATH}/{answer['id']}/input_items?order=asc").json()["data"]
    assert kept[1]["content"][0]["text"] == "ask t0", "the conversation is kept whole"


def test_truncation_does_nothing_to_what_fits_or_cannot(listing: httpx.Client) -> None:
    items = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert list_prompt(listing, items, truncation="auto") == "user: a\nuser: b\n"
    response = listing.post(PATH, json={"input": "one two " * CONTEXT_LENGTH, "truncation": "auto"})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_what_costs_nothing_is_accepted(http: httpx.Client) -> None:
    answer = ask(
        http,
        "hi",
        reasoning={"effort": "xhigh", "summary": "detailed"},
        text={"verbosity": "low"},
        include=["reasoning.encrypted_content", "web_search_call.action.sources"],
        service_tier="flex",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        safety_identifier="s",
        truncation="disabled",
        background=False,
        max_tool_calls=3,
        client_metadata={"x": "y"},
        max_output_tokens=2,
    )
    assert answer["reasoning"]["effort"] == "xhigh" and answer["text"]["verbosity"] == "low"
    assert answer["max_tool_calls"] == 3 and answer["service_tier"] == "default"
    options = {"include_obfuscation": True}
    assert stream(http, "hi", stream_options=options, max_output_tokens=1)


@pytest.mark.parametrize(("effort", "shown"), [("xhigh", "high"), ("max", "high"), ("low", "low")])
def test_template_sees_an_effort_that_it_knows(
    tmp_path_factory: pytest.TempPathFactory, effort: str, shown: str
) -> None:
    template = LISTING_TEMPLATE + "{{ reasoning_effort }}"
    with serving_template(tmp_path_factory.mktemp("effort"), template) as server:
        with client_of(server) as client:
            prompt = list_prompt(client, "hi", reasoning={"effort": effort})
    assert prompt == f"user: hi\n{shown}"
