"""Texts of a grammar in EBNF, drawn at random, and whether a text is one: without any library."""

from __future__ import annotations

import random
from collections.abc import Mapping

from deepinfer.text.ebnf_grammar import OWN, _Parser
from deepinfer.text.grammar_tree import Chars, Choice, Node, Reference, Repeat, Sequence, Text
from deepinfer.text.pattern_reader import PatternReader

ROOT = f"{OWN}root"
MAX_HEIGHT = 1_000
DEEP = 25  # from here on the shortest way out is taken


class Grammar:
    def __init__(self, text: str) -> None:
        self._rules = _Parser(PatternReader(text)).parse()
        self._heights = _heights(self._rules)
        self._ends: dict[tuple[str, int], frozenset[int]] = {}

    def draw(self, rng: random.Random) -> str:
        parts: list[str] = []
        self._draw(self._rules[ROOT], rng, 0, parts)
        return "".join(parts)

    def has(self, text: str) -> bool:
        """Whether the whole of `text` is a text of the grammar."""
        self._ends.clear()
        return len(text) in self._match(self._rules[ROOT], text, 0)

    def _draw(self, node: Node, rng: random.Random, depth: int, parts: list[str]) -> None:
        match node:
            case Text(text):
                parts.append(text)
            case Chars(ranges):
                first, last = rng.choice(ranges)
                parts.append(chr(rng.choice([first, last, rng.randint(first, last)])))
            case Reference(name):
                self._draw(self._rules[name], rng, depth + 1, parts)
            case Sequence(nodes):
                for one in nodes:
                    self._draw(one, rng, depth, parts)
            case Choice(options):
                if depth > DEEP:
                    option = min(options, key=lambda o: _height(o, self._heights))
                else:
                    option = rng.choice(options)
                self._draw(option, rng, depth, parts)
            case Repeat(item, least, most):
                extra = 0 if depth > DEEP else rng.choice([0, 1, 2, 5])
                counts = [least, least + extra if most is None else min(most, least + extra)]
                counts += [] if most is None or most > 40 or depth > DEEP else [most]
                for _ in range(rng.choice(counts)):
                    self._draw(item, rng, depth, parts)

    def _match(self, node: Node, text: str, at: int) -> frozenset[int]:
        """Where texts of `node` that begin at `at` may end."""
        match node:
            case Text(own):
                return frozenset({at + len(own)} if text.startswith(own, at) else ())
            case Chars(ranges):
                is_in = at < len(text) and any(a <= ord(text[at]) <= b for a, b in ranges)
                return frozenset({at + 1} if is_in else ())
            case Reference(name):
                if (name, at) not in self._ends:
                    self._ends[name, at] = self._match(self._rules[name], text, at)
                return self._ends[name, at]
            case Choice(options):
                return frozenset().union(*(self._match(one, text, at) for one in options))
            case Sequence(nodes):
                ends = frozenset({at})
                for one in nodes:
                    ends = frozenset().union(*(self._match(one, text, end) for end in ends))
                return ends
            case Repeat(item, least, most):
                return self._match_repeated(item, least, most, text, at)

    def _match_repeated(
        self, item: Node, least: int, most: int | None, text: str, at: int
    ) -> frozenset[int]:
        found: set[int] = {at} if not least else set()
        ends, count = frozenset({at}), 0
        while ends and (most is None or count < most) and count <= least + len(text):
            ends = frozenset().union(*(self._match(item, text, end) for end in ends))
            count += 1
            if count >= least:
                found |= ends
        return frozenset(found)


def _heights(rules: Mapping[str, Node]) -> dict[str, int]:
    """How many rules deep the flattest text of each rule is."""
    heights = dict.fromkeys(rules, MAX_HEIGHT)
    while True:
        found = {name: min(_height(node, heights) + 1, MAX_HEIGHT) for name, node in rules.items()}
        if found == heights:
            return heights
        heights = found


def _height(node: Node, heights: Mapping[str, int]) -> int:
    match node:
        case Reference(name):
            return heights[name]
        case Choice(options):
            return min(_height(one, heights) for one in options)
        case Sequence(nodes):
            return max((_height(one, heights) for one in nodes), default=0)
        case Repeat(item, least):
            return _height(item, heights) if least else 0
    return 0
