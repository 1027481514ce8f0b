"""Qwen3-Coder: a tag for the function, and one with each of its parameters.

<tool_call>
<function=weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call>

The model is known to leave out `<tool_call>`, so `<function=` begins a call by itself as well.
"""

from __future__ import annotations

from functools import partial

from deepinfer.text.parameter_types import ParameterTypes
from deepinfer.text.tool_formats.framed import Step
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE
from deepinfer.text.tool_formats.mistral import MAX_NAME_LEN, NAME_CHARS
from deepinfer.text.tool_formats.tagged_call import TaggedCall
from deepinfer.text.tool_formats.tags import OPENING, QWEN_CODER
from deepinfer.text.tool_formats.tool_call_tag import ToolCallTagParser


class QwenCoderParser(ToolCallTagParser):
    """A call is whole with `</function>`."""

    markers = (OPENING, QWEN_CODER.before_name)

    def __init__(self, types: ParameterTypes) -> None:
        super().__init__()
        self._types = types
        self._tag = ""
        self._name = ""

    @property
    def _read_name(self) -> str:
        return self._name if self._step == self._after_name else ""

    def _follow(self, marker: str) -> Step:
        self._tag = self._name = ""
        return self._after_marker if marker == OPENING else self._in_name

    def _after_marker(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._raw.append(char)
        else:
            self._step = self._in_tag
            self._in_tag(char)

    def _in_tag(self, char: str) -> None:
        self._tag += char
        if not QWEN_CODER.before_name.startswith(self._tag):
            self._refuse(char)
            return
        self._raw.append(char)
        if self._tag == QWEN_CODER.before_name:
            self._step = self._in_name

    def _in_name(self, char: str) -> None:
        if char in NAME_CHARS and len(self._name) < MAX_NAME_LEN:
            self._name += char
            self._raw.append(char)
        elif self._name and char == QWEN_CODER.after_name:
            self._raw.append(char)
            self._step = self._after_name
        else:
            self._refuse(char)

    def _after_name(self, char: str) -> None:
        find_types = partial(self._types.find, self._name)
        self._begin_call(TaggedCall(self._name, QWEN_CODER, find_types), char, self._before_closing)
