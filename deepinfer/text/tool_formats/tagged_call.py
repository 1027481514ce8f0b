"""One call whose arguments stand between tags, read as it comes and given out as a JSON object.

The name and what stands around the call are the parsers' business.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from deepinfer.text.marker import MarkerFinder
from deepinfer.text.parameter_types import Types
from deepinfer.text.tool_formats.json_follower import WHITE_SPACE
from deepinfer.text.tool_formats.tags import Tags
from deepinfer.text.tool_formats.values import Value, open_value


class TaggedCall:
    """From behind the name to the end tag. The first tag after it shows that it is a call.

    A value ends with the first tag that ends values, whatever it says.
    """

    def __init__(self, name: str, tags: Tags, find_types: Callable[[str], Types]) -> None:
        self.name = name
        self.has_started = False
        self.is_complete = False
        self._tags = tags
        self._find_types = find_types
        self._new: list[str] = []
        self._tag = ""  # as much of one as has been read
        self._key: list[str] = []
        self._num_values = 0
        self._finder = MarkerFinder(tags.after_key)
        self._value: Value | None = None
        self._step: Callable[[str], bool] = self._between_values

    def accept(self, char: str) -> bool:
        return self._step(char)

    def take(self) -> str:
        text = "".join(self._new)
        self._new.clear()
        return text

    def _read_tag(self, char: str, tags: tuple[str, ...]) -> str | None:
        """The tag that is whole now, "" for none yet, None when there can be none."""
        if char in WHITE_SPACE and not self._tag:
            return ""
        self._tag += char
        if self._tag in tags:
            tag, self._tag = self._tag, ""
            return tag
        return "" if any(tag.startswith(self._tag) for tag in tags) else None

    def _between_values(self, char: str) -> bool:
        tag = self._read_tag(char, (self._tags.before_key, self._tags.end))
        if tag == self._tags.end:
            self._end()
        elif tag == self._tags.before_key:
            self._key.clear()
            self._finder = MarkerFinder(self._tags.after_key)
            self._step = self._in_key
        return tag is not None

    def _in_key(self, char: str) -> bool:
        text, rest = self._finder.push(char)
        self._key.append(text)
        if rest is None:
            return char.isprintable()
        self._step = self._before_value
        if not self._tags.before_value:
            self._begin_value()
        return any(self._key)

    def _before_value(self, char: str) -> bool:
        tag = self._read_tag(char, (self._tags.before_value,))
        if tag:
            self._begin_value()
        return tag is not None

    def _begin_value(self) -> None:
        key = "".join(self._key)
        types = self._find_types(key)
        self._value = open_value(types, is_on_lines=self._tags.is_value_on_lines)
        self._finder = MarkerFinder(self._tags.after_value)
        self._step = self._in_value
        before = ", " if self._num_values else "{"
        self._new += [before, json.dumps(key, ensure_ascii=False), ": ", self._value.open()]
        self._num_values += 1
        self.has_started = True

    def _in_value(self, char: str) -> bool:
        assert self._value is not None
        text, rest = self._finder.push(char)
        self._new.append(self._value.push(text))
        if rest is not None:
            self._new.append(self._value.finish())
            self._step = self._between_values
        return True

    def _end(self) -> None:
        self._new.append("}" if self._num_values else "{}")
        self.has_started = self.is_complete = True
