"""Expressions of a grammar as a tree: what users' regular expressions and grammars are read into.

Written out again as EBNF they hold nothing but what xgrammar is known to keep to. Knows how long
the texts of an expression are, and how large it becomes once its repetitions are spelled out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from deepinfer.text import ebnf
from deepinfer.text.char_ranges import Ranges, char, common, without, write_class
from deepinfer.text.ebnf import MAX_SPELLED_OUT

MAX_EXPANDED = 20_000  # characters and classes, repeated ones as often as they may come

# JSON writes these of a string's characters as escapes, most of them in six letters.
ESCAPED: Ranges = ((0x01, 0x1F), *char('"'), *char("\\"))


class GrammarRefused(Exception):
    """An expression that is wrong, too large, or asks for what a grammar cannot say."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True)
class Sequence:
    """One after another; nothing at all if there are none."""

    parts: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    item: Node
    least: int
    most: int | None  # None for any number


@dataclass(frozen=True)
class Reference:
    """Whatever the rule of that name says."""

    name: str


Node = Text | Chars | Sequence | Choice | Repeat | Reference


def children(node: Node) -> tuple[Node, ...]:
    match node:
        case Sequence(nodes) | Choice(nodes):
            return nodes
        case Repeat(item):
            return (item,)
    return ()


def check_size(node: Node) -> None:
    """Raises GrammarRefused."""
    if (size := expanded_size(node)) > MAX_EXPANDED:
        raise GrammarRefused(
            f"must not expand to more than {MAX_EXPANDED:,} characters with its repetitions "
            f"spelled out; it does to {size:,}"
        )


def expanded_size(node: Node) -> int:
    match node:
        case Text(text):
            return len(text)
        case Repeat(item, least, most):
            return max(expanded_size(item), 1) * max(least, most or 1)
    return sum(map(expanded_size, children(node))) if children(node) else 1


def lengths(node: Node) -> tuple[int, int | None]:
    """The fewest and the most characters of a text; None where there is no end to it."""
    match node:
        case Text(text):
            return len(text), len(text)
        case Chars():
            return 1, 1
        case Repeat(item, least, most):
            short, long = lengths(item)
            return short * least, None if most is None or long is None else long * most
        case Sequence(parts):
            found = [lengths(part) for part in parts]
            return sum(short for short, _ in found), _total([long for _, long in found])
        case Choice(options):
            found = [lengths(option) for option in options]
            longest = [long for _, long in found if long is not None]
            is_bounded = len(longest) == len(found)
            return min(short for short, _ in found), max(longest) if is_bounded else None
    return 0, None


def fit_length(node: Node, least: int, most: int | None) -> Node | None:
    """`node` for texts of so many characters; None where counting its parts does not see to it."""
    shortest, longest = lengths(node)
    if shortest >= least and (most is None or (longest is not None and longest <= most)):
        return node
    if not isinstance(node, Repeat) or lengths(node.item) != (1, 1):
        return None
    limits = [limit for limit in (node.most, most) if limit is not None]
    fewest, highest = max(node.least, least), min(limits, default=None)
    if highest is not None and highest < fewest:
        return None
    return Repeat(node.item, fewest, highest)


def _total(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


class GrammarWriter:
    """Writes expressions as EBNF; with `in_json` as they stand inside a string of JSON.

    Each set of characters becomes a rule, whose names begin with `prefix`: where sets are written
    out in repeated groups, xgrammar has been seen to compile for ever.
    """

    def __init__(self, prefix: str, *, in_json: bool = False) -> None:
        self._prefix = prefix
        self._in_json = in_json
        self._names: dict[Ranges, str] = {}
        self._counted: set[str] = set()

    @property
    def rules(self) -> list[str]:
        """The rules that what has been written needs."""
        rules = []
        for ranges, name in self._names.items():
            plain, *escapes = _write_escaped(ranges) if self._in_json else [write_class(ranges)]
            rules.append(f"{name} ::= {' | '.join([plain, *escapes])}")
            if name in self._counted:
                rules += ebnf.count_rules(name, plain, f"{name}_escape" if escapes else "")
                rules += [f"{name}_escape ::= {' | '.join(escapes)}"] if escapes else []
        return rules

    def write(self, node: Node) -> str:
        match node:
            case Text(text):
                return ebnf.literal(_escape(text) if self._in_json else text)
            case Chars(ranges):
                return self._names.setdefault(ranges, f"{self._prefix}{len(self._names)}")
            case Reference(name):
                return name
            case Sequence(parts):
                return " ".join(map(self.write, parts)) or ebnf.literal("")
            case Choice(options):
                return ebnf.one_of(map(self.write, options))
            case Repeat(Chars() as item, least, most) if max(least, most or 0) > MAX_SPELLED_OUT:
                name = self.write(item)
                self._counted.add(name)
                return ebnf.counted(name, least, most, f"({name}){{0,}}")
            case Repeat(item, least, most):
                return ebnf.repeat(self.write(item), least, most) or ebnf.literal("")


def _write_escaped(ranges: Ranges) -> list[str]:
    """The options for one character of a set; those that are no escapes are the first."""
    plain = without(ranges, ESCAPED)
    options = [write_class(plain)] if plain else []
    for first, last in common(ESCAPED, ranges):
        options += [ebnf.literal(_escape(chr(code))) for code in range(first, last + 1)]
    return options


def _escape(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
