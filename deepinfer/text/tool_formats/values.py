"""Values of arguments that a model writes as plain text, made JSON by the types that they may have.

A text that may only be a string is passed on as it comes; any other must be whole to be known. A
text that is nothing of what it should be is a string, so that no answer is lost.
"""

from __future__ import annotations

import json
from typing import Protocol

from deepinfer.text.parameter_types import STRING, Types
from deepinfer.text.tool_formats.json_follower import JsonFollower

# Templates that write Python values show these to the model.
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
KINDS = {"{": "object", "[": "array", '"': STRING, "t": "boolean", "f": "boolean", "n": "null"}
LINE_BREAK = "\n"


class Value(Protocol):
    """Each method returns the JSON text that is certain by then."""

    def open(self) -> str:
        """Before the first character."""

    def push(self, text: str) -> str:
        """What `text` adds."""

    def finish(self) -> str:
        """What is left when the value is whole."""


def open_value(types: Types, *, is_on_lines: bool) -> Value:
    if types == {STRING}:
        return TextValue(is_on_lines=is_on_lines)
    return TypedValue(types, is_on_lines=is_on_lines)


class TextValue:
    """A string. With `is_on_lines` one line break before it and one after it are not part of it."""

    def __init__(self, *, is_on_lines: bool) -> None:
        self._is_on_lines = is_on_lines
        self._is_at_start = True
        self._held = ""

    def open(self) -> str:
        return '"'

    def push(self, text: str) -> str:
        if not text:
            return ""
        if self._is_on_lines:
            text = self._trim(text)
        return _escape(text)

    def finish(self) -> str:
        return '"'

    def _trim(self, text: str) -> str:
        if self._is_at_start:
            self._is_at_start = False
            text = text.removeprefix(LINE_BREAK)
        text, self._held = self._held + text, ""
        if text.endswith(LINE_BREAK):
            text, self._held = text[:-1], LINE_BREAK
        return text


class TypedValue:
    """A value that may be something else than a string."""

    def __init__(self, types: Types, *, is_on_lines: bool) -> None:
        self._types = types
        self._is_on_lines = is_on_lines
        self._parts: list[str] = []

    def open(self) -> str:
        return ""

    def push(self, text: str) -> str:
        self._parts.append(text)
        return ""

    def finish(self) -> str:
        return as_json("".join(self._parts), self._types, is_on_lines=self._is_on_lines)


def as_json(text: str, types: Types, *, is_on_lines: bool) -> str:
    """The JSON of a whole value."""
    stripped = text.strip()
    for candidate in (stripped, PYTHON_WORDS.get(stripped, "")):
        kind = _kind_of(candidate)
        if kind is not None and _fits(kind, types):
            return candidate
    value = TextValue(is_on_lines=is_on_lines)
    return value.open() + value.push(text) + value.finish()


def _fits(kind: str, types: Types) -> bool:
    """Strings are written without quotation marks where there may be one."""
    if STRING not in types:
        return True
    return kind != STRING and (kind in types or (kind == "integer" and "number" in types))


def _kind_of(text: str) -> str | None:
    """The type of a JSON text; None for any other text."""
    json_text = JsonFollower()
    if not all(map(json_text.accept, text)) or not json_text.can_end:
        return None
    number = "number" if any(char in text for char in ".eE") else "integer"
    return KINDS.get(text[0], number)


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
