"""What the parsers of all formats share: one candidate at a time, and what becomes of it.

A format says where a call begins and what stands around it, as steps that take one character each.
Here its events are made, and the text of what is no call after all is given back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from deepinfer.text.marker import MarkerFinder
from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallCut,
    CallEnded,
    CallStarted,
    Content,
    Event,
)
from deepinfer.text.tool_formats.call_object import Call

Step = Callable[[str], None]


class FramedParser(ABC):
    """`_raw` is the candidate's text: it was not given out, or only as a call's arguments."""

    def __init__(self) -> None:
        self._step: Step = self._in_text
        self._raw: list[str] = []
        self._events: list[Event] = []
        self._content: list[str] = []
        self._call: Call | None = None
        self._after_call: Step = self._in_text
        self._has_shown_call = False
        self._is_after_call = False
        self._num_calls = 0

    def feed(self, text: str) -> list[Event]:
        for char in text:
            self._step(char)
        self._show_call()
        return self._take_events()

    def close(self, *, is_cut: bool = False) -> list[Event]:
        if is_cut:
            self._cut_call()
        self._give_back()
        return self._take_events()

    @property
    def _announced_name(self) -> str | None:
        """Of the call that the text ends in, "" if it is not whole; None if it may be no call."""
        return self._call.name if self._call is not None and self._call.has_started else None

    @abstractmethod
    def _in_text(self, char: str) -> None:
        """Content, or the beginning of a candidate."""

    def _say(self, text: str) -> None:
        """Content; the white space after a call is not."""
        if self._is_after_call:
            text = text.lstrip()
        if text:
            self._is_after_call = False
            self._content.append(text)

    def _begin_call(self, call: Call, char: str, then: Step) -> None:
        """A call's text begins with `char`; what follows the call is for `then`."""
        self._call, self._after_call = call, then
        self._step = self._in_call
        self._in_call(char)

    def _in_call(self, char: str) -> None:
        assert self._call is not None
        if not self._call.accept(char):
            self._refuse(char)
            return
        self._raw.append(char)
        if self._call.is_complete:
            self._end_call()

    def _end_call(self) -> None:
        self._show_call()
        self._events.append(CallEnded(self._num_calls))
        self._num_calls += 1
        self._call, self._has_shown_call = None, False
        self._raw.clear()
        self._is_after_call = True
        self._step = self._after_call

    def _refuse(self, char: str) -> None:
        """With `char` the candidate is no call; the character itself may begin another."""
        self._give_back()
        self._step = self._in_text
        self._step(char)

    def _give_back(self) -> None:
        self._show_call()
        if self._has_shown_call:
            self._events.append(CallBroken(self._num_calls))
            self._num_calls += 1
        self._call, self._has_shown_call = None, False
        raw = "".join(self._raw)
        self._raw.clear()
        self._say(raw)

    def _cut_call(self) -> None:
        """The call that the answer ends in stays one, though nothing of it will follow."""
        name = self._announced_name
        if name is None:
            return
        self._show_call()
        if name:
            if not self._has_shown_call:
                self._show_content()
                self._events.append(CallStarted(self._num_calls, name))
            self._events.append(CallCut(self._num_calls))
            self._num_calls += 1
        self._call, self._has_shown_call = None, False
        self._raw.clear()

    def _show_call(self) -> None:
        """All that is known of the call goes out before anything else does."""
        if self._call is None or not self._call.has_started:
            return
        self._show_content()
        if not self._has_shown_call:
            self._has_shown_call = True
            self._events.append(CallStarted(self._num_calls, self._call.name))
        if json_text := self._call.take():
            self._events.append(ArgumentsDelta(self._num_calls, json_text))

    def _show_content(self) -> None:
        if self._content:
            self._events.append(Content("".join(self._content)))
            self._content.clear()

    def _take_events(self) -> list[Event]:
        self._show_content()
        events, self._events = self._events, []
        return events


class MarkedParser(FramedParser):
    """Calls stand behind a marker, one of `markers`, anywhere in the answer.

    White space is held back as long as a marker may follow it, since then it is part of the frame.
    """

    markers: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        self._finder = MarkerFinder(*self.markers)
        self._space: list[str] = []

    def feed(self, text: str) -> list[Event]:
        if self._step == self._in_text:
            text = self._read_text(text)  # most of an answer; a character at a time is slow
        return super().feed(text)

    def close(self, *, is_cut: bool = False) -> list[Event]:
        if is_cut:
            self._cut_call()
        self._give_back()
        self._say(self._finder.finish())
        super()._say("".join(self._space))
        return self._take_events()

    @property
    def _announced_name(self) -> str | None:
        """A marker stands before every candidate here, and the name may follow it."""
        if self._call is not None:
            return self._call.name
        return None if self._step == self._in_text or not self._raw else self._read_name

    @property
    def _read_name(self) -> str:
        """The tool's name, where one has been read whole before a call begins."""
        return ""

    @abstractmethod
    def _after_marker(self, char: str) -> None:
        """The first characters of a candidate."""

    def _follow(self, marker: str) -> Step:
        """What reads on from behind `marker`."""
        return self._after_marker

    def _in_text(self, char: str) -> None:
        self._read_text(char)

    def _read_text(self, text: str) -> str:
        """Content up to the marker; the text after it is left to be read."""
        safe, rest = self._finder.push(text)
        self._say(safe)
        if rest is None:
            return ""
        marker = self._finder.found
        assert marker is not None
        self._finder = MarkerFinder(*self.markers)
        self._raw = [*self._space, marker]
        self._space.clear()
        self._step = self._follow(marker)
        return rest

    def _say(self, text: str) -> None:
        if self._is_after_call:
            text = text.lstrip()
        said = text.rstrip()
        if said:
            super()._say("".join(self._space) + said)
            self._space.clear()
        self._space.append(text[len(said) :])
