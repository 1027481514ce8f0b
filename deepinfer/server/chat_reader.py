"""What a chat answer's text comes to: what the model thought, what it says, which tools it calls.

One reader for each choice turns pieces of text into parts, the same for a stream and for a whole
answer. It knows neither tokens nor how a part is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec

from deepinfer.generation import TokenId
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.prepare import Plan
from deepinfer.text.reasoning import Reasoning, ReasoningParser, opens_reasoning
from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ToolCallParser,
)
from deepinfer.text.tool_choice import open_parser

PROMPT_END_TOKENS = 16  # enough to see an opened block of reasoning and the white space after it


class CallPart(msgspec.Struct, frozen=True):
    """More of one tool call. `id` and `name` come once, with its first part."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ChatPart(msgspec.Struct, frozen=True):
    """What a piece of text adds to an answer."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A call that the model has written whole."""

    id: str
    name: str
    arguments: str


@dataclass
class _OpenCall:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass
class ChatReader:
    """Reads one choice. `calls` are its whole ones so far, by index."""

    reasoning: ReasoningParser | None = None
    tools: ToolCallParser | None = None
    new_id: Callable[[], str] = field(default=lambda: f"call_{uuid4().hex}")
    calls: dict[int, ToolCall] = field(default_factory=dict)
    _open_calls: dict[int, _OpenCall] = field(default_factory=dict)

    def feed(self, text: str, *, is_over: bool = False) -> ChatPart:
        """What `text` adds; with `is_over` also what was held back."""
        thought, said = self._split(text, is_over)
        events = self._find_calls(said, is_over)
        parts = [part for event in events if (part := self._note(event)) is not None]
        content = "".join(event.text for event in events if isinstance(event, Content))
        return ChatPart(content, thought, tuple(parts))

    def _split(self, text: str, is_over: bool) -> tuple[str, str]:
        if self.reasoning is None:
            return "", text
        events = self.reasoning.feed(text)
        if is_over:
            events += self.reasoning.close()
        thought = "".join(event.text for event in events if isinstance(event, Reasoning))
        return thought, "".join(event.text for event in events if isinstance(event, Content))

    def _find_calls(self, text: str, is_over: bool) -> list[Event]:
        if self.tools is None:
            return [Content(text)] if text else []
        events = self.tools.feed(text)
        return events + self.tools.close() if is_over else events

    def _note(self, event: Event) -> CallPart | None:
        if isinstance(event, CallStarted):
            call = _OpenCall(self.new_id(), event.name)
            self._open_calls[event.index] = call
            return CallPart(event.index, id=call.id, name=call.name)
        if isinstance(event, ArgumentsDelta):
            self._open_calls[event.index].arguments.append(event.json_text)
            return CallPart(event.index, event.json_text)
        if isinstance(event, CallEnded):
            call = self._open_calls.pop(event.index)
            self.calls[event.index] = ToolCall(call.id, call.name, "".join(call.arguments))
        elif isinstance(event, CallBroken):
            del self._open_calls[event.index]
        return None


def make_readers(engine: ServedEngine, body: ChatBody, plan: Plan) -> list[ChatReader] | None:
    """A reader for each choice; None when the text is all that an answer can be."""
    tool_format = engine.tool_format if body.offers_tools else None
    # The grammar of a required call leaves no room for thoughts.
    is_thinking = engine.is_thinking and not body.requires_call
    if not is_thinking and tool_format is None:
        return None
    return [
        ChatReader(
            _open_reasoning(engine, choice.request.prompt_token_ids) if is_thinking else None,
            None if tool_format is None else open_parser(tool_format),
        )
        for choice in plan.choices
    ]


def _open_reasoning(engine: ServedEngine, prompt: Sequence[TokenId]) -> ReasoningParser:
    detokenizer = engine.tokenizer.detokenizer(shown=engine.tokenizer.special_token_ids)
    return ReasoningParser(is_open=opens_reasoning(detokenizer.push(prompt[-PROMPT_END_TOKENS:])))
