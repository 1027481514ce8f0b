"""Patterns and formats of strings in JSON schemas, as grammars."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deepinfer.text.json_grammar import make_grammar
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.string_formats import PATTERNS


def rules_of(schema: dict[str, Any]) -> dict[str, str]:
    lines = (line for line in make_grammar(schema).splitlines() if "::=" in line)
    return {name: rule for name, rule in (line.split(" ::= ", 1) for line in lines)}


def test_pattern_is_found_anywhere_unless_anchored() -> None:
    assert rules_of({"pattern": "^ab$"})["p0"] == '"a" "b"'
    assert rules_of({"pattern": "ab"})["p0"] == '(p0x0){0,} "a" "b" (p0x0){0,}'
    assert rules_of({"pattern": "^a|b$"})["p0"] == '("a" (p0x0){0,} | (p0x0){0,} "b")'


def test_characters_are_escaped_as_json_does() -> None:
    assert rules_of({"pattern": r'^"\\\n\x01$'})["p0"] == r'"\\\"" "\\\\" "\\n" "\\u0001"'
    rules = rules_of({"pattern": r'^[a"\n]$'})
    assert rules["p0x0"] == r'[a] | "\\n" | "\\\""'


def test_length_beside_a_pattern_is_counted_or_refused() -> None:
    assert rules_of({"pattern": "^[a-z]+$", "maxLength": 5})["p0"] == "(p0x0){1,5}"
    with pytest.raises(SchemaRefused) as refused:
        make_grammar({"pattern": "^ab+$", "maxLength": 5})
    assert refused.value.at == ".pattern" and "maxLength" in refused.value.rule


@pytest.mark.parametrize("pattern", [5, "(", "(?=a)", "a" * 5_000], ids=str)
def test_pattern_that_cannot_be_honoured_is_refused(pattern: object) -> None:
    with pytest.raises(SchemaRefused) as refused:
        make_grammar({"type": "object", "properties": {"a": {"pattern": pattern}}})
    assert refused.value.at == ".properties.a.pattern"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", "2024-02-28", "2023-02-30"),
        ("time", "23:59:59.5+01:00", "24:00:00Z"),
        ("date-time", "2024-12-31T00:00:00Z", "2024-12-31 00:00:00Z"),
        ("uuid", "01234567-89ab-cdef-0123-456789abcdef", "01234567"),
        ("ipv4", "255.0.10.1", "256.0.0.1"),
        ("email", "a.b@example.org", "a@b"),
    ],
)
def test_format_by_name(name: str, good: str, bad: str) -> None:
    assert re.fullmatch(PATTERNS[name], good) and not re.fullmatch(PATTERNS[name], bad)
    assert "p0" in rules_of({"type": "string", "format": name})


def test_format_that_is_not_known_has_no_effect() -> None:
    assert make_grammar({"type": "string", "format": "iri"}) == make_grammar({"type": "string"})
