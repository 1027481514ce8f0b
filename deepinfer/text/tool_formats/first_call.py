"""One call at most: a parser of any format, and nothing of what follows the first whole call."""

from __future__ import annotations

from deepinfer.text.tool_calls import CallEnded, Event, ToolCallParser


class FirstCallParser:
    """Keeps the promises of ToolCallParser for the text up to the end of the first whole call."""

    def __init__(self, parser: ToolCallParser) -> None:
        self._parser = parser
        self._is_over = False

    def feed(self, text: str) -> list[Event]:
        return self._up_to_call(self._parser.feed(text)) if not self._is_over else []

    def close(self, *, is_cut: bool = False) -> list[Event]:
        return self._up_to_call(self._parser.close(is_cut=is_cut)) if not self._is_over else []

    def _up_to_call(self, events: list[Event]) -> list[Event]:
        for index, event in enumerate(events):
            if isinstance(event, CallEnded):
                self._is_over = True
                return events[: index + 1]
        return events
