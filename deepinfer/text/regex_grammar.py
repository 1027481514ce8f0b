"""From a regular expression to a grammar in EBNF for the texts that the whole expression matches.

Takes what Python's `re` and ECMA-262 write alike: literals, classes, groups, alternatives, counts,
and anchors at the ends. What a grammar cannot say, such as lookaround and backreferences, is
refused with its position. Where the two differ, texts are such that both match: `.` is no end of
a line, and the shorthands for classes are ASCII's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from deepinfer.text.char_ranges import ANY, LINE_ENDS, negate
from deepinfer.text.grammar_tree import (
    Chars,
    Choice,
    GrammarWriter,
    Node,
    Repeat,
    Sequence,
    Text,
    check_size,
)
from deepinfer.text.pattern_reader import PatternReader

ANYTHING = Repeat(Chars(ANY), 0, None)
_NAMED_GROUP = re.compile(r"P?<[A-Za-z_]\w*>", re.ASCII)
_EXTENSIONS = {
    ("?=", "?!", "?<=", "?<!"): "must not look ahead or behind",
    ("?P=",): "must not refer back to a group",
    ("?>",): "must not have atomic groups",
}
_REFUSED_ESCAPES = {
    **dict.fromkeys("123456789", "must not refer back to a group"),
    **dict.fromkeys("bB", "must not ask for the edge of a word"),
    **dict.fromkeys("pP", "must not ask for properties of Unicode"),
}


def make_regex_grammar(pattern: str) -> str:
    """A grammar for the texts that all of `pattern` matches. Raises GrammarRefused."""
    writer = GrammarWriter("set")
    rules = [f"root ::= {writer.write(parse_regex(pattern))}", *writer.rules]
    return "\n".join(rules) + "\n"


def parse_regex(pattern: str, *, is_search: bool = False) -> Node:
    """The texts that all of `pattern` matches, or with `is_search` those that it is found in.

    Raises GrammarRefused.
    """
    reader = PatternReader(pattern)
    options = _Parser(reader).parse(is_search)
    check_size(options)
    return options


class _Parser:
    def __init__(self, reader: PatternReader) -> None:
        self._reader = reader

    def parse(self, is_search: bool) -> Node:
        def alternative() -> Node:
            begins = self._skip_any("^", "\\A")
            found = self._sequence()
            ends = self._skip_any("$", "\\Z", "\\z")
            if not is_search:
                return found
            if begins and ends:
                return found
            before = () if begins else (ANYTHING,)
            return Sequence((*before, found, *(() if ends else (ANYTHING,))))

        found = self._alternatives(alternative)
        if self._reader.next:
            self._refuse_rest()
        return found

    def _skip_any(self, *anchors: str) -> bool:
        return any([self._reader.skip(anchor) for anchor in anchors])

    def _refuse_rest(self) -> None:
        if self._reader.next == ")":
            self._reader.fail("has a `)` without a group")
        self._reader.fail("may have anchors at its ends only")

    def _alternatives(self, alternative: Callable[[], Node]) -> Node:
        options = [alternative()]
        while self._reader.skip("|"):
            options.append(alternative())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._reader.next not in ("", "|", ")", "^", "$"):
            if self._reader.text.startswith(("\\A", "\\Z", "\\z"), self._reader.at):
                break
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def _term(self) -> Node:
        start = self._reader.at
        atom = self._atom()
        term = self._reader.repeated(atom)
        if term is atom:
            return atom
        self._reader.skip("?")  # to match as little as possible makes the same whole texts
        if self._reader.next == "+":
            self._reader.fail("must not have possessive counts")
        if self._reader.repeated(atom) is not atom:
            self._reader.fail("must not count what is counted", start)
        return term

    def _atom(self) -> Node:
        start = self._reader.at
        one = self._reader.take()
        if one == "(":
            return self._group(start)
        if one == "[":
            return self._reader.char_class(start)
        if one == ".":
            return Chars(negate(LINE_ENDS))
        if one in "*+?":
            self._reader.fail(f"has nothing before `{one}` to repeat", start)
        if one == "\\":
            return self._escaped(start)
        return self._one(self._reader.chars(((ord(one), ord(one)),), start))

    def _escaped(self, start: int) -> Node:
        if self._reader.next in _REFUSED_ESCAPES and self._reader.next:
            self._reader.fail(_REFUSED_ESCAPES[self._reader.next], start)
        return self._one(self._reader.chars(self._reader.escape(), start))

    def _one(self, chars: Chars) -> Node:
        ((first, last), *others) = chars.ranges
        return Text(chr(first)) if first == last and not others else chars

    def _group(self, start: int) -> Node:
        for extensions, rule in _EXTENSIONS.items():
            if self._reader.text.startswith(extensions, self._reader.at):
                self._reader.fail(rule, start)
        if self._reader.skip("?"):
            is_known = self._reader.skip(":") or self._reader.match(_NAMED_GROUP) is not None
            if not is_known:
                self._reader.fail("must not set flags, nor have comments or conditions", start)
        self._reader.enter()
        found = self._alternatives(self._sequence)
        if self._reader.next in ("^", "$", "\\"):
            self._reader.fail("may have anchors at its ends only")
        self._reader.leave(start)
        return found
