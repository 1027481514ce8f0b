"""Hermes and Qwen: `<tool_call>`, a JSON object, `</tool_call>`, as often as there are calls."""

from __future__ import annotations

from deepinfer.text.tool_formats.call_object import CallObject
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE
from deepinfer.text.tool_formats.tool_call_tag import ToolCallTagParser


class HermesParser(ToolCallTagParser):
    """A call is whole with its object."""

    def _after_marker(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._raw.append(char)
        elif char == "{":
            self._begin_call(CallObject(is_marked=True), char, self._before_closing)
        else:
            self._refuse(char)
