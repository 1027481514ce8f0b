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
COUNTED_BLOCK = 32  # see `count_rules`
CHAR = "char"  # a character of a string, and how the names of the rules that count them begin
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


def count_rules(name: str, char: str, escape: str = "") -> list[str]:
    """Rules by which `counted` counts characters: one of a set, `char`, or an `escape`.

    xgrammar decides at compile time which tokens fit, except those that leave the rule that they
    begin in: these are tried in each step. With a repeated rule for one character that is every
    token. So a block of characters is a chain of rules, each of which leads to the next, and only
    tokens that leave the block are tried. Compiling takes time for each rule of a block, on up to
    eight threads, and a step takes the less the longer a block is. With a vocabulary of 49,152, of
    processor time: blocks of 16 take 0.4 s and 40 ms a step, of 32 0.9 s and 15 ms, of 64 2.2 s and
    8 ms; a repeated rule took 60 ms a step.
    """
    rules = []
    for kind, end in (("exactly", ""), ("upto", ' | ""')):
        for count in range(1, COUNTED_BLOCK + 1):
            rest = f" {name}_{kind}{count - 1}" if count > 1 else ""
            options = [f"{char}{rest}", *([f"{escape}{rest}"] if escape else [])]
            rules.append(f"{name}_{kind}{count} ::= {' | '.join(options)}{end}")
    return rules


def counted(name: str, least: int, most: int | None, any_number: str) -> str:
    """A number of characters, by the rules of `count_rules`; empty for none.

    `any_number` is an expression for any number of them.
    """
    blocks, left = divmod(least, COUNTED_BLOCK)
    block = f"{name}_exactly{COUNTED_BLOCK}"
    parts = [
        block if blocks == 1 else repeat(block, blocks, blocks),
        f"{name}_exactly{left}" if left else "",
    ]
    if most is None:
        parts.append(any_number)
    elif most > least:
        blocks, left = divmod(most - least - 1, COUNTED_BLOCK)
        parts.append(repeat(block, 0, blocks - 1) if blocks > 1 else "")
        last = f"{name}_upto{left + 1}"
        parts.append(f"({name}_upto{COUNTED_BLOCK - 1} | {block} {last})" if blocks else last)
    return " ".join(filter(None, parts))


def with_json_rules(root: str, rules: Iterable[str], plain_chars: str = PLAIN_CHARS) -> str:
    """A whole grammar: the rule for `root`, JSON's, those that count characters if they are used,
    and `rules`. Strings of JSON hold `plain_chars` as they are."""
    written = "\n".join(rules)
    counting = count_rules(CHAR, f"[{plain_chars}]", r'"\\" escape')
    if f"{CHAR}_" in root or f"{CHAR}_" in written:
        written = "\n".join([*counting, written])
    json_rules = JSON_RULES.replace(PLAIN_CHARS, plain_chars)
    return f"{root}{json_rules}{written}\n"


def string(least: int, most: int | None) -> str:
    """The characters between the quotes of a bounded string; an escape counts as one."""
    return counted(CHAR, least, most, "chars")


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
