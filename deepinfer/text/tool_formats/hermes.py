"""Hermes and Qwen: `<tool_call>`, a JSON object, `</tool_call>`, as often as there are calls."""

from __future__ import annotations

from deepinfer.text.tool_formats.call_object import CallObject
from deepinfer.text.tool_formats.framed import MarkedParser
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE

CLOSING = "</tool_call>"


class HermesParser(MarkedParser):
    """A call is whole with its object; the closing marker is passed over where there is one."""

    marker = "<tool_call>"

    def __init__(self) -> None:
        super().__init__()
        self._closing = ""

    def _after_marker(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._raw.append(char)
        elif char == "{":
            self._begin_call(CallObject(is_marked=True), char, self._before_closing)
        else:
            self._refuse(char)

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
