"""What `context_management` clears from a conversation, and what is reported of it.

An edit whose threshold is not reached, or that would save no token, does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from deepinfer.errors import UnsupportedParameter
from deepinfer.server.engines import ServedEngine
from deepinfer.server.messages_api.answer import AppliedEdit, ClearedThinking, ClearedToolUses
from deepinfer.server.messages_api.blocks import Block, Thinking, ToolResult, ToolUse
from deepinfer.server.messages_api.body import InputMessage, PromptBody
from deepinfer.server.messages_api.context_edits import ClearThinking, ClearToolUses, Compact
from deepinfer.server.messages_api.conversation import as_chat_off_loop
from deepinfer.server.prepare import tokenize_chat_body

CLEARED_RESULT = "[result cleared to save room]"

BodyT = TypeVar("BodyT", bound=PromptBody)


@dataclass(frozen=True)
class ClearedPrompt(Generic[BodyT]):
    """A request without what was to be cleared from its conversation."""

    body: BodyT
    applied: tuple[AppliedEdit, ...] = ()


async def count_tokens(engine: ServedEngine, body: PromptBody) -> int:
    return len(await tokenize_chat_body(engine, await as_chat_off_loop(body)))


async def clear_prompt(engine: ServedEngine, body: BodyT) -> ClearedPrompt[BodyT]:
    """Apply the request's edits in order. Tokens are counted only where an edit may do something.

    Raises UnsupportedParameter for a compaction whose threshold is reached, and what
    `tokenize_chat_body` raises.
    """
    applied: list[AppliedEdit] = []
    num_tokens: int | None = None
    for index, edit in enumerate(body.context_edits):
        if isinstance(edit, Compact):
            num_tokens = num_tokens or await count_tokens(engine, body)
            if num_tokens >= edit.trigger.value:
                raise _cannot_compact(index, num_tokens)
            continue
        calls = _find_calls(body.messages)
        if isinstance(edit, ClearToolUses):
            messages, num_cleared = _clear_tool_uses(body.messages, calls, edit)
        else:
            messages, num_cleared = _clear_thinking(body.messages, edit)
        if not num_cleared:
            continue
        num_tokens = num_tokens or await count_tokens(engine, body)
        if isinstance(edit, ClearToolUses):
            reached = len(calls) if edit.trigger.type == "tool_uses" else num_tokens
            if reached < edit.trigger.value:
                continue
        cleared = body.model_copy(update={"messages": messages})
        saved = num_tokens - await count_tokens(engine, cleared)
        least = 1
        if isinstance(edit, ClearToolUses) and edit.clear_at_least is not None:
            least = max(edit.clear_at_least.value, least)
        if saved < least:
            continue
        body, num_tokens = cleared, num_tokens - saved
        applied.append(
            ClearedToolUses(cleared_tool_uses=num_cleared, cleared_input_tokens=saved)
            if isinstance(edit, ClearToolUses)
            else ClearedThinking(cleared_thinking_turns=num_cleared, cleared_input_tokens=saved)
        )
    return ClearedPrompt(body, tuple(applied))


def _cannot_compact(index: int, num_tokens: int) -> UnsupportedParameter:
    place = f"context_management.edits[{index}]"
    return UnsupportedParameter(
        f"`{place}` asks for a summary of the conversation, whose {num_tokens:,} tokens reach its "
        "`trigger`; this server makes none. Leave the edit out, or set a higher `trigger`",
        param=f"{place}.type",
    )


def _find_calls(messages: Sequence[InputMessage]) -> dict[str, str]:
    """The name of the tool of each call, by its id, in order."""
    blocks = (block for message in messages for block in message.content)
    return {block.id: block.name for block in blocks if isinstance(block, ToolUse)}


def _clear_tool_uses(
    messages: list[InputMessage], calls: dict[str, str], edit: ClearToolUses
) -> tuple[list[InputMessage], int]:
    """The messages, and the number of calls whose results were cleared."""
    old = list(calls)[: max(len(calls) - edit.keep.value, 0)]
    cleared_calls = {id_ for id_ in old if calls[id_] not in edit.exclude_tools}
    num_cleared = 0

    def clear(block: Block) -> Block:
        nonlocal num_cleared
        if isinstance(block, ToolResult) and block.tool_use_id in cleared_calls:
            num_cleared += 1
            return replace(block, text=CLEARED_RESULT)
        if isinstance(block, ToolUse) and block.id in cleared_calls:
            return replace(block, input={}) if edit.clears_input_of(block.name) else block
        return block

    edited = [
        message.model_copy(update={"content": tuple(map(clear, message.content))})
        for message in messages
    ]
    return edited, num_cleared


def _clear_thinking(
    messages: list[InputMessage], edit: ClearThinking
) -> tuple[list[InputMessage], int]:
    """The messages, and the number of turns whose thoughts were cleared."""
    turns = [
        index
        for index, message in enumerate(messages)
        if any(isinstance(block, Thinking) for block in message.content)
    ]
    num_cleared = 0 if edit.keep is None else max(len(turns) - edit.keep.value, 0)
    edited = list(messages)
    for index in turns[:num_cleared]:
        rest = tuple(b for b in messages[index].content if not isinstance(b, Thinking))
        edited[index] = messages[index].model_copy(update={"content": rest})
    return edited, num_cleared
