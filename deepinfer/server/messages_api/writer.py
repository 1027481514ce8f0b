"""The blocks of one answer, written as its text comes: the only way that a message is made.

A stream sends what each piece of text does to the blocks; a whole message is the blocks in the end.
A call becomes a block once it is whole, so that what looked like one and broke off is text in both,
or when the answer reaches its greatest length within it.
This module knows neither tokens nor how a block is rendered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec
from pydantic_core import from_json

from deepinfer.server.chat_reader import ChatReader, ToolCall
from deepinfer.server.ids import new_tool_use_id
from deepinfer.server.messages_api.answer import Block, TextBlock, ThinkingBlock, ToolUseBlock
from deepinfer.text.reasoning import Reasoning
from deepinfer.text.tool_calls import Content


class BlockStart(msgspec.Struct, frozen=True, gc=False):
    """A block begins, empty as yet; a call has its name."""

    index: int
    kind: Literal["text", "thinking", "tool_use"]
    id: str = ""
    name: str = ""


class BlockDelta(msgspec.Struct, frozen=True, gc=False):
    index: int
    kind: Literal["text", "thinking", "tool_use"]
    text: str


class BlockStop(msgspec.Struct, frozen=True, gc=False):
    index: int
    kind: Literal["text", "thinking", "tool_use"]


BlockEvent = BlockStart | BlockDelta | BlockStop


class BlockWriter:
    """Writes one answer. `blocks` are the whole ones so far."""

    def __init__(
        self,
        reader: ChatReader,
        *,
        shows_thinking: bool = True,
        new_id: Callable[[], str] = new_tool_use_id,
    ) -> None:
        self.blocks: list[Block] = []
        self.has_calls = False
        self._reader = reader
        self._shows_thinking = shows_thinking
        self._new_id = new_id
        self._open: Literal["text", "thinking"] | None = None
        self._texts: list[str] = []

    def write(self, text: str, *, is_over: bool, is_cut: bool = False) -> list[BlockEvent]:
        """What `text` does to the blocks; with `is_over` the last of them ends.

        `is_cut` says that it ends because the answer has reached its greatest length.
        """
        events: list[BlockEvent] = []
        for piece in self._reader.read(text, is_over=is_over, is_cut=is_cut):
            if isinstance(piece, ToolCall):
                events += self._add_call(piece)
            elif isinstance(piece, Content):
                events += self._add_text("text", piece.text)
            else:
                events += self._add_thought(piece)
        return events + self._close() if is_over else events

    def _add_thought(self, thought: Reasoning) -> list[BlockEvent]:
        return self._add_text("thinking", thought.text if self._shows_thinking else "")

    def _add_text(self, kind: Literal["text", "thinking"], text: str) -> list[BlockEvent]:
        events: list[BlockEvent] = []
        if self._open != kind:
            events += self._close()
            self._open = kind
            events.append(BlockStart(len(self.blocks), kind))
        if text:
            self._texts.append(text)
            events.append(BlockDelta(len(self.blocks), kind, text))
        return events

    def _add_call(self, call: ToolCall) -> list[BlockEvent]:
        events = self._close()
        index, id_ = len(self.blocks), self._new_id()
        # Of partial arguments the SDK makes what this parser does, so both ways agree.
        given = from_json(call.arguments or "{}", allow_partial=not call.is_whole)
        self.blocks.append(ToolUseBlock(id=id_, name=call.name, input=given))
        self.has_calls = True
        deltas = [BlockDelta(index, "tool_use", call.arguments)] if call.arguments else []
        return [
            *events,
            BlockStart(index, "tool_use", id_, call.name),
            *deltas,
            BlockStop(index, "tool_use"),
        ]

    def _close(self) -> list[BlockEvent]:
        """End the block that is being written, if there is one."""
        if self._open is None:
            return []
        text, kind = "".join(self._texts), self._open
        self._open, self._texts = None, []
        stop = BlockStop(len(self.blocks), kind)
        self.blocks.append(TextBlock(text=text) if kind == "text" else ThinkingBlock(thinking=text))
        return [stop]
