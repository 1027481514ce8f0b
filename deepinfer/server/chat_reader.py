"""What a chat answer's text comes to: what the model thought, what it says, which tools it calls.

One reader for each choice turns pieces of text into parts, the same for a stream and for a whole
answer. It knows neither tokens nor how a part is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec

from deepinfer.generation import TokenId
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.forced_calls import read_prompt_end
from deepinfer.server.prepare import Plan
from deepinfer.text.reasoning import Reasoning, ReasoningParser, opens_reasoning
from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallCut,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ToolCallParser,
    ToolFormat,
)
from deepinfer.text.tool_choice import open_parser
from deepinfer.text.tool_formats.first_call import FirstCallParser


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
    """A call as the model has written it; its arguments are partial where it is not whole."""

    id: str
    name: str
    arguments: str
    is_whole: bool = True


@dataclass
class _OpenCall:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass
class ChatReader:
    """Reads one choice. `calls` are its whole ones so far, by index.

    `cut_call` is the one that the answer ended in. A stream cannot take back the beginning that it
    has sent, so `feed` keeps it whatever ended the answer; `read`, which shows whole calls only,
    keeps it where the answer was not allowed to go on, and else has its text as content. Where an
    answer `must_call` it is nothing but calls, so what is left of one is no content either.

    Where the text must end with the first call, whoever makes the text has it read ahead, and
    `feed` and `read` then give what that has come to.
    """

    reasoning: ReasoningParser | None = None
    tools: ToolCallParser | None = None
    new_id: Callable[[], str] = field(default=lambda: f"call_{uuid4().hex}")
    calls: dict[int, ToolCall] = field(default_factory=dict)
    cut_call: ToolCall | None = None
    must_call: bool = False
    _open_calls: dict[int, _OpenCall] = field(default_factory=dict)
    _is_ahead: bool = False
    _thoughts: list[str] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    @property
    def written_calls(self) -> list[ToolCall]:
        """Every call of the answer in order, one that was cut included."""
        whole = [call for _, call in sorted(self.calls.items())]
        return whole if self.cut_call is None else [*whole, self.cut_call]

    def read_ahead(self, text: str) -> bool:
        """Whether a call has become whole. The text is not read again when it is fed."""
        self._is_ahead = True
        thought, said = self._split(text, False)
        events = self._find_calls(said)
        self._thoughts.append(thought)
        self._events += events
        return any(isinstance(event, CallEnded) for event in events)

    def feed(self, text: str, *, is_over: bool = False, is_cut: bool = False) -> ChatPart:
        """What `text` adds; with `is_over` also what was held back.

        `is_cut` says that the answer is over because it has reached its greatest length.
        """
        thought, events = self._take(text, is_over, is_cut)
        parts = [part for event in events if (part := self._note(event)) is not None]
        content = "".join(event.text for event in events if isinstance(event, Content))
        return ChatPart(content, thought, tuple(parts))

    def feed_in_order(
        self, text: str, *, is_over: bool = False, is_cut: bool = False
    ) -> Iterator[ChatPart]:
        """The same in the order of the text, a part for each thing; `calls` keep step with it."""
        thought, events = self._take(text, is_over, is_cut)
        if thought:
            yield ChatPart(reasoning=thought)
        for event in events:
            call = self._note(event)
            if isinstance(event, Content):
                yield ChatPart(event.text)
            elif call is not None:
                yield ChatPart(calls=(call,))

    def read(
        self, text: str, *, is_over: bool = False, is_cut: bool = False
    ) -> list[Reasoning | Content | ToolCall]:
        """The same in the order of the text, where a call is a piece once it is whole or cut."""
        thought, events = self._take(text, is_over, is_cut, keeps_beginnings=False)
        pieces: list[Reasoning | Content | ToolCall] = [Reasoning(thought)] if thought else []
        for event in events:
            self._note(event)
            if isinstance(event, Content):
                pieces.append(event)
            elif isinstance(event, CallEnded):
                pieces.append(self.calls[event.index])
            elif isinstance(event, CallCut):
                assert self.cut_call is not None
                pieces.append(self.cut_call)
        return pieces

    def _take(
        self, text: str, is_over: bool, is_cut: bool, *, keeps_beginnings: bool = True
    ) -> tuple[str, list[Event]]:
        thought, said = self._split("" if self._is_ahead else text, is_over)
        thought = "".join([*self._thoughts, thought])
        events = self._events + self._find_calls(said)
        if is_over:
            events += self._close_calls(is_cut, keeps_beginnings)
        self._thoughts, self._events = [], []
        return thought, events

    def _split(self, text: str, is_over: bool) -> tuple[str, str]:
        if self.reasoning is None:
            return "", text
        events = self.reasoning.feed(text)
        if is_over:
            events += self.reasoning.close()
        thought = "".join(event.text for event in events if isinstance(event, Reasoning))
        return thought, "".join(event.text for event in events if isinstance(event, Content))

    def _find_calls(self, text: str) -> list[Event]:
        if self.tools is None:
            return [Content(text)] if text else []
        return self.tools.feed(text)

    def _close_calls(self, is_cut: bool, keeps_beginnings: bool) -> list[Event]:
        events = [] if self.tools is None else self.tools.close(is_cut=is_cut)
        broken = [event.index for event in events if isinstance(event, CallBroken)]
        if keeps_beginnings and broken:
            # What follows is the text of the call that the answer ends in.
            return [CallCut(broken[0])]
        drops_content = is_cut and self.must_call
        return [e for e in events if not (drops_content and isinstance(e, Content))]

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
        elif isinstance(event, CallCut):
            call = self._open_calls.pop(event.index)
            arguments = "".join(call.arguments)
            self.cut_call = ToolCall(call.id, call.name, arguments, is_whole=False)
        elif isinstance(event, CallBroken):
            del self._open_calls[event.index]
        return None


def make_readers(engine: ServedEngine, body: ChatBody, plan: Plan) -> list[ChatReader] | None:
    """A reader for each choice; None when the text is all that an answer can be."""
    tool_format = engine.tool_format if body.offers_tools else None
    if not engine.is_thinking and tool_format is None:
        return None
    readers = [
        ChatReader(
            _open_reasoning(engine, body, choice.request.prompt_token_ids)
            if engine.is_thinking
            else None,
            None if tool_format is None else _open_parser(tool_format, body),
            must_call=body.requires_call,
        )
        for choice in plan.choices
    ]
    if tool_format is not None and not body.parallel_tool_calls:
        for choice, reader in zip(plan.choices, readers, strict=True):
            choice.output.watch(reader.read_ahead)
    return readers


def _open_parser(tool_format: ToolFormat, body: ChatBody) -> ToolCallParser:
    parser = open_parser(tool_format, body.offered_tools)
    return parser if body.parallel_tool_calls else FirstCallParser(parser)


def _open_reasoning(
    engine: ServedEngine, body: ChatBody, prompt: Sequence[TokenId]
) -> ReasoningParser:
    return ReasoningParser(is_open=opens_reasoning(read_prompt_end(engine, body, prompt)))
