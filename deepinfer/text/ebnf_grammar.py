"""Users' grammars in EBNF or GBNF: read, checked, and written again as what xgrammar keeps to.

GBNF is llama.cpp's form of EBNF, read as `src/llama-grammar.cpp` there reads it: names may begin
with a digit and stand right before a group, `.` is any character, an alternative may be empty,
literals may hold line breaks, `]` always ends a class, and the last rule of a name counts. Tokens
are not supported.

xgrammar takes a grammar without any text, such as `root ::= root`, and then holds the model to
nothing. Here every rule that the root leads to must have a text, and every name a rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from deepinfer.text.char_ranges import ANY
from deepinfer.text.grammar_tree import (
    Chars,
    Choice,
    GrammarRefused,
    GrammarWriter,
    Node,
    Reference,
    Repeat,
    Sequence,
    Text,
    check_size,
    children,
)
from deepinfer.text.pattern_reader import PatternReader

OWN = "own_"  # begins the names of users' rules, so that none is one of ours
ROOT = f"{OWN}root"
MAX_RULES = 2_000
MAX_COUNTS = 4  # such as in `a{2}?`, where one is enough; each nests the grammar deeper
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_GBNF_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:\s|#[^\n]*)*")


def make_ebnf_grammar(text: str, *, is_gbnf: bool = False) -> str:
    """The same grammar, with its classes of characters spelled out. Raises GrammarRefused."""
    rules = _Parser(PatternReader(text), is_gbnf=is_gbnf).parse()
    if ROOT not in rules:
        raise GrammarRefused("must have a rule `root ::= ...`")
    reached = {name: rules[name] for name in _reach(rules)}
    _check_productive(reached)
    for expression in reached.values():
        check_size(expression)
    writer = GrammarWriter("set")
    written = [f"{name} ::= {writer.write(expression)}" for name, expression in reached.items()]
    return "\n".join([f"root ::= {ROOT}", *written, *writer.rules]) + "\n"


def _shown(name: str) -> str:
    return name.removeprefix(OWN)


def _reach(rules: Mapping[str, Node]) -> list[str]:
    """The names of the rules that the root leads to, itself first."""
    found, waiting = {ROOT: None}, [ROOT]  # an ordered set
    while waiting:
        name = waiting.pop()
        for other in _references(rules[name]):
            if other not in rules:
                raise GrammarRefused(
                    f"has a rule `{_shown(name)}` that uses `{_shown(other)}`, which is not defined"
                )
            if other not in found:
                found[other] = None
                waiting.append(other)
    return list(found)


def _references(node: Node) -> Iterator[str]:
    """The names in an expression, in the order in which they appear."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Reference):
            yield node.name
        waiting += reversed(children(node))


@dataclass(eq=False, slots=True)
class _Goal:
    """A rule or an expression that has a text once `num_missing` of its parts have one."""

    num_missing: int
    whole: _Goal | None  # what it is a part of
    waiting: list[_Goal] = field(default_factory=list)  # of a rule: where its name is used


def _check_productive(rules: Mapping[str, Node]) -> None:
    """Every rule must have a text that comes to an end.

    Each expression is looked at once, however the rules lead to each other.
    """
    goals = {name: _Goal(1, None) for name in rules}
    reached: list[_Goal] = []
    for name, rule in rules.items():
        unread: list[tuple[Node, _Goal]] = [(rule, goals[name])]
        while unread:
            node, whole = unread.pop()
            parts = children(node)
            match node:
                case Reference(other):
                    goals[other].waiting.append(whole)
                    continue
                case Choice():
                    num_missing = 1
                case Repeat(_, 0):
                    num_missing = 0
                case _:
                    num_missing = len(parts)
            goal = _Goal(num_missing, whole)
            if not num_missing:
                reached.append(goal)
            unread += [(part, goal) for part in parts]
    while reached:
        goal = reached.pop()
        wholes = goal.waiting if goal.whole is None else [goal.whole]  # a rule is no part
        for whole in wholes:
            whole.num_missing -= 1
            if not whole.num_missing:
                reached.append(whole)
    for name, goal in goals.items():
        if goal.num_missing > 0:
            raise GrammarRefused(f"has a rule `{_shown(name)}` no text of which comes to an end")


