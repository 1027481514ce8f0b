"""What a chat template can do with system turns and calls, found by rendering a few small chats.

Templates differ in ways that their text does not show: one raises an error for a second system
turn, another leaves it out without a word. Nothing here knows what is done about it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepinfer.errors import InvalidValue
from deepinfer.text.template_bounds import TemplateTooSlow

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages], str]

# Words that no template says by itself.
FIRST_RULE, SECOND_RULE, NAME, VALUE = "qwxzrule", "qwxzorder", "qwxzname", "qwxzvalue"
EARLIER, ANSWER, LATER = "qwxzbefore", "qwxzreply", "qwxzafter"


@dataclass(frozen=True)
class TemplateAbilities:
    """`takes_system`: one system turn in front; `takes_any_system`: several, and in the middle."""

    takes_system: bool = True
    takes_any_system: bool = True
    shows_calls: bool = True


def find_abilities(render: Render) -> TemplateAbilities:
    """`render` makes a prompt of messages, or raises InvalidValue or TemplateTooSlow."""
    turns = [_turn("user", EARLIER), _turn("assistant", ANSWER), _turn("user", LATER)]
    if not _shows(render, turns, EARLIER, ANSWER, LATER):
        return TemplateAbilities()  # it leaves out what users say as well, and means to
    first, second = _turn("system", FIRST_RULE), _turn("system", SECOND_RULE)
    return TemplateAbilities(
        takes_system=_shows(render, [first, *turns], FIRST_RULE, EARLIER),
        takes_any_system=_shows(render, [first, second, *turns], FIRST_RULE, SECOND_RULE)
        and _shows(render, [first, *turns[:2], second, turns[2]], FIRST_RULE, SECOND_RULE),
        shows_calls=_shows_calls(render),
    )


def _turn(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def _shows_calls(render: Render) -> bool:
    # Some templates take ids of nine letters only.
    call = {"name": NAME, "arguments": {"key": VALUE}}
    calls = [{"id": "qwxzcall1", "type": "function", "function": call}]
    turns = [
        _turn("user", EARLIER),
        _turn("assistant", "", tool_calls=calls),
        _turn("tool", ANSWER, tool_call_id="qwxzcall1", name=NAME),
    ]
    return _shows(render, turns, NAME, VALUE, ANSWER)


def _shows(render: Render, messages: Messages, *texts: str) -> bool:
    try:
        prompt = render(messages)
    except (InvalidValue, TemplateTooSlow):
        return False
    return all(text in prompt for text in texts)
