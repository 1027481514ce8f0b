"""What a JSON schema asks strings to look like: by a `pattern`, or by the name of a `format`.

Formats are regular expressions here. Each allows fewer texts than its standard does, and none that
the standard does not: no leap days, no leap seconds, no quoted parts of addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepinfer.text.grammar_tree import GrammarRefused, Node, fit_length
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.regex_grammar import parse_regex

MAX_PATTERN_CHARS = 4_096

_DATE = (
    r"[1-9]\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_HOUR_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = rf"{_HOUR_MINUTE}:[0-5]\d(?:\.\d{{1,6}})?(?:Z|[+-]{_HOUR_MINUTE})"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_MAILBOX = r"[A-Za-z0-9_+-]{1,32}(?:\.[A-Za-z0-9_+-]{1,32}){0,2}"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"

PATTERNS: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}",
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "email": rf"{_MAILBOX}@(?:{_LABEL}\.){{1,3}}[A-Za-z]{{2,16}}",
}


def read_form(schema: Mapping[str, Any], least: int, most: int | None, at: str) -> Node | None:
    """The form of strings with `least` to `most` characters; None where any will do.

    A format that is not known, or has texts of other lengths, is an annotation. Raises
    SchemaRefused for a pattern that cannot be honoured.
    """
    if "pattern" in schema:
        return _read_pattern(schema["pattern"], least, most, f"{at}.pattern")
    name = schema.get("format")
    pattern = PATTERNS.get(name) if isinstance(name, str) else None
    return None if pattern is None else fit_length(parse_regex(pattern), least, most)


def _read_pattern(pattern: object, least: int, most: int | None, at: str) -> Node:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARS:
        raise SchemaRefused(f"must be a string of at most {MAX_PATTERN_CHARS:,} characters", at)
    try:
        fitting = fit_length(parse_regex(pattern, is_search=True), least, most)
    except GrammarRefused as refusal:
        raise SchemaRefused(refusal.rule, at) from None
    if fitting is None:
        rule = "must see to `minLength` and `maxLength` itself; write counts such as {1,20}"
        raise SchemaRefused(rule, at)
    return fitting
