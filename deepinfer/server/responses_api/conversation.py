"""From items to the messages of a chat: the one form that templates are written for.

A turn of the assistant is one message with its thoughts and calls, whatever number of items it came
in. Which thoughts the model sees again is for the template to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.server.messages import CalledFunction, ChatMessage, ToolCall
from deepinfer.server.responses_api.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
)


def as_messages(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """`items` have been checked; what comes out needs no further check either."""
    messages: list[ChatMessage] = []
    if instructions is not None:
        messages.append(ChatMessage.model_construct(role="system", content=instructions))
    thoughts: list[str] = []  # of the turn that follows
    for item in items:
        if isinstance(item, ReasoningItem):
            thoughts += [part.text for part in item.content]
        elif isinstance(item, MessageItem):
            content = "\n".join(item.texts)
            message = ChatMessage.model_construct(role=item.role, content=content)
            messages.append(_think(message, thoughts))
        elif isinstance(item, FunctionCallItem):
            if not messages or messages[-1].role != "assistant":
                messages.append(ChatMessage.model_construct(role="assistant", content=None))
            messages[-1] = _think(messages[-1], thoughts)
            messages[-1].tool_calls.append(_as_tool_call(item))
        elif isinstance(item, FunctionCallOutputItem):
            messages.append(
                ChatMessage.model_construct(
                    role="tool", content=item.output, tool_call_id=item.call_id
                )
            )
    return messages


def _think(message: ChatMessage, thoughts: list[str]) -> ChatMessage:
    """`message` with what was thought before it; thoughts before another's turn are dropped."""
    texts = [text for text in (message.thoughts, *thoughts) if text]
    thoughts.clear()
    if not texts or message.role != "assistant":
        return message
    return message.model_copy(update={"reasoning_content": "\n".join(texts)})


def _as_tool_call(item: FunctionCallItem) -> ToolCall:
    function = CalledFunction.model_construct(name=item.name, arguments=item.arguments)
    return ToolCall.model_construct(id=item.call_id, function=function)
