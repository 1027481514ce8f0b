"""From what is read out of an answer's text to its items, and to the events on the way there.

One item is open at a time, and something of another kind ends it. A stream sends the events; a
whole answer takes the items, which are the same ones. This module knows neither engines nor bytes.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType

from deepinfer.server.chat_reader import CallPart, ChatPart
from deepinfer.server.responses_api.events import Event
from deepinfer.server.responses_api.items import OutputItem, Status
from deepinfer.server.responses_api.open_items import (
    OpenCall,
    OpenCustomCall,
    OpenItem,
    OpenMessage,
    OpenReasoning,
)
from deepinfer.server.responses_api.tools import CustomTool, ServedTool
from deepinfer.text.scores import PlacedToken


class OutputWriter:
    """Writes the output of one response. `items` are the finished ones.

    `whole_calls` has the index of each call that is whole by now, whenever it is looked at; `tools`
    are those that the model was offered, by the names that it knows.
    """

    def __init__(
        self,
        whole_calls: Container[int] = (),
        tools: Mapping[str, ServedTool] = MappingProxyType({}),
    ) -> None:
        self.items: list[OutputItem] = []
        self._open: OpenItem | None = None
        self._whole_calls = whole_calls
        self._tools = tools

    @property
    def _next_index(self) -> int:
        return len(self.items) + (self._open is not None)

    def write(self, part: ChatPart, tokens: Sequence[PlacedToken] = ()) -> list[Event]:
        """What `part` adds, which is of one kind."""
        if part.reasoning:
            return self._think(part.reasoning)
        if part.calls:
            return [event for call in part.calls for event in self._call(call)]
        return self._say(part.content, tokens) if part.content or tokens else []

    def end_whole_call(self) -> list[Event]:
        """A call is over as soon as it is whole, whatever may follow."""
        is_whole = (
            isinstance(self._open, OpenCall | OpenCustomCall)
            and self._open.call_index in self._whole_calls
        )
        return self._end("completed") if is_whole else []

    def finish(self, *, is_cut: bool) -> list[Event]:
        """The end of the answer; `is_cut` when it was not allowed to go on."""
        events: list[Event] = []
        if self._open is None and not self.items:
            events += self._say("", ())  # a model that says nothing has answered as well
        return events + self._end("incomplete" if is_cut else "completed")

    def _think(self, text: str) -> list[Event]:
        if isinstance(self._open, OpenReasoning):
            return self._open.add(text)
        opened = OpenReasoning(self._next_index)
        return self._begin(opened) + opened.add(text)

    def _say(self, text: str, tokens: Sequence[PlacedToken]) -> list[Event]:
        if isinstance(self._open, OpenMessage):
            return self._open.add(text, tokens)
        opened = OpenMessage(self._next_index)
        return self._begin(opened) + opened.add(text, tokens)

    def _call(self, part: CallPart) -> list[Event]:
        if isinstance(self._open, OpenCall | OpenCustomCall) and (
            self._open.call_index == part.index
        ):
            return self._open.add(part.arguments)
        assert part.id is not None and part.name is not None, "a call's first part names it"
        served = self._tools.get(part.name)
        kind = OpenCustomCall if served and isinstance(served.tool, CustomTool) else OpenCall
        opened = kind(
            self._next_index,
            part.index,
            part.id,
            part.name if served is None else served.tool.name,
            None if served is None else served.namespace,
        )
        return self._begin(opened) + (opened.add(part.arguments) if part.arguments else [])

    def _begin(self, opened: OpenItem) -> list[Event]:
        events = self._end("completed")
        self._open = opened
        return events + opened.begin()

    def _end(self, status: Status) -> list[Event]:
        if self._open is None:
            return []
        if isinstance(self._open, OpenCall | OpenCustomCall):
            # A call that broke off has been shown already, and cannot be taken back.
            is_whole = self._open.call_index in self._whole_calls
            status = "completed" if is_whole else "incomplete"
        item, events = self._open.end(status)
        self.items.append(item)
        self._open = None
        return events
