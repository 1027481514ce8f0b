"""Pieces of grammars in EBNF, as xgrammar reads it: literals, whole numbers, JSON's own rules.

JSON is written without white space, and numbers have a bounded count of digits: where a grammar
allows a repetition without end, a model may well take it up. What a schema asks for is in
`json_grammar.py`.

The characters of strings are listed by ranges that end where the form of UTF-8 changes: of "all but
these", and of wider ranges, xgrammar makes byte sequences that are no UTF-8 as well. Nor is any
number of this or that written as `(this | that)*`, but as `this* (that this*)*`: the first takes a
hundred times as long for each token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_INTEGER_DIGITS = 15  # what a double holds exactly, as most JSON libraries read numbers
MAX_INTEGER = 10**MAX_INTEGER_DIGITS - 1

BLOCK = 16  # see `repeat`
MAX_SPELLED_OUT = 2 * BLOCK
_BLOCKS = (1, BLOCK, BLOCK**2, BLOCK**3)

# All that a JSON string may hold as it is: no quote, no backslash, no control character.
PLAIN_CHARS = (
    r" !#-\[\]-\x7f\u0080-\u07ff\u0800-\u0fff\u1000-\ucfff\ud000-\ud7ff\ue000-\uffff"
    r"\U00010000-\U0010ffff"
)

JSON_RULES = rf"""
value ::= object | array | string | number | boolean | null
object ::= "{{" (member ("," member)*)? "}}"
member ::= string ":" value
array ::= "[" (value ("," value)*)? "]"
string ::= "\"" chars "\""
chars ::= [{PLAIN_CHARS}]* ("\\" escape [{PLAIN_CHARS}]*)*
char ::= [{PLAIN_CHARS}] | "\\" escape
escape ::= ["\\/bfnrt] | "u" ([0-9a-cA-CeEfF] hex hex hex | [dD] [0-7] hex hex)
hex ::= [0-9a-fA-F]
number ::= integer fraction? ([eE] [+-]? [0-9]{{1,2}})?
fraction ::= "." [0-9]{{1,{MAX_INTEGER_DIGITS}}}
integer ::= "-"? ("0" | [1-9] [0-9]{{0,{MAX_INTEGER_DIGITS - 1}}})
boolean ::= "true" | "false"
null ::= "null"
"""

ANY_OBJECT = f"root ::= object{JSON_RULES}"


# xgrammar writes these as \x and two digits, and then reads a hex digit after them as a third.
_MISREAD = re.compile(r"(?<=[\x00-\x1f\x7f-\xff])(?=[0-9a-fA-F])")


def literal(text: str) -> str:
    """An expression for exactly this text."""
    pieces = ['"' + "".join(map(_escape, piece)) + '"' for piece in _MISREAD.split(text)]
    return pieces[0] if len(pieces) == 1 else "(" + " ".join(pieces) + ")"


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def one_of(expressions: Iterable[str]) -> str:
    return "(" + " | ".join(expressions) + ")"


def choice_grammar(texts: Iterable[str]) -> str:
    """A grammar for one of `texts`."""
    return "root ::= " + " | ".join(map(literal, texts))


def repeat(expression: str, least: int, most: int | None) -> str:
    """So many times in a row; nothing at all for none.

    Large counts are written as repetitions of repetitions: spelled out one by one, xgrammar takes
    time with the square of the count. `((x){16}){0,1} (x){0,19}` is `x` up to 35 times.
    """
    if max(least, most or 0) <= MAX_SPELLED_OUT:
        return f"({expression}){{{least},{'' if most is None else most}}}" if most != 0 else ""
    fixed, left = [], least
    for block in reversed(_BLOCKS):
        times, left = divmod(left, block)
        if times:
            fixed.append(_repeat(expression, block, f"{{{times}}}"))
    if most is None:
        return " ".join([*fixed, f"({expression}){{0,}}"])
    open_end, left = [], most - least
    for block in reversed(_BLOCKS[1:]):
        if left >= 2 * block:
            times = left // block - 1
            open_end.append(_repeat(expression, block, f"{{0,{times}}}"))
            left -= times * block
    if left:
        open_end.append(f"({expression}){{0,{left}}}")
    return " ".join([*fixed, *open_end])


def _repeat(expression: str, block: int, counts: str) -> str:
    """Blocks of so many, which are repeated."""
    size = 1
    while size < block:
        expression = f"({expression}){{{BLOCK}}}"
        size *= BLOCK
    return f"({expression}){counts}"


def integers(lowest: int, highest: int) -> list[str]:
    """Expressions that together match every whole number from `lowest` to `highest`."""
    found = []
    if lowest < 0:
        magnitudes = _digits(max(1, -highest), -lowest)
        found += [f'"-" {expression}' for expression in magnitudes]
    if highest >= 0:
        found += _digits(max(0, lowest), highest)
    return found


def magnitudes(lowest: int, highest: int) -> list[str]:
    """Like `integers`, of numbers without a sign; none when the range is empty."""
    return _digits(lowest, highest) if lowest <= highest else []


def _digits(lowest: int, highest: int) -> list[str]:
    """As a tree of digits, in which no two alternatives begin alike.

    Of alternatives by length, such as `[0-9] | [1-9] [0-9] | [1-9] [0-9] [0-9]`, xgrammar has been
    seen to make loops.
    """
    found = ['"0"'] if not lowest else []
    by_rest: dict[str, str] = {}
    for first in range(1, 10):
        rest = _rest_of(first, lowest, highest)
        if rest is not None:
            by_rest[rest] = by_rest.get(rest, "") + str(first)
    return found + [f"[{firsts}] {rest}".rstrip() for rest, firsts in by_rest.items()]


def _rest_of(prefix: int, lowest: int, highest: int) -> str | None:
    """What may follow these digits; None when no number in range begins with them."""
    parts, wholes = [], []  # how many more digits some, and all, numbers in range have
    for count in range(len(str(highest)) - len(str(prefix)) + 1):
        first, last = prefix * 10**count, (prefix + 1) * 10**count - 1
        if first <= highest and last >= lowest:
            parts.append(count)
        if first >= lowest and last <= highest:
            wholes.append(count)
    if not parts:
        return None
    if parts == wholes:
        return "" if parts == [0] else f"[0-9]{{{parts[0]},{parts[-1]}}}"
    by_rest: dict[str, str] = {}
    for digit in range(10):
        rest = _rest_of(prefix * 10 + digit, lowest, highest)
        if rest is not None:
            by_rest[rest] = by_rest.get(rest, "") + str(digit)
    branches = one_of(f"[{digits}] {rest}".rstrip() for rest, digits in by_rest.items())
    return f"{branches}?" if 0 in parts else branches
