"""What formats share that put each call between `<tool_call>` and `</tool_call>`."""

from __future__ import annotations

from deepinfer.text.tool_formats.framed import MarkedParser
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE
from deepinfer.text.tool_formats.tags import CLOSING, OPENING


class ToolCallTagParser(MarkedParser):
    """A call may be whole before its closing marker, which is passed over where there is one."""

    markers: tuple[str, ...] = (OPENING,)

    def __init__(self) -> None:
        super().__init__()
        self._closing = ""

    def _before_closing(self, char: str) -> None:
        if char in WHITE_SPACE and not self._closing:
            return
        text, self._closing = self._closing + char, ""
        if not CLOSING.startswith(text):
            self._step = self._in_text
            for other in text:
                self._step(other)
        elif text == CLOSING:
            self._step = self._in_text
        else:
            self._closing = text
