"""One call as JSON: `{"name": ..., "arguments": {...}}`, read as it comes.

It knows which keys make a call; what stands around the object is the formats' business.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from deepinfer.text.tool_formats.arguments import (
    EMPTY,
    Arguments,
    ObjectArguments,
    StringArguments,
)
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE, JsonFollower

NAME_KEY = "name"
ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
# What else stands in calls; another key says that an unmarked object is an answer in JSON.
OTHER_KEYS = frozenset({"type", "id"})


class Call(Protocol):
    """A call being written, fed up to its last character."""

    @property
    def name(self) -> str:
        """The tool's name; there is one from the start of the arguments on."""

    @property
    def has_started(self) -> bool:
        """The name is known and the arguments have begun."""

    @property
    def is_complete(self) -> bool:
        """The call is whole."""

    def accept(self, char: str) -> bool:
        """Whether a call may go on with `char`; after a no this one is of no further use."""

    def take(self) -> str:
        """The text of the arguments that has come since the last time; none before the start."""


class NamedCall:
    """A call whose name stood before the arguments."""

    has_started = True

    def __init__(self, name: str) -> None:
        self.name = name
        self._arguments = ObjectArguments()

    @property
    def is_complete(self) -> bool:
        return self._arguments.is_complete

    def accept(self, char: str) -> bool:
        return self._arguments.accept(char)

    def take(self) -> str:
        return self._arguments.take()


class CallObject:
    """A call as one JSON object, name and arguments in either order.

    `is_marked` says that a marker announced a call: then other keys are passed over and arguments
    may be absent. Without one, an object is a call only if it has both keys and no strange one.
    """

    def __init__(self, *, is_marked: bool) -> None:
        self.name = ""
        self.is_complete = False
        self._is_marked = is_marked
        self._arguments: Arguments | None = None
        self._has_arguments_key = False
        self._key = ""
        self._json = JsonFollower()
        self._text: list[str] = []  # of a key or a name
        self._step: Callable[[str], bool] = self._open

    @property
    def has_started(self) -> bool:
        return bool(self.name) and (self._arguments is not None or self.is_complete)

    def accept(self, char: str) -> bool:
        return self._step(char)

    def take(self) -> str:
        if not self.has_started or self._arguments is None:
            return ""
        return self._arguments.take()

    def _open(self, char: str) -> bool:
        self._step = self._first_key
        return char == "{"

    def _first_key(self, char: str) -> bool:
        return self._end() if char == "}" else self._before_key(char)

    def _before_key(self, char: str) -> bool:
        if char in WHITE_SPACE:
            return True
        self._begin_string(self._in_key)
        return char == '"' and self._step(char)

    def _in_key(self, char: str) -> bool:
        if not self._read_string(char):
            return False
        if self._json.is_complete:
            self._key = self._string()
            self._step = self._colon
            return self._may_hold(self._key)
        return True

    def _may_hold(self, key: str) -> bool:
        if key == NAME_KEY:
            return not self.name
        if key in ARGUMENT_KEYS:
            is_new, self._has_arguments_key = not self._has_arguments_key, True
            return is_new
        return self._is_marked or key in OTHER_KEYS

    def _colon(self, char: str) -> bool:
        if char == ":":
            self._step = self._before_value
        return char == ":" or char in WHITE_SPACE

    def _before_value(self, char: str) -> bool:
        if char in WHITE_SPACE:
            return True
        if self._key == NAME_KEY:
            self._begin_string(self._in_name)
            return char == '"' and self._step(char)
        if self._key in ARGUMENT_KEYS and char != "n":
            return self._begin_arguments(char)
        return self._begin_other(char)

    def _begin_string(self, step: Callable[[str], bool]) -> None:
        self._json = JsonFollower()
        self._step = step

    def _read_string(self, char: str) -> bool:
        self._text.append(char)
        return self._json.accept(char)

    def _string(self) -> str:
        text: str = json.loads("".join(self._text))
        self._text.clear()
        return text

    def _in_name(self, char: str) -> bool:
        if not self._read_string(char):
            return False
        if self._json.is_complete:
            self.name = self._string()
            self._step = self._after_value
            return bool(self.name) and self.name.isprintable()
        return True

    def _begin_arguments(self, char: str) -> bool:
        if char not in '{"':
            return False
        self._arguments = ObjectArguments() if char == "{" else StringArguments()
        self._step = self._in_arguments
        return self._in_arguments(char)

    def _in_arguments(self, char: str) -> bool:
        assert self._arguments is not None
        if not self._arguments.accept(char):
            return False
        if self._arguments.is_complete:
            self._step = self._after_value
        return True

    def _begin_other(self, char: str) -> bool:
        """A value that says nothing here; as arguments, null means none."""
        self._json = JsonFollower()
        self._step = self._in_other
        return self._in_other(char)

    def _in_other(self, char: str) -> bool:
        if self._json.can_end and char in ",}" + WHITE_SPACE:  # a number ends where it is left
            self._step = self._after_value
            return self._after_value(char)
        if not self._json.accept(char):
            return False
        if self._json.is_complete:
            self._step = self._after_value
        return True

    def _after_value(self, char: str) -> bool:
        if char == ",":
            self._step = self._before_key
        return char == "," or char in WHITE_SPACE or (char == "}" and self._end())

    def _end(self) -> bool:
        if not self.name or not (self._is_marked or self._has_arguments_key):
            return False
        if self._arguments is None:
            self._arguments = ObjectArguments()
            for char in EMPTY:
                self._arguments.accept(char)
        self.is_complete = True
        return True
