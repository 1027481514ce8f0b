"""GLM-4.5 and later: the function's name, then a pair of tags for each argument.

<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Paris</arg_value>
</tool_call>
"""

from __future__ import annotations

from functools import partial

from deepinfer.text.parameter_types import ParameterTypes
from deepinfer.text.tool_formats.framed import Step
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE
from deepinfer.text.tool_formats.mistral import MAX_NAME_LEN, NAME_CHARS
from deepinfer.text.tool_formats.tagged_call import TaggedCall
from deepinfer.text.tool_formats.tags import GLM
from deepinfer.text.tool_formats.tool_call_tag import ToolCallTagParser


class GlmParser(ToolCallTagParser):
    """A call is whole with `</tool_call>`."""

    def __init__(self, types: ParameterTypes) -> None:
        super().__init__()
        self._types = types
        self._name = ""

    def _follow(self, marker: str) -> Step:
        self._name = ""
        return self._after_marker

    def _after_marker(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._raw.append(char)
        else:
            self._step = self._in_name
            self._in_name(char)

    def _in_name(self, char: str) -> None:
        if char in NAME_CHARS and len(self._name) < MAX_NAME_LEN:
            self._name += char
            self._raw.append(char)
        elif self._name:
            find_types = partial(self._types.find, self._name)
            self._begin_call(TaggedCall(self._name, GLM, find_types), char, self._in_text)
        else:
            self._refuse(char)
