"""POST /v1/messages through the Anthropic SDK: answers, their blocks, and why they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.server.messaging import (
    CALL,
    INPUT,
    LISTING_TEMPLATE,
    SAYING_TEMPLATE,
    WEATHER,
    assistant,
    messages_client,
    serving_template,
    user,
)
from tests.server.serving import (
    CONTEXT_LENGTH,
    DEADLINE_S,
    LOAD_MS,
    MODEL_ID,
    ServerProcess,
    client_of,
    make_echo_engine,
    starting,
)

THOUGHT = "<think>two and two</think>four"


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with messages_client(server) as client:
        yield client


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    """Answers with the last message."""
    with serving_template(tmp_path_factory.mktemp("saying"), SAYING_TEMPLATE) as server:
        with messages_client(server) as client:
            yield client


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Answers with all that the chat template was given."""
    with serving_template(tmp_path_factory.mktemp("listing"), LISTING_TEMPLATE) as server:
        yield server


def ask(
    client: anthropic.Anthropic, *messages: dict[str, Any], **fields: Any
) -> anthropic.types.Message:
    body = {"model": MODEL_ID, "max_tokens": 1000, "messages": messages} | fields
    answer: anthropic.types.Message = client.messages.create(**body)
    return answer


def say(client: anthropic.Anthropic, text: str, **fields: Any) -> anthropic.types.Message:
    return ask(client, user(text), **fields)


def list_prompt(server: ServerProcess, *messages: dict[str, Any], **fields: Any) -> str:
    with messages_client(server) as client:
        (block,) = ask(client, *messages, **fields).content
    assert block.type == "text"
    return block.text


def test_answer_is_a_message(sdk: anthropic.Anthropic) -> None:
    answer = ask(sdk, user("Grüße 🎉"), system="Be brief.")
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL_ID)
    (block,) = answer.content
    assert block.type == "text"
    assert block.text == "system: Be brief.\nuser: Grüße 🎉\nassistant:"
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.input_tokens > 1 and answer.usage.output_tokens > 1
    assert answer.usage.cache_read_input_tokens is None, "what is not known is not said"


async def test_async_answer_and_stream(server: ServerProcess) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=server.url, api_key="x", max_retries=0, timeout=DEADLINE_S
    ) as client:
        body: dict[str, Any] = {"model": MODEL_ID, "max_tokens": 99, "messages": [user("hi")]}
        answer = await client.messages.create(**body)
        async with client.messages.stream(**body) as stream:
            texts = [text async for text in stream.text_stream]
    assert answer.content[0].type == "text"
    assert "".join(texts) == answer.content[0].text == "user: hi\nassistant:"


def test_request_id_is_the_servers(sdk: anthropic.Anthropic) -> None:
    raw = sdk.messages.with_raw_response.create(
        model=MODEL_ID, max_tokens=1, messages=[{"role": "user", "content": "x"}]
    )
    assert raw.headers["request-id"] == raw.headers["x-request-id"]


def test_length_ends_an_answer(sdk: anthropic.Anthropic) -> None:
    answer = ask(sdk, user("a b c d e f"), max_tokens=3)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.parametrize("tools", [[], [WEATHER]], ids=["plain", "tools"])
def test_zero_tokens_are_an_empty_answer(sdk: anthropic.Anthropic, tools: list[Any]) -> None:
    """By Anthropic's reference: it fills the cache of prompts."""
    prompt = ask(sdk, user("a b c"), tools=tools).usage.input_tokens
    answer = ask(sdk, user("a b c"), max_tokens=0, tools=tools)
    assert (answer.content, answer.stop_reason) == ([], "max_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (prompt, 0)
    with sdk.messages.stream(
        model=MODEL_ID, max_tokens=0, messages=[{"role": "user", "content": "a b c"}], tools=tools
    ) as stream:
        end = stream.get_final_message()
    assert (end.content, end.stop_reason, end.usage.output_tokens) == ([], "max_tokens", 0)


def test_answer_is_as_long_as_the_context_has_room(sdk: anthropic.Anthropic) -> None:
    answer = ask(sdk, user("one two " * 450), max_tokens=CONTEXT_LENGTH)
    assert answer.stop_reason == "model_context_window_exceeded"
    assert answer.usage.input_tokens + answer.usage.output_tokens == CONTEXT_LENGTH


def test_stop_sequence_is_named(saying: anthropic.Anthropic) -> None:
    stops = [f"unused {i}" for i in range(60)] + ["STOP", "STOP here"]
    answer = say(saying, "go on STOP here", stop_sequences=stops)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "STOP")
    assert answer.content[0].type == "text" and answer.content[0].text == "go on "


def test_call_is_a_block_with_its_input(saying: anthropic.Anthropic) -> None:
    answer = say(saying, f"Let me see. {CALL}", tools=[WEATHER])
    text, call = answer.content
    assert text.type == "text" and text.text.strip() == "Let me see."
    assert call.type == "tool_use" and call.id.startswith("toolu_")
    assert (call.name, call.input) == ("get_weather", INPUT)
    assert answer.stop_reason == "tool_use"


