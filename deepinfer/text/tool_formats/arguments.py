"""A call's arguments as the model writes them: a JSON object, or a JSON string that holds one.

What comes out is the text of the object, and only as long as it is JSON. This module knows nothing
of names, markers or events.
"""

from __future__ import annotations

import json
from typing import Protocol

from deepinfer.text.tool_formats.json_follower import JsonFollower, Start

SURROGATE_PAIR_LEN = len(r"\ud83d\ude00")
HIGH_SURROGATES = ("d8", "d9", "da", "db")
EMPTY = "{}"


class Arguments(Protocol):
    """Read a character at a time, up to the last one of the value."""

    @property
    def is_complete(self) -> bool:
        """The value is whole."""

    def accept(self, char: str) -> bool:
        """Whether the arguments may go on with `char`; after a no they are of no further use."""

    def take(self) -> str:
        """The text that has come since the last time."""


class ObjectArguments:
    """`{"city": "Paris"}`, passed on as it comes."""

    def __init__(self) -> None:
        self._json = JsonFollower(Start.OBJECT)
        self._new: list[str] = []

    @property
    def is_complete(self) -> bool:
        return self._json.is_complete

    def accept(self, char: str) -> bool:
        if not self._json.accept(char):
            return False
        self._new.append(char)
        return True

    def take(self) -> str:
        text = "".join(self._new)
        self._new.clear()
        return text


class StringArguments:
    """`"{\\"city\\": \\"Paris\\"}"`: the object's text is what the string says.

    An empty string stands for no arguments.
    """

    def __init__(self) -> None:
        self._string = JsonFollower()
        self._object = ObjectArguments()
        self._escape = ""
        self._is_begun = False
        self._is_blank = True

    @property
    def is_complete(self) -> bool:
        return self._string.is_complete

    def accept(self, char: str) -> bool:
        if not self._string.accept(char):
            return False
        if not self._is_begun:  # the quotation mark that opens it
            self._is_begun = True
            return True
        if self._string.is_complete:
            return self._finish()
        self._escape += char
        decoded = _decode(self._escape)
        if decoded is None:
            return _may_go_on(self._escape)
        self._escape = ""
        self._is_blank = False
        return _is_character(decoded) and self._object.accept(decoded)

    def take(self) -> str:
        return self._object.take()

    def _finish(self) -> bool:
        if self._is_blank and not self._escape:
            return all(map(self._object.accept, EMPTY))
        return self._object.is_complete and not self._escape


def _decode(escape: str) -> str | None:
    """The character that is spelled in full, if one is."""
    if escape[0] != "\\":
        return escape
    if len(escape) < 2 or (escape[1] == "u" and len(escape) < _unicode_len(escape)):
        return None
    char: str = json.loads(f'"{escape}"')
    return char


def _unicode_len(escape: str) -> int:
    is_pair = escape[2:4].lower() in HIGH_SURROGATES
    return SURROGATE_PAIR_LEN if is_pair else SURROGATE_PAIR_LEN // 2


def _is_character(decoded: str) -> bool:
    """Not half a surrogate pair, nor one with something else."""
    return len(decoded) == 1 and not "\ud800" <= decoded <= "\udfff"


def _may_go_on(escape: str) -> bool:
    """The second half of a pair is an escape too; a lone surrogate is not text."""
    return r"\u".startswith(escape[SURROGATE_PAIR_LEN // 2 :][:2])
