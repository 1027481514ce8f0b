"""Chats in turns that any template takes: one system turn in front, or none, and no tools.

Tools, calls and their results become text of ordinary turns, and system turns become one. Messages
come and go as templates take them, with texts as their content; none of them is changed in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepinfer.text.template_abilities import TemplateAbilities

Message = Mapping[str, Any]

BETWEEN = "\n\n"  # texts of turns that become one
INTRODUCTION = (
    "You can call functions. These are described here, each as a JSON object on a line of its own:"
)
INSTRUCTION = (
    "To call a function, write its name and its arguments as JSON between these tags, and nothing "
    "after them:\n"
    '<tool_call>\n{"name": "the function", "arguments": {"a parameter": "its value"}}\n'
    "</tool_call>\n"
    "Write one such block for each call. The results follow in the next turn, in <tool_response> "
    "blocks in the same order. Call a function only where it helps to answer; otherwise answer in "
    "words."
)


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """What the system turn says of `tools`, which are as templates take them."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return "\n".join([INTRODUCTION, *lines, "", INSTRUCTION])


def write_tools_as_text(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[Message]:
    """The same chat without tools, calls and results of their own."""
    plain: list[Message] = []
    if tools:
        description: Message = {"role": "system", "content": describe_tools(tools)}
        if messages and messages[0]["role"] == "system":
            description = _joined(messages[0], description)
            messages = messages[1:]
        plain.append(description)
    is_after_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        turn = _as_user(message) if is_result else _with_calls_in_text(message)
        # Many templates want turns of users and the assistant to alternate.
        if plain and plain[-1]["role"] == turn["role"] == "user" and (is_result or is_after_result):
            turn = _joined(plain.pop(), turn, between="\n" if is_result else BETWEEN)
        plain.append(turn)
        is_after_result = is_result
    return plain


def fold_system_turns(messages: Sequence[Message], abilities: TemplateAbilities) -> list[Message]:
    """The same chat with system turns that the template takes.

    What several say becomes one in front; where the template takes none at all, the first user
    says it.
    """
    is_system = [message["role"] == "system" for message in messages]
    if abilities.takes_any_system or not any(is_system):
        return list(messages)
    if abilities.takes_system and is_system[0] and not any(is_system[1:]):
        return list(messages)
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    folded = system[0]
    for message in system[1:]:
        folded = _joined(folded, message)
    if abilities.takes_system:
        return [folded, *rest]
    folded = {**folded, "role": "user"}
    if rest and rest[0]["role"] == "user":
        return [_joined(folded, rest[0]), *rest[1:]]
    return [folded, *rest]


def _as_user(result: Message) -> Message:
    return {"role": "user", "content": f"<tool_response>\n{result['content']}\n</tool_response>"}


def _with_calls_in_text(message: Message) -> Message:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    if not calls:
        return message
    blocks = [
        f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls
    ]
    said = [message["content"]] if message["content"] else []
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join([*said, *blocks])}


def _joined(first: Message, second: Message, between: str = BETWEEN) -> Message:
    texts = [message["content"] for message in (first, second) if message["content"]]
    return {**first, "content": between.join(texts)}
