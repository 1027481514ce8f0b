"""From items to the messages of a chat: the one form that templates are written for.

A turn of the assistant is one message with its calls, whatever number of items it came in. Earlier
thoughts are left out, as templates of models that think do it themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.server.messages import CalledFunction, ChatMessage, ToolCall
from deepinfer.server.responses_api.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
)


def as_messages(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """`items` have been checked; what comes out needs no further check either."""
    messages: list[ChatMessage] = []
    if instructions is not None:
        messages.append(ChatMessage.model_construct(role="system", content=instructions))
    for item in items:
        if isinstance(item, MessageItem):
            content = "\n".join(item.texts)
            messages.append(ChatMessage.model_construct(role=item.role, content=content))
        elif isinstance(item, FunctionCallItem):
            _turn_of_assistant(messages).tool_calls.append(_as_tool_call(item))
        elif isinstance(item, FunctionCallOutputItem):
            messages.append(
                ChatMessage.model_construct(
                    role="tool", content=item.output, tool_call_id=item.call_id
                )
            )
    return messages


def _turn_of_assistant(messages: list[ChatMessage]) -> ChatMessage:
    """The last message if the assistant says it, else a new one."""
    if not messages or messages[-1].role != "assistant":
        messages.append(ChatMessage.model_construct(role="assistant", content=None))
    return messages[-1]


def _as_tool_call(item: FunctionCallItem) -> ToolCall:
    function = CalledFunction.model_construct(name=item.name, arguments=item.arguments)
    return ToolCall.model_construct(id=item.call_id, function=function)
