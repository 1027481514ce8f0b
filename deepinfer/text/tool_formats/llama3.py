"""Llama 3: the whole answer is `{"name": ..., "parameters": {...}}`, or several, joined by `; `.

The first may stand behind `<|python_tag|>`. Without it an answer in JSON looks alike, so an object
is given up as a call at the first key that calls do not have.
"""

from __future__ import annotations

from deepinfer.text.tool_formats.call_object import CallObject
from deepinfer.text.tool_formats.framed import FramedParser
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE

TAG = "<|python_tag|>"
SEPARATOR = ";"


class Llama3Parser(FramedParser):
    """Once something stands where a call should, the rest of the answer is content."""

    def __init__(self) -> None:
        super().__init__()
        self._tag = ""
        self._step = self._before_call

    @property
    def _announced_name(self) -> str | None:
        # Behind the tag or another call nothing else can stand; a first object may be an answer.
        if self._raw and (self._tag == TAG or self._num_calls):
            return self._call.name if self._call is not None else ""
        return super()._announced_name

    def _before_call(self, char: str) -> None:
        if char == "{" and self._tag in ("", TAG):
            self._begin_call(CallObject(is_marked=self._tag == TAG), char, self._after_object)
        elif char in WHITE_SPACE and self._tag in ("", TAG):
            self._raw.append(char)
        elif self._num_calls == 0 and TAG.startswith(self._tag + char):
            self._tag += char
            self._raw.append(char)
        else:
            self._refuse(char)

    def _after_object(self, char: str) -> None:
        if char in WHITE_SPACE:
            return
        self._step = self._before_call
        if char == SEPARATOR:
            self._raw.append(char)
        else:
            self._before_call(char)

    def _in_text(self, char: str) -> None:
        self._say(char)