class _Parser:
    def __init__(self, reader: PatternReader, *, is_gbnf: bool = False) -> None:
        self._reader = reader
        self._is_gbnf = is_gbnf
        self._name = _GBNF_NAME if is_gbnf else _NAME
        self._head = re.compile(rf"({self._name.pattern})\s*::=")

    def parse(self) -> dict[str, Node]:
        """Each rule by its name."""
        rules: dict[str, Node] = {}
        self._reader.match(_BLANK)
        while self._reader.next:
            start = self._reader.at
            head = self._reader.match(self._head)
            if head is None:
                self._reader.fail("must be rules such as `name ::= ...`, one after another")
            if OWN + head[1] in rules and not self._is_gbnf:
                self._reader.fail(f"must not have a second rule `{head[1]}`", start)
            if len(rules) >= MAX_RULES:
                self._reader.fail(f"must not have more than {MAX_RULES:,} rules")
            rules[OWN + head[1]] = self._alternatives()
        return rules

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._reader.skip("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        start = self._reader.at
        parts: list[Node] = []
        self._reader.match(_BLANK)
        while self._reader.next not in ("", "|", ")") and not self._is_at_rule():
            parts.append(self._term())
            self._reader.match(_BLANK)
        if not parts and not self._is_gbnf:
            self._reader.fail('must say `""` where nothing may stand', start)
        return Sequence(tuple(parts))

    def _is_at_rule(self) -> bool:
        return self._head.match(self._reader.text, self._reader.at) is not None

    def _term(self) -> Node:
        start = self._reader.at
        term = self._atom()
        num_counts = 0
        self._reader.match(_BLANK)
        while (counted := self._reader.repeated(term, has_spaces=True)) is not term:
            term = counted
            num_counts += 1
            if num_counts > MAX_COUNTS:
                self._reader.fail(f"must not count a part more than {MAX_COUNTS} times over", start)
            self._reader.match(_BLANK)
        return term

    def _atom(self) -> Node:
        start = self._reader.at
        name = self._reader.match(self._name)
        if name is not None:
            if self._reader.next == "(" and not self._is_gbnf:
                self._reader.fail("must not have macros", start)
            return Reference(OWN + name[0])
        one = self._reader.take()
        if one == '"':
            return self._literal(start)
        if one == "[":
            return self._reader.char_class(start, is_gbnf=self._is_gbnf)
        if one == "(":
            return self._group(start)
        if self._is_gbnf and one == ".":
            return Chars(ANY)
        if self._is_gbnf and one in "<!":
            self._reader.fail("must not name tokens, only characters", start)
        return self._reader.fail(f"has `{one}` where an expression must be", start)

    def _group(self, start: int) -> Node:
        if self._reader.next == "=":
            self._reader.fail("must not look ahead", start)
        self._reader.enter()
        found = self._alternatives()
        self._reader.leave(start)
        return found

    def _literal(self, start: int) -> Node:
        found: list[str] = []
        while not self._reader.skip('"'):
            is_at_line_end = self._reader.next == "\n" and not self._is_gbnf
            if not self._reader.next or is_at_line_end:
                self._reader.fail('has a literal without its closing `"`', start)
            at, one = self._reader.at, self._reader.take()
            ranges = self._reader.escape() if one == "\\" else ((ord(one), ord(one)),)
            ((first, last), *others) = self._reader.chars(ranges, at).ranges
            if first != last or others:
                self._reader.fail("has an escape for several characters in a literal", at)
            found.append(chr(first))
        return Text("".join(found))
