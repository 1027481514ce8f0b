"""From items to the messages of a chat: the one form that templates are written for.

A turn of the assistant is one message with its thoughts and calls, whatever number of items it came
in. Which thoughts the model sees again is for the template to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from deepinfer.server.messages import CalledFunction, ChatMessage, ToolCall
from deepinfer.server.responses_api.compaction import INTRODUCTION, read_summary
from deepinfer.server.responses_api.items import (
    CustomCallItem,
    CustomCallOutputItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    NamespacedCallItem,
    NamespacedCustomCallItem,
    ReasoningItem,
)
from deepinfer.server.responses_api.tools import CUSTOM_ARGUMENT, name_in_chat


def as_messages(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """`items` have been checked; what comes out needs no further check either."""
    messages: list[ChatMessage] = []
    thoughts_of: list[list[str]] = []  # of each message; joined at once, as a join copies them all
    thoughts: list[str] = []  # of the assistant's message that follows
    if instructions is not None:
        messages.append(_message("system", instructions))
    for item in items:
        if isinstance(item, ReasoningItem):
            thoughts += item.texts
            continue
        if isinstance(item, MessageItem):
            messages.append(_message(item.role, "\n".join(item.texts)))
        elif isinstance(item, FunctionCallItem | CustomCallItem):
            if not messages or messages[-1].role != "assistant":
                messages.append(_message("assistant", None))
            messages[-1].tool_calls.append(_as_tool_call(item))
        elif isinstance(item, FunctionCallOutputItem | CustomCallOutputItem):
            messages.append(_message("tool", item.output, tool_call_id=item.call_id))
        else:
            summary = read_summary(item.encrypted_content)
            messages.append(_message("user", f"{INTRODUCTION}\n\n{summary}"))
        thoughts_of += [[] for _ in range(len(messages) - len(thoughts_of))]
        if messages[-1].role == "assistant":
            thoughts_of[-1] += filter(None, thoughts)
        thoughts.clear()
    return [
        message.model_copy(update={"reasoning_content": "\n".join(texts)}) if texts else message
        for message, texts in zip(messages, thoughts_of, strict=False)
    ]


def _message(role: str, content: str | None, *, tool_call_id: str | None = None) -> ChatMessage:
    return ChatMessage.model_construct(role=role, content=content, tool_call_id=tool_call_id)


def _as_tool_call(item: FunctionCallItem | CustomCallItem) -> ToolCall:
    name = item.name
    if isinstance(item, NamespacedCallItem | NamespacedCustomCallItem):
        name = name_in_chat(name, item.namespace)
    arguments = (
        json.dumps({CUSTOM_ARGUMENT: item.input}, ensure_ascii=False)
        if isinstance(item, CustomCallItem)
        else item.arguments
    )
    function = CalledFunction.model_construct(name=name, arguments=arguments)
    return ToolCall.model_construct(id=item.call_id, function=function)