def test_blocks_stand_in_the_order_of_the_text(saying: anthropic.Anthropic) -> None:
    answer = say(saying, f"<think>hm</think>one{CALL}two{CALL}", tools=[WEATHER])
    kinds = [block.type for block in answer.content]
    assert kinds == ["thinking", "text", "tool_use", "text", "tool_use"]
    ids = {block.id for block in answer.content if block.type == "tool_use"}
    assert len(ids) == 2


@pytest.mark.parametrize("is_stream", [False, True])
def test_tool_runner_of_the_sdk_goes_on_without_a_thread(
    saying: anthropic.Anthropic, is_stream: bool
) -> None:
    @anthropic.beta_tool
    def get_weather(city: str, days: int) -> str:
        """Say the weather."""
        return f"{days} days of sun in {city}"

    with pytest.raises(anthropic.BadRequestError, match="`thread`"):
        say(saying, "x", extra_body={"thread": {"type": "create"}})
    runner = saying.beta.messages.tool_runner(
        model=MODEL_ID, max_tokens=200, tools=[get_weather], messages=[user(CALL)], stream=is_stream
    )
    last = runner.until_done()
    assert last.content[0].text == f"2 days of sun in {INPUT['city']}"


@pytest.mark.parametrize("stop_sequences", [[], ["days"]])
def test_call_that_ends_early_stays_text(
    saying: anthropic.Anthropic, stop_sequences: list[str]
) -> None:
    """As a block its input would be an object, which clients run as if it were whole."""
    text = CALL.partition("days")[0]
    begun = text if not stop_sequences else CALL
    answer = say(saying, begun, tools=[WEATHER], stop_sequences=stop_sequences)
    (block,) = answer.content
    assert block.type == "text" and block.text == text
    assert answer.stop_reason == ("stop_sequence" if stop_sequences else "end_turn")


