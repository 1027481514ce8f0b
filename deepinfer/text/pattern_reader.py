"""What regular expressions and grammars in EBNF are written with alike, read from a cursor.

Classes of characters, escapes and counts of repetition, and how a fault is told: with its position.
`\\d`, `\\w` and `\\s` are ASCII's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from deepinfer.text.char_ranges import (
    ANY,
    DIGITS,
    SPACE,
    WORD,
    Ranges,
    char,
    common,
    negate,
    union,
)
from deepinfer.text.grammar_tree import Chars, GrammarRefused, Node, Repeat

MAX_REPEATED = 10_000
MAX_DEPTH = 64  # groups within groups

SHORTHANDS: dict[str, Ranges] = {
    "d": DIGITS,
    "w": WORD,
    "s": SPACE,
    "D": negate(DIGITS),
    "W": negate(WORD),
    "S": negate(SPACE),
}
CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_COUNTS = re.compile(r"\{(?:([0-9]{1,9})|([0-9]{0,9}),([0-9]{0,9}))\}")
_SPACED_COUNTS = re.compile(
    r"\{\s*(?:([0-9]{1,9})|([0-9]{0,9})\s*,\s*([0-9]{0,9}))\s*\}"
)  # in grammars; in a regular expression `{1, 2}` is no count
_SIMPLE_COUNTS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


@dataclass
class PatternReader:
    """A text and a place in it. Every method that reads raises GrammarRefused."""

    text: str
    at: int = 0
    depth: int = 0

    @property
    def next(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def fail(self, rule: str, at: int | None = None) -> NoReturn:
        raise GrammarRefused(f"{rule} (at position {self.at if at is None else at})")

    def skip(self, expected: str) -> bool:
        """Whether that comes next, which is then read."""
        is_there = self.text.startswith(expected, self.at)
        self.at += len(expected) if is_there else 0
        return is_there

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def take(self) -> str:
        if not self.next:
            self.fail("must not end here")
        self.at += 1
        return self.text[self.at - 1]

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"must not nest deeper than {MAX_DEPTH} groups")

    def leave(self, opened_at: int) -> None:
        self.depth -= 1
        if not self.skip(")"):
            self.fail("has a group without `)`", opened_at)

    def repeated(self, item: Node, *, has_spaces: bool = False) -> Node:
        """`item`, or as often as what comes next says; `has_spaces` where counts may have them."""
        counts = self._counts(_SPACED_COUNTS if has_spaces else _COUNTS)
        return item if counts is None else Repeat(item, *counts)

    def _counts(self, pattern: re.Pattern[str]) -> tuple[int, int | None] | None:
        if self.next in _SIMPLE_COUNTS:
            return _SIMPLE_COUNTS[self.take()]
        start = self.at
        found = self.match(pattern)
        if found is None:
            return None
        exact, least, most = found.groups()
        lowest = int(exact or least or 0)
        highest = int(exact) if exact else int(most) if most else None
        if max(lowest, highest or 0) > MAX_REPEATED:
            self.fail(f"may repeat up to {MAX_REPEATED:,} times", start)
        if highest is not None and highest < lowest:
            self.fail("must not have a highest count below the lowest", start)
        return lowest, highest

    def char_class(self, start: int, *, is_gbnf: bool = False) -> Chars:
        """The rest of a class, whose `[` at `start` has been read.

        In GBNF `]` ends a class wherever it is, and `[:` is two characters.
        """
        is_negated = self.skip("^")
        found: list[tuple[int, int]] = []
        is_first = not is_gbnf
        while is_first or self.next != "]":
            if not self.next:
                self.fail("has a class of characters without `]`", start)
            if not is_gbnf and self.text.startswith(("[:", "[=", "[."), self.at):
                self.fail("must name characters one by one, not by POSIX classes")
            found += self._class_item()
            is_first = False
        self.take()
        if not found:
            self.fail("has a class without any character", start)
        return self.chars(negate(union(found)) if is_negated else union(found), start)

    def chars(self, ranges: Ranges, start: int) -> Chars:
        writable = common(ranges, ANY)
        if not writable:
            self.fail("asks for a character that no text can hold", start)
        return Chars(writable)

    def _class_item(self) -> Ranges:
        start = self.at
        first = self._class_char()
        if self.next != "-" or self.text[self.at + 1 : self.at + 2] in ("]", ""):
            return first
        self.take()
        last = self._class_char()
        if not (_is_one(first) and _is_one(last) and first[0][0] <= last[0][0]):
            self.fail("has a range of characters that is none", start)
        return ((first[0][0], last[0][0]),)

    def _class_char(self) -> Ranges:
        one = self.take()
        if one != "\\":
            return char(one)
        return char("\b") if self.skip("b") else self.escape()

    def escape(self) -> Ranges:
        """What a backslash stands for, which has been read."""
        start = self.at - 1
        one = self.take()
        if one in SHORTHANDS:
            return SHORTHANDS[one]
        if one in CONTROLS:
            return char(CONTROLS[one])
        if one in HEX_DIGITS:
            return self._hex(HEX_DIGITS[one], start)
        if one.isascii() and one.isalnum():
            self.fail(f"has an escape that is not supported: `\\{one}`", start)
        return char(one)

    def _hex(self, num_digits: int, start: int) -> Ranges:
        digits = self.text[self.at : self.at + num_digits]
        if not re.fullmatch(rf"[0-9a-fA-F]{{{num_digits}}}", digits):
            self.fail(f"needs {num_digits} hexadecimal digits in this escape", start)
        self.at += num_digits
        code = int(digits, 16)
        if code > ANY[-1][1]:
            self.fail("names a character beyond U+10FFFF", start)
        return ((code, code),)


def _is_one(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]
