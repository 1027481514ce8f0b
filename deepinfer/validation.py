"""Says in our words what pydantic found wrong: the rule, and the value that was given.

It also makes text of others safe to show: what a file or a client says must not move a terminal's
cursor, and must not look like a line of ours.

Used where outside values come in: configuration and request bodies. It knows neither; the field's
name, the error's class and the way out are added by the caller.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

MAX_SHOWN_CHARS = 60
MAX_LINE_CHARS = 4_000
# Controls of terminals (C0, C1), line ends, what reverses the order of text, and lone surrogates,
# which cannot be written at all.
CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# Of pydantic's error types, those that a message is written for; others keep pydantic's own words.
_RULES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "enum": "must be one of {expected}",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of at most 19 digits",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "list_type": "must be an array",
    "literal_error": "must be {expected}",
    "missing": "is required",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "path_type": "must be a path",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be a string",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
}


def describe_rule(error: Mapping[str, Any]) -> str:
    """The rule that one entry of `ValidationError.errors()` broke: "must be at most 2"."""
    if error.get("ctx", {}).get("min_length") == 1:
        return "must not be empty"
    context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
    rule = _RULES.get(error["type"])
    return rule.format(**context) if rule is not None else str(error["msg"])


def _plain(value: object) -> object:
    if isinstance(value, str):
        return value.replace("'", "`")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if type(value) is int and abs(value) >= 10_000 else value


def show_value(value: object) -> str:
    """A value as its sender wrote it, cut to a length that fits in a message."""
    if isinstance(value, list | tuple):
        return f"an array of {len(value):,} items" if value else "an empty array"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        value = value[: MAX_SHOWN_CHARS + 1]
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > MAX_SHOWN_CHARS:
        text = text[:MAX_SHOWN_CHARS] + "..."
    return f"`{text}`"


def escape_controls(text: str, *, keep: str = "") -> str:
    """`text` with control characters, but those of `keep`, as JSON writes them: `\\u001b`."""

    def escape(match: re.Match[str]) -> str:
        char = match[0]
        return char if char in keep else f"\\u{ord(char):04x}"

    return CONTROLS.sub(escape, text)


def as_one_line(text: str) -> str:
    """`text` on one line: white space as single spaces, controls escaped, cut where it is long."""
    cut = text[: MAX_LINE_CHARS + 1]
    line = escape_controls(" ".join(cut.split()))
    return line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + "..."


def suggest(name: str, known: Iterable[str]) -> str:
    """The way out for an unknown name: the nearest known one, or all of them when few are."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean `{nearest[0]}`?"
    return "known are " + ", ".join(f"`{known_name}`" for known_name in names)