def test_call_that_is_no_json_stays_text(saying: anthropic.Anthropic) -> None:
    broken = 'see <tool_call>\n{"name": "get_weather", "arguments": {"city": oops}}\n</tool_call>'
    answer = say(saying, broken, tools=[WEATHER])
    assert [block.type for block in answer.content] == ["text"]
    assert answer.content[0].type == "text" and answer.content[0].text == broken
    assert answer.stop_reason == "end_turn"


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}])
def test_without_an_offer_nothing_is_a_call(
    saying: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    answer = say(saying, CALL, **fields)
    assert answer.content[0].type == "text" and answer.content[0].text == CALL


@pytest.mark.parametrize("is_disabled", [False, True])
def test_answer_may_end_with_its_first_call(saying: anthropic.Anthropic, is_disabled: bool) -> None:
    choice = {"type": "auto", "disable_parallel_tool_use": is_disabled}
    answer = say(saying, f"{CALL} and {CALL}", tools=[WEATHER], tool_choice=choice)
    kinds = [block.type for block in answer.content]
    assert kinds == (["tool_use"] if is_disabled else ["tool_use", "text", "tool_use"])
    assert answer.stop_reason == "tool_use"


def test_thoughts_are_a_block(saying: anthropic.Anthropic) -> None:
    thinking, text = say(saying, THOUGHT).content
    assert thinking.type == "thinking"
    assert (thinking.thinking, thinking.signature) == ("two and two", "")
    assert text.type == "text" and text.text == "four"


def test_thoughts_can_be_omitted(saying: anthropic.Anthropic) -> None:
    fields = {"thinking": {"type": "adaptive", "display": "omitted"}}
    thinking, text = say(saying, THOUGHT, **fields).content
    assert thinking.type == "thinking" and thinking.thinking == ""
    assert text.type == "text" and text.text == "four"


THINKING: list[tuple[dict[str, Any], str]] = [
    ({}, "unset"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "True"),
    ({"thinking": {"type": "adaptive"}}, "True"),
    ({"thinking": {"type": "disabled"}}, "False"),
    ({"output_config": {"effort": "low"}}, "unsetlow"),
    ({"output_config": {"effort": "max"}}, "unsethigh"),
]


@pytest.mark.parametrize(("fields", "shown"), THINKING)
def test_template_is_told_to_think(
    saying: anthropic.Anthropic, fields: dict[str, Any], shown: str
) -> None:
    (block,) = say(saying, "thinking?", **fields).content
    assert block.type == "text" and block.text == f"thinking?{shown}"


def test_tool_round_trip(saying: anthropic.Anthropic, listing: ServerProcess) -> None:
    first = say(saying, f"<think>hm</think>I look.{CALL}", tools=[WEATHER])
    call = first.content[-1]
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    prompt = list_prompt(
        listing,
        user("How is it?"),
        assistant([block.model_dump() for block in first.content]),
        user([result, {"type": "text", "text": "So?"}]),
        tools=[WEATHER],
    )
    lines = prompt.splitlines()
    assert '"name": "get_weather"' in lines[0] and '"parameters"' in lines[0]
    assert lines[1:] == [
        "user: How is it?",
        'assistant: I look.[get_weather {"city": "Zoë\'s {town}", "days": 2}]',
        f"tool {call.id}: sunny",
        "user: So?",
    ]


def test_failed_tool_is_marked(listing: ServerProcess) -> None:
    texts = [{"type": "text", "text": "no"}, {"type": "text", "text": "such town"}]
    result = {"type": "tool_result", "tool_use_id": "1", "content": texts, "is_error": True}
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    prompt = list_prompt(listing, user("x"), assistant([call]), user([result]))
    assert prompt.endswith("tool 1: Error: no\nsuch town\n")


def test_history_has_no_thoughts_and_no_turn_twice(listing: ServerProcess) -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "x"}
    redacted = {"type": "redacted_thinking", "data": "x"}
    said = {"type": "text", "text": "yes", "cache_control": {"type": "ephemeral"}}
    prompt = list_prompt(
        listing,
        user("a"),
        user("b"),
        assistant([thinking, redacted, said]),
        user([{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]),
        {"role": "system", "content": "later"},
        user("e"),
        system=[{"type": "text", "text": "s"}, {"type": "text", "text": "t"}],
    )
    assert prompt == (
        "system: s\nt\nuser: a\nb\nassistant: yes\nuser: c\nd\nsystem: later\nuser: e\n"
    )


def test_final_assistant_message_is_continued(sdk: anthropic.Anthropic) -> None:
    answer = ask(sdk, user("2 + 2?"), assistant("The answer is"))
    assert answer.content[0].type == "text"
    assert answer.content[0].text.endswith("user: 2 + 2?\nassistant: The answer is")


def test_empty_final_message_begins_nothing(sdk: anthropic.Anthropic) -> None:
    answer = ask(sdk, user("x"), assistant(""))
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "user: x\nassistant:"


COUNTED: dict[str, dict[str, Any]] = {
    "text": {"messages": [user("one two three")]},
    "system": {"messages": [user("one")], "system": "Be brief"},
    "prefill": {"messages": [user("one"), assistant("two")]},
    "tools": {"messages": [user("one")], "tools": [WEATHER]},
    "tools not offered": {
        "messages": [user("one")],
        "tools": [WEATHER],
        "tool_choice": {"type": "none"},
    },
    "thinking": {"messages": [user("thinking?")], "thinking": {"type": "disabled"}},
}


@pytest.mark.parametrize("body", COUNTED.values(), ids=COUNTED)
@pytest.mark.parametrize("kind", ["saying", "listing"])
def test_count_is_what_an_answer_is_charged(
    request: pytest.FixtureRequest, kind: str, body: dict[str, Any]
) -> None:
    served = request.getfixturevalue(kind)
    url = str(served.base_url) if kind == "saying" else served.url
    with httpx.Client(base_url=url, timeout=DEADLINE_S) as http:
        body = {"model": MODEL_ID, "max_tokens": 5} | body
        counted = http.post("/v1/messages/count_tokens", json=body).json()
        answered = http.post("/v1/messages", json=body).json()
    assert counted == {"input_tokens": answered["usage"]["input_tokens"]}


def test_prompt_of_any_length_can_be_counted(sdk: anthropic.Anthropic) -> None:
    count = sdk.messages.count_tokens(
        model=MODEL_ID, messages=[{"role": "user", "content": "one two " * CONTEXT_LENGTH}]
    )
    assert count.input_tokens > CONTEXT_LENGTH


def test_tokens_are_counted_while_the_engine_loads(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", load_ms=LOAD_MS)
    body = {"messages": [user("one two")], "max_tokens": 1}
    with starting(tmp_path) as server, client_of(server) as http:
        assert http.get("/health").json()["error"]["code"] == "engine_loading"
        early = http.post("/v1/messages/count_tokens", json=body)
        server.wait_ready()
        answered = http.post("/v1/messages", json=body).json()
    assert early.json() == {"input_tokens": answered["usage"]["input_tokens"]}


def test_models_are_listed_in_either_shape(sdk: anthropic.Anthropic, server: ServerProcess) -> None:
    page = sdk.models.list()
    assert [model.id for model in page] == [MODEL_ID]
    assert (page.first_id, page.last_id, page.has_more) == (MODEL_ID, MODEL_ID, False)
    model = sdk.models.retrieve(MODEL_ID)
    assert (model.type, model.display_name, model.created_at.year) == ("model", MODEL_ID, 2026)
    assert model.max_input_tokens == CONTEXT_LENGTH - 1
    with client_of(server) as http:
        assert http.get("/v1/models").json()["object"] == "list"
        assert http.get(f"/v1/models/{MODEL_ID}").json()["object"] == "model"
