"""Keywords of JSON schemas in grammars, judged by jsonschema: what a grammar allows is valid."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepinfer.text.json_grammar import make_grammar
from deepinfer.text.json_schema import SchemaRefused
from tests.text.grammar_walk import Grammar

NUM_DRAWN = 200
Schema = dict[str, Any]
TEXT = {"type": "string"}
NULL = {"type": "null"}


def check(
    schema: Schema,
    good: Sequence[str],
    bad: Sequence[str] = (),
    judge: type = jsonschema.Draft202012Validator,
    num_drawn: int = NUM_DRAWN,
) -> None:
    """Drawn texts are valid, the good ones are allowed, and the bad ones are not."""
    grammar, rng = Grammar(make_grammar(schema)), random.Random(1)
    for _ in range(num_drawn):
        text = grammar.draw(rng)
        judge(schema).validate(json.loads(text))
        assert grammar.has(text)
    for text in good:
        judge(schema).validate(json.loads(text))
    assert [text for text in good if not grammar.has(text)] == []
    assert [text for text in bad if grammar.has(text)] == []


def number(**bounds: Any) -> Schema:
    return {"type": "number", **bounds}


def whole(**bounds: Any) -> Schema:
    return {"type": "integer", **bounds}


MAX_SAFE = 2**53 - 1
NUMBERS: dict[str, tuple[Schema, list[str], list[str]]] = {
    "at least 0": (number(minimum=0), ["0", "0.5", "0.0", "100.25"], ["-1", "-0.5"]),
    "0 to 100": (
        number(minimum=0, maximum=100),
        ["0", "99.99", "100", "100.0", "0.001"],
        ["100.5", "100.01", "-1", "101", "1000"],
    ),
    "negative": (
        number(minimum=-10.5, maximum=-2.25),
        ["-10.5", "-10.50", "-2.25", "-3", "-9.99"],
        ["-10.51", "-2.24", "2.5", "-2"],
    ),
    "at least a half": (number(minimum=0.5), ["0.5", "0.51", "1", "2.25"], ["0.49", "0", "0.4"]),
    "between 0 and 1": (
        number(exclusiveMinimum=0, exclusiveMaximum=1),
        ["0.5", "0.001"],
        ["0", "0.0", "1", "1.0"],
    ),
    "below 0": (number(exclusiveMaximum=0), ["-0.5", "-3"], ["0", "-0", "-0.0", "1"]),
    "over the zero": (
        number(exclusiveMinimum=-1.25, maximum=3.125),
        ["-1.2", "3.125", "3.1250", "0", "-0.5"],
        ["-1.25", "-1.250", "3.126"],
    ),
    "one number": (number(minimum=0.1, maximum=0.1), ["0.1", "0.10"], ["0.11", "0"]),
    "large": (
        number(minimum=-5000, maximum=123456789.5),
        ["123456789.5", "5.25", "-5000.0"],
        ["123456789.6", "-5000.1"],
    ),
    "beyond all doubles": (number(minimum=-1e308, maximum=1e308), ["0", "-1.5"], []),
    "Zod 4's integer": (whole(minimum=-MAX_SAFE, maximum=MAX_SAFE), ["0", "-5", "123456"], []),
    "pydantic's integer": (whole(exclusiveMinimum=0, maximum=2**63 - 1), ["1"], ["0"]),
    "bounds as floats": (whole(minimum=-1e308, exclusiveMaximum=9.007199254740991e15), ["7"], []),
    "fractions as bounds": (whole(minimum=0.5, maximum=2.5), ["1", "2"], ["0", "3"]),
    "sevens": (whole(multipleOf=7), ["0", "7", "-14", "700"], ["8", "70.0"]),
    "fives": (whole(multipleOf=5, minimum=3, maximum=99_999), ["5", "99995"], ["4", "0"]),
    "dozens": (whole(multipleOf=12, minimum=100, maximum=60_000), ["108", "60000"], ["96"]),
    "hundreds": (whole(multipleOf=100), ["0", "-100", "1200"], ["50"]),
    "few large steps": (whole(multipleOf=250, minimum=0, maximum=1000), ["0", "750"], ["100"]),
    "halves of a few": (
        number(multipleOf=0.5, minimum=0, maximum=5),
        ["0.5", "5", "0"],
        ["0.25", "5.5"],
    ),
    "quarters": (number(multipleOf=0.25), ["0.25", "3.75", "-1.5"], ["0.3"]),
    "tens of a number": (number(multipleOf=10), ["0", "20"], ["5", "2.5"]),
    "a whole step of fractions": (whole(multipleOf=2.5), ["5", "-10"], ["7"]),
}


@pytest.mark.parametrize(("schema", "good", "bad"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_keep_to_bounds_and_steps(schema: Schema, good: list[str], bad: list[str]) -> None:
    check(schema, good, bad)


BOUNDS = st.one_of(
    st.integers(-1200, 1200),
    st.floats(-1200, 1200).map(lambda value: round(value, 3)),
    st.floats(-2, 2),
    st.sampled_from([0, 1, -1, 10, 100, -100, 99.5, 0.1, 1e308, -1e308, 2**63 - 1]),
)


@given(
    bounds=st.dictionaries(
        st.sampled_from(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]), BOUNDS
    ),
    kind=st.sampled_from(["number", "integer"]),
)
@example(bounds={"minimum": 2**63 - 1, "maximum": 1e308}, kind="integer")
@example(bounds={"minimum": 2**63 - 1, "maximum": 1e308}, kind="number")
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_any_bounds_are_kept_or_leave_nothing(bounds: Schema, kind: str) -> None:
    try:
        check({"type": kind, **bounds}, [], num_drawn=30)
    except SchemaRefused as refusal:
        lowest = max(bounds.get("minimum", -1e15), bounds.get("exclusiveMinimum", -1e15))
        highest = min(bounds.get("maximum", 1e15), bounds.get("exclusiveMaximum", 1e15))
        assert "at most 15 digits between its bounds" in refusal.rule and highest - lowest < 1


@given(value=st.decimals(0, 100, places=3))
def test_every_fraction_in_range_is_allowed(value: Decimal) -> None:
    assert Grammar(make_grammar(number(minimum=0, maximum=100))).has(f"{value}")


@pytest.mark.parametrize("step", ["0.1", "0.01", "0.001"])
def test_powers_of_ten_bound_the_digits(step: str) -> None:
    schema = number(multipleOf=float(step), minimum=0.05, exclusiveMaximum=10_000)
    grammar, rng = Grammar(make_grammar(schema)), random.Random(2)
    for _ in range(NUM_DRAWN):
        # As decimals: in doubles 0.07 is no multiple of 0.01.
        value = Decimal(grammar.draw(rng))
        assert not value % Decimal(step) and Decimal("0.05") <= value < 10_000
    assert grammar.has("9999.9") and not grammar.has("0") and not grammar.has("1.23456")


def record(names: object, value: object = NULL, **others: object) -> Schema:
    return {
        "type": "object",
        "propertyNames": names,
        "additionalProperties": value,
        **others,
    }


KEYWORDS: dict[str, tuple[Schema, list[str], list[str]]] = {
    "any names": (record(TEXT), ['{"a":null}', "{}"], ['{"a":1}']),
    "names of an enum": (
        record({"enum": ["a", "b"]}),
        ["{}", '{"b":null}', '{"a":null,"b":null}'],
        ['{"c":null}', '{"a":null,"a":null}'],
    ),
    "all names of an enum": (
        record({"type": "string", "enum": ["a", "b"]}, required=["a", "b"]),
        ['{"a":null,"b":null}'],
        ["{}", '{"a":null}'],
    ),
    "a constant name": (record({"const": "k"}), ['{"k":null}', "{}"], ['{"c":null}']),
    "names of a pattern": (
        record({"pattern": "^[a-z]+_[0-9]$"}),
        ['{"a_1":null,"b_2":null}'],
        ['{"a":null}'],
    ),
    "names of a length": (
        record({"minLength": 2, "maxLength": 3}),
        ['{"ab":null}'],
        ['{"a":null}', '{"abcd":null}'],
    ),
    "names of one of two kinds": (
        record({"anyOf": [{"const": "x"}, {"pattern": "^y+$"}]}),
        ['{"x":null,"yy":null}'],
        ['{"z":null}'],
    ),
    "names by reference": (
        record({"$ref": "#/$defs/name"}, **{"$defs": {"name": {"enum": ["q"]}}}),
        ['{"q":null}'],
        ['{"a":null}'],
    ),
    "no names": (record(False), ["{}"], ['{"a":null}']),
    "names that are no strings": (record({"type": "integer"}), ["{}"], ['{"1":null}']),
    "lengths beside properties": (
        {"type": "object", "propertyNames": {"maxLength": 2}, "properties": {"ab": {}, "abc": {}}},
        ['{"ab":1}', "{}"],
        ['{"abc":1}'],
    ),
    "items once": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True},
        ["[]", '["b","a"]', '["c","b","a"]'],
        ['["a","a"]', '["a","b","a"]'],
    ),
    "items once, counted": (
        {
            "type": "array",
            "items": {"enum": ["a", 1, 1.0, True]},
            "uniqueItems": True,
            "minItems": 2,
            "maxItems": 2,
        },
        ['["a",1]', "[1,true]"],
        ['["a"]', "[1,1.0]", '["a",1,true]'],
    ),
    "two of many once": (
        {
            "type": "array",
            "items": {"enum": [*"abcdefghijklmnop"]},
            "uniqueItems": True,
            "maxItems": 2,
        },
        ['["p","a"]'],
        ['["p","p"]'],
    ),
    "booleans once": (
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
        ["[true,false]"],
        ["[true,true]"],
    ),
    "one item is unique": (
        {"type": "array", "items": TEXT, "uniqueItems": True, "maxItems": 1},
        ['["x"]'],
        ['["x","y"]'],
    ),
    "references are percent-encoded": (
        {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/a%20b~1c~0"}, "y": {"$ref": "#/%24defs/p%25"}},
            "required": ["x", "y"],
            "$defs": {"a b/c~": {"const": 1}, "p%": {"const": 2}},
        },
        ['{"x":1,"y":2}'],
        [],
    ),
}


@pytest.mark.parametrize(("schema", "good", "bad"), KEYWORDS.values(), ids=KEYWORDS)
def test_keywords_are_kept_to(schema: Schema, good: list[str], bad: list[str]) -> None:
    check(schema, good, bad)


TUPLE = [{"type": "integer"}, {"type": "boolean"}]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"items": TUPLE, "additionalItems": False}, ["[1,true]", "[1]"], ["[true]", "[1,true,1]"]),
        (
            {"items": TUPLE, "additionalItems": NULL, "minItems": 3},
            ["[1,true,null]", "[1,true,null,null]"],
            ["[1,true]", "[1,true,1]"],
        ),
        ({"items": TUPLE}, ["[1,true]"], ["[true]"]),
        ({"items": {"type": "boolean"}, "additionalItems": False}, ["[true,true,false]"], ["[1]"]),
    ],
    ids=["closed", "more of one kind", "open", "no tuple"],
)
def test_tuples_of_draft_7(schema: Schema, good: list[str], bad: list[str]) -> None:
    check({"type": "array", **schema}, good, bad, jsonschema.Draft7Validator)


def test_exclusive_bounds_of_draft_4() -> None:
    schema = number(minimum=0, exclusiveMinimum=True, maximum=1, exclusiveMaximum=False)
    check(schema, ["0.5", "1"], ["0", "1.1"], jsonschema.Draft4Validator)


@pytest.mark.parametrize("most", [1, 32, 33, 40, 300, 1_000, 10_000, 65_536])
def test_long_strings_are_counted_exactly_by_a_small_grammar(most: int) -> None:
    text = make_grammar({"type": "string", "maxLength": most})
    assert len(text) < 20_000
    grammar = Grammar(text)
    lengths = [0, 1, most // 2, most - 1, most] if most <= 1_000 else []
    assert all(grammar.has(f'"{"é" * length}"') for length in lengths)
    if most <= 1_000:
        assert not grammar.has(f'"{"a" * (most + 1)}"')


@pytest.mark.parametrize(("least", "most"), [(5, 5), (295, 300), (40, None), (33, 70)])
def test_least_lengths_are_counted(least: int, most: int | None) -> None:
    schema = {"type": "string", "minLength": least, **({} if most is None else {"maxLength": most})}
    grammar = Grammar(make_grammar(schema))
    assert grammar.has(f'"{"a" * least}"') and not grammar.has(f'"{"a" * (least - 1)}"')
    assert grammar.has(f'"{"a" * (least + 3)}"') == (most is None or most >= least + 3)


REFUSED: dict[str, tuple[Schema, str]] = {
    "unique texts": ({"items": TEXT, "uniqueItems": True}, ".uniqueItems"),
    "too many to be unique": (
        {"items": {"enum": [*range(12)]}, "uniqueItems": True},
        ".uniqueItems",
    ),
    "unique objects": ({"items": {"enum": [{}, []]}, "uniqueItems": True}, ".uniqueItems"),
    "a large odd step": (whole(multipleOf=101), ".multipleOf"),
    "a step of no part of 1": (number(multipleOf=0.3), ".multipleOf"),
    "no step": (whole(multipleOf=0), ".multipleOf"),
    "bound that is text": (whole(minimum="3"), ".minimum"),
    "bound beyond all that is written": (whole(minimum=1e300), ""),
    "no number": (number(minimum=5, maximum=4), ""),
    "length": ({"type": "string", "maxLength": 65_537}, ".maxLength"),
    "names at odds": (record({"enum": ["a"]}, required=["b"]), ".propertyNames"),
    "pattern beside names": (
        {"propertyNames": {"pattern": "a"}, "properties": {"a": {}}},
        ".propertyNames",
    ),
    "keyword of names": (record({"not": {}}), ".propertyNames.not"),
    "names that are no schema": (record(5), ".propertyNames"),
    "two kinds of tuples": ({"items": [{}], "prefixItems": [{}]}, ".items"),
    "anchor": ({"$ref": "#name"}, ".$ref"),
    "reference to nothing": ({"$ref": "#/$defs/a%20b"}, ".$ref"),
}


@pytest.mark.parametrize(("schema", "at"), REFUSED.values(), ids=REFUSED)
def test_what_a_grammar_cannot_say_is_refused_by_name(schema: Schema, at: str) -> None:
    with pytest.raises(SchemaRefused) as refused:
        make_grammar(schema)
    assert refused.value.at == at
