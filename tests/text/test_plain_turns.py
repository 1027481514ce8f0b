"""Any chat in turns that a template takes: no tools, and one system turn or none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepinfer.errors import InvalidValue
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.plain_turns import fold_system_turns, write_tools_as_text
from deepinfer.text.template_abilities import TemplateAbilities
from tests.text.chat_templates import CHATML, LLAMA_3, MISTRAL

# As Gemma's: no system, and turns alternate.
STRICT = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
)
# Takes a first system turn and passes over others without a word.
FORGETFUL = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}</system>{% endif %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
LAST_ONLY = "{{ messages[-1].content }}"
TOOL = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"zone": "é"}}}


def turn(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize(
    ("source", "takes_system", "takes_any_system"),
    [
        pytest.param(CHATML, True, True, id="chatml"),
        pytest.param(LLAMA_3, True, True, id="llama-3"),
        pytest.param(MISTRAL, True, False, id="mistral"),
        pytest.param(FORGETFUL, True, False, id="forgetful"),
        pytest.param(STRICT, False, False, id="strict"),
        pytest.param(LAST_ONLY, True, True, id="last-only"),
        pytest.param("{{ raise_exception('no') }}", True, True, id="refuses-all"),
    ],
)
def test_what_a_template_takes_is_found_by_trying_it(
    source: str, takes_system: bool, takes_any_system: bool
) -> None:
    found = template(source).abilities(has_tools=False)
    assert (found.takes_system, found.takes_any_system) == (takes_system, takes_any_system)


def test_calls_are_shown_by_a_template_that_writes_names_arguments_and_results() -> None:
    shows = "{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls | tojson if "
    shows += "m.tool_calls }}{% endfor %}"
    assert template(shows).abilities(has_tools=True).shows_calls
    assert not template(CHATML).abilities(has_tools=True).shows_calls


SYSTEMS = {
    "two in front": [turn("system", "A"), turn("system", "B"), turn("user", "u")],
    "in the middle": [
        turn("system", "A"),
        turn("user", "u"),
        turn("assistant", "a"),
        turn("system", "B"),
        turn("user", "v"),
    ],
    "at the end": [turn("user", "u"), turn("system", "A"), turn("system", "B")],
}


@pytest.mark.parametrize("source", [MISTRAL, FORGETFUL, STRICT], ids=["mistral", "first", "none"])
@pytest.mark.parametrize("messages", SYSTEMS.values(), ids=SYSTEMS)
def test_several_system_turns_become_one_that_the_template_shows(
    source: str, messages: list[dict[str, Any]]
) -> None:
    one = template(source)
    folded = fold_system_turns(messages, one.abilities(has_tools=False))
    assert "A\n\nB" in one.render(folded)
    users = [message["content"] for message in messages if message["role"] == "user"]
    assert all(user in one.render(folded) for user in users)


def test_one_system_turn_in_front_and_a_template_that_takes_all_are_left_alone() -> None:
    alone = [turn("system", "A"), turn("user", "u")]
    once = TemplateAbilities(takes_any_system=False)
    assert fold_system_turns(alone, once) == alone
    for messages in SYSTEMS.values():
        assert fold_system_turns(messages, TemplateAbilities()) == messages


def test_system_without_a_user_is_said_by_one() -> None:
    none = TemplateAbilities(takes_system=False, takes_any_system=False)
    messages = [turn("system", "A"), turn("assistant", "a")]
    assert fold_system_turns(messages, none) == [turn("user", "A"), turn("assistant", "a")]


def test_tools_calls_and_results_are_text_that_the_strictest_template_takes() -> None:
    messages = [
        turn("system", "Be brief."),
        turn("user", "What time is it?"),
        turn("assistant", "Let me see.", tool_calls=[CALL, CALL]),
        turn("tool", "noon", tool_call_id="1"),
        turn("tool", "night", tool_call_id="2"),
        turn("user", "Thanks"),
        turn("assistant", ""),
    ]
    plain = write_tools_as_text(messages, [TOOL])
    one = template(STRICT)
    with pytest.raises(InvalidValue):
        one.render(plain)
    prompt = one.render(fold_system_turns(plain, one.abilities(has_tools=False)))
    assert prompt.startswith("<user>Be brief.")
    assert json.dumps(TOOL["function"]) in prompt
    call = f"<tool_call>\n{json.dumps(CALL['function'], ensure_ascii=False)}\n</tool_call>"
    assert f"<assistant>Let me see.\n{call}\n{call}</assistant>" in prompt
    results = "<tool_response>\nnoon\n</tool_response>\n<tool_response>\nnight\n</tool_response>"
    assert f"<user>{results}\n\nThanks</user>" in prompt


def test_chat_without_tools_stays_as_it_is() -> None:
    messages = [turn("system", "A"), turn("user", "u"), turn("user", "v")]
    assert write_tools_as_text(messages, []) == messages
