"""Reading an answer with a parser of tool calls, and putting the events together again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallCut,
    CallEnded,
    CallStarted,
    Content,
    Event,
    ToolCallParser,
)


@dataclass
class Answer:
    """What whoever collects the events has: whole calls, and all content."""

    content: str
    calls: list[tuple[str, str]]


def read(parser: ToolCallParser, pieces: Iterable[str], *, is_cut: bool = False) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.close(is_cut=is_cut)


def joined(events: Iterable[Event]) -> list[Event]:
    """Neighbouring pieces of content, and of the same arguments, as one."""
    done: list[Event] = []
    for event in events:
        match (done[-1] if done else None, event):
            case (Content(before), Content(text)):
                done[-1] = Content(before + text)
            case (ArgumentsDelta(_, before), ArgumentsDelta(index, text)):
                done[-1] = ArgumentsDelta(index, before + text)
            case _:
                done.append(event)
    return done


def collect(events: Iterable[Event]) -> Answer:
    answer, open_calls = Answer("", []), dict[int, tuple[str, str]]()
    for event in events:
        match event:
            case Content(text):
                answer.content += text
            case CallStarted(index, name):
                open_calls[index] = (name, "")
            case ArgumentsDelta(index, text):
                open_calls[index] = (open_calls[index][0], open_calls[index][1] + text)
            case CallEnded(index) | CallCut(index):
                answer.calls.append(open_calls.pop(index))
            case CallBroken(index):
                del open_calls[index]
    assert open_calls == {}, "a call that has started ends or breaks"
    return answer


def pieces_of(text: str, sizes: Sequence[int]) -> list[str]:
    pieces, start = [], 0
    for size in [*sizes, len(text)]:
        pieces.append(text[start : start + size])
        start += size
    return pieces
