"""Follows one JSON value a character at a time: may it go on like this, and is it whole?

It takes what `json.loads` takes, but not `NaN` and `Infinity`, which are not JSON, and nothing
nested deeper than a bound. It keeps no text and makes no values.
"""

from __future__ import annotations

from enum import StrEnum

MAX_DEPTH = 128  # brackets; clients' parsers recurse, and the arguments of a tool are shallow

WHITE_SPACE = " \t\n\r"
DIGITS = "0123456789"
HEX_DIGITS = DIGITS + "abcdefABCDEF"
NUMBER_ENDS = frozenset({"zero", "whole", "fraction", "exponent"})

# What a transition asks for besides a new state.
SCALAR_END, CLOSE, COMMA = "scalar end", "close", "comma"


class Start(StrEnum):
    """What the value may be."""

    ANY = "value"
    OBJECT = "object"


class JsonFollower:
    """One value being written. After a refused character it is of no further use."""

    def __init__(self, start: Start = Start.ANY) -> None:
        self._state: str = start
        self._owed: list[str] = []  # closing brackets
        self._is_key = False

    @property
    def is_complete(self) -> bool:
        """The value is whole and only white space may follow; a number is so after white space."""
        return self._state == "end"

    @property
    def can_end(self) -> bool:
        """The value is whole, though a number might go on."""
        return self._state == "end" or (not self._owed and self._state in NUMBER_ENDS)

    def accept(self, char: str) -> bool:
        """Whether the value may go on with `char`."""
        state = self._state
        if state == "string" and char not in '"\\':
            return char >= " "
        if state in NUMBER_ENDS and char not in _TABLE[state]:
            state = self._after_value
        target = _TABLE[state].get(char)
        if target is None:
            return False
        if char in "{[" and not self._open(char):
            return False
        if target is CLOSE and (not self._owed or self._owed.pop() != char):
            return False
        self._state = self._resolve(target)
        return True

    @property
    def _after_value(self) -> str:
        return "after" if self._owed else "end"

    def _open(self, bracket: str) -> bool:
        self._owed.append("}" if bracket == "{" else "]")
        return len(self._owed) <= MAX_DEPTH

    def _resolve(self, target: str) -> str:
        if target == "string end":
            return "colon" if self._is_key else self._after_value
        if target in (SCALAR_END, CLOSE):
            return self._after_value
        if target == COMMA:
            target = "key" if self._owed[-1] == "}" else "value"
        if target in _KEY_COMES:
            self._is_key = _KEY_COMES[target]
        return target


# Whether the next string is a key.
_KEY_COMES = {"first key": True, "key": True, "first item": False, "value": False}


def _literal_states() -> dict[str, dict[str, str]]:
    """`tru` goes on with `e`."""
    return {
        word[:length]: {word[length]: word[: length + 1] if word[length + 1 :] else SCALAR_END}
        for word in ("true", "false", "null")
        for length in range(1, len(word))
    }


def _table() -> dict[str, dict[str, str]]:
    """By state and character: the next state, or what `_resolve` makes one of."""
    value = {
        **dict.fromkeys(WHITE_SPACE, "value"),
        **dict.fromkeys("123456789", "whole"),
        **{'"': "string", "{": "first key", "[": "first item", "-": "minus", "0": "zero"},
        **{"t": "t", "f": "f", "n": "n"},
    }
    first_item = {**value, **dict.fromkeys(WHITE_SPACE, "first item"), "]": CLOSE}
    escape = {**dict.fromkeys('"\\/bfnrt', "string"), "u": "hex 1"}
    point_or_mark = {".": "point", "e": "mark", "E": "mark"}
    return {
        "value": value,
        "object": {**dict.fromkeys(WHITE_SPACE, "object"), "{": "first key"},
        "first item": first_item,
        "key": {**dict.fromkeys(WHITE_SPACE, "key"), '"': "string"},
        "first key": {**dict.fromkeys(WHITE_SPACE, "first key"), '"': "string", "}": CLOSE},
        "colon": {**dict.fromkeys(WHITE_SPACE, "colon"), ":": "value"},
        "after": {**dict.fromkeys(WHITE_SPACE, "after"), ",": COMMA, "}": CLOSE, "]": CLOSE},
        "end": dict.fromkeys(WHITE_SPACE, "end"),
        "string": {'"': "string end", "\\": "escape"},
        "escape": escape,
        **{f"hex {n}": dict.fromkeys(HEX_DIGITS, f"hex {n + 1}") for n in (1, 2, 3)},
        "hex 4": dict.fromkeys(HEX_DIGITS, "string"),
        "minus": {"0": "zero", **dict.fromkeys("123456789", "whole")},
        "zero": point_or_mark,
        "whole": {**dict.fromkeys(DIGITS, "whole"), **point_or_mark},
        "point": dict.fromkeys(DIGITS, "fraction"),
        "fraction": {**dict.fromkeys(DIGITS, "fraction"), "e": "mark", "E": "mark"},
        "mark": {**dict.fromkeys(DIGITS, "exponent"), "+": "sign", "-": "sign"},
        "sign": dict.fromkeys(DIGITS, "exponent"),
        "exponent": dict.fromkeys(DIGITS, "exponent"),
        **_literal_states(),
    }


_TABLE = _table()
