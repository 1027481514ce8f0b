"""Mistral: `[TOOL_CALLS]`, then an array of calls, or in newer checkpoints a name and arguments.

    [TOOL_CALLS] [{"name": "f", "arguments": {...}}, {"name": "g", "arguments": {...}}]
    [TOOL_CALLS]f[ARGS]{...}[TOOL_CALLS]g[CALL_ID]abcdefghi[ARGS]{...}

The ids that a model writes are passed over. `[ARGS]` may be absent (`[TOOL_CALLS]f{...}`), as may
the array around a single object.
"""

from __future__ import annotations

import string

from deepinfer.text.tool_formats.call_object import CallObject, NamedCall
from deepinfer.text.tool_formats.framed import MarkedParser
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE

ARGS = "[ARGS]"
CALL_ID = "[CALL_ID]"
NAME_CHARS = frozenset(string.ascii_letters + string.digits + "_-.:/")
MAX_NAME_LEN = 256  # characters; longer ones are prose without spaces


class MistralParser(MarkedParser):
    markers = ("[TOOL_CALLS]",)

    def __init__(self) -> None:
        super().__init__()
        self._name = ""
        self._mark = ""

    @property
    def _read_name(self) -> str:
        is_whole = self._step in (self._in_mark, self._in_call_id, self._before_arguments)
        return self._name if is_whole else ""

    def _after_marker(self, char: str) -> None:
        if char == "[":
            self._raw.append(char)
            self._step = self._before_item
        elif char == "{":
            self._begin_call(CallObject(is_marked=True), char, self._in_text)
        elif char in WHITE_SPACE:
            self._raw.append(char)
        else:
            self._name = self._mark = ""
            self._step = self._in_name
            self._in_name(char)

    def _before_item(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._raw.append(char)
        elif char == "{":
            self._begin_call(CallObject(is_marked=True), char, self._after_item)
        else:
            self._refuse(char)

    def _after_item(self, char: str) -> None:
        if char in WHITE_SPACE:
            return
        self._step = self._in_text
        if char == ",":
            self._raw.append(char)
            self._step = self._before_item
        elif char != "]":
            self._step(char)

    def _in_name(self, char: str) -> None:
        if char in NAME_CHARS and len(self._name) < MAX_NAME_LEN:
            self._name += char
            self._raw.append(char)
        elif self._name and char == "[":
            self._step = self._in_mark
            self._in_mark(char)
        elif self._name:
            self._before_arguments(char)
        else:
            self._refuse(char)

    def _in_mark(self, char: str) -> None:
        self._mark += char
        if not (ARGS.startswith(self._mark) or CALL_ID.startswith(self._mark)):
            self._refuse(char)
            return
        self._raw.append(char)
        if self._mark == ARGS:
            self._step = self._before_arguments
        elif self._mark == CALL_ID:
            self._mark = ""
            self._step = self._in_call_id

    def _in_call_id(self, char: str) -> None:
        if char == "[":
            self._step = self._in_mark
            self._in_mark(char)
        elif char in NAME_CHARS:
            self._raw.append(char)
        else:
            self._refuse(char)

    def _before_arguments(self, char: str) -> None:
        if char in WHITE_SPACE:
            self._step = self._before_arguments
            self._raw.append(char)
        elif char == "{":
            self._begin_call(NamedCall(self._name), char, self._in_text)
        else:
            self._refuse(char)
