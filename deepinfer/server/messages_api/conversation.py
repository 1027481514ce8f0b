"""From Anthropic's messages to the chat that the one generation path answers.

A body that was accepted cannot make a wrong chat, so nothing is checked again. Thoughts are handed
on, and the template says which of them the model sees again. Turns of one role that follow each
other become one, as templates expect it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages import CalledFunction, ChatMessage, ToolCall
from deepinfer.server.messages_api.blocks import Block, Thinking, ToolResult, ToolUse, join_texts
from deepinfer.server.messages_api.body import InputMessage, MessagesBody, PromptBody

# Fields of the chat under the names that this route's clients know.
PARAM_NAMES = {
    "continue_final_message": "messages",
    "stop": "stop_sequences",
    "tools[].function.parameters": "tools[].input_schema",
}
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
INLINE_MESSAGES = 200  # above it the chat is made in a thread
ERROR_MARK = "Error: "  # chats have no other way to say that a tool has failed


def as_chat(body: PromptBody) -> ChatBody:
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": _conversation(body),
        "add_generation_prompt": not body.is_prefilled,
        "continue_final_message": body.is_prefilled,
        "tools": [tool.as_chat_tool() for tool in body.client_tools],
        "chat_template_kwargs": _template_arguments(body),
    }
    # A call that is required is the whole answer, whatever form a text would have.
    if body.tool_choice is None or body.tool_choice.as_wish.mode != "required":
        fields["response_format"] = body.grammar
    if body.tool_choice is not None:
        fields["tool_choice"] = body.tool_choice.as_wish
        fields["parallel_tool_calls"] = not body.tool_choice.disable_parallel_tool_use
    if body.output_config is not None and body.output_config.effort is not None:
        fields["reasoning_effort"] = EFFORTS[body.output_config.effort]
    if isinstance(body, MessagesBody):
        fields |= _sampling(body)
    return ChatBody.model_construct(**fields)


async def as_chat_off_loop(body: PromptBody) -> ChatBody:
    """The same; of a long conversation in a thread."""
    if len(body.messages) <= INLINE_MESSAGES:
        return as_chat(body)
    return await asyncio.to_thread(as_chat, body)


def _sampling(body: MessagesBody) -> dict[str, Any]:
    return {
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences,
    }


def _template_arguments(body: PromptBody) -> dict[str, Any]:
    if body.thinking is None:
        return {}
    # Templates know the switch under one of two names.
    is_on = body.thinking.type != "disabled"
    return {"enable_thinking": is_on, "thinking": is_on}


def _conversation(body: PromptBody) -> list[ChatMessage]:
    turns = [turn for message in body.messages for turn in _turns(message)]
    if body.messages[-1].role == "assistant" and not body.is_prefilled:
        turns.pop()  # an empty beginning of the answer
    if body.system:
        turns.insert(0, _say("system", body.system))
    runs: list[list[ChatMessage]] = []  # of turns that become one
    for turn in turns:
        if runs and _belong_together(runs[-1][-1], turn):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return [_merge(run) for run in runs]


def _turns(message: InputMessage) -> Iterator[ChatMessage]:
    if message.role == "assistant":
        thoughts = [block.text for block in message.content if isinstance(block, Thinking)]
        calls = _calls(message.content)
        yield _say("assistant", join_texts(message.content), calls, _join_thoughts(thoughts))
        return
    runs = groupby(message.content, key=lambda block: isinstance(block, ToolResult))
    for _, run in runs:
        blocks = tuple(run)
        if isinstance(blocks[0], ToolResult):
            yield from (_result(block) for block in blocks if isinstance(block, ToolResult))
        else:
            yield _say(message.role, join_texts(blocks))


def _say(
    role: str, content: str, tool_calls: list[ToolCall] | None = None, thoughts: str | None = None
) -> ChatMessage:
    return ChatMessage.model_construct(
        role=role,
        content=content,
        tool_calls=tool_calls or [],
        reasoning_content=thoughts,
    )


def _calls(blocks: tuple[Block, ...]) -> list[ToolCall]:
    return [
        ToolCall.model_construct(
            id=block.id,
            function=CalledFunction.model_construct(
                name=block.name, arguments=json.dumps(block.input, ensure_ascii=False)
            ),
        )
        for block in blocks
        if isinstance(block, ToolUse)
    ]


def _result(block: ToolResult) -> ChatMessage:
    content = f"{ERROR_MARK}{block.text}" if block.is_error else block.text
    return ChatMessage.model_construct(role="tool", content=content, tool_call_id=block.tool_use_id)


def _belong_together(first: ChatMessage, second: ChatMessage) -> bool:
    return first.role == second.role and first.role != "tool" and not first.tool_calls


def _merge(run: Sequence[ChatMessage]) -> ChatMessage:
    """One turn of several; joined at once, since each join copies all of the text."""
    if len(run) == 1:
        return run[0]
    texts = [turn.content for turn in run if turn.content]
    thoughts = _join_thoughts([turn.thoughts for turn in run])
    return _say(run[0].role, "\n".join(texts), run[-1].tool_calls, thoughts)


def _join_thoughts(thoughts: Iterable[str | None]) -> str | None:
    return "\n".join(filter(None, thoughts)) or None
