"""Reads keywords of JSON schemas: which of them a grammar can honour, and their values.

Every function raises SchemaRefused, with the rule that is broken and the place in the schema. What
becomes of the values is not decided here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepinfer.text import ebnf

MAX_ALTERNATIVES = 1_000  # of one enum, anyOf or allOf
MAX_COUNT = 10_000  # minItems, maxLength and the like

Schema = Mapping[str, Any]

_NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
# By type, the keywords that say something about its values and about no others. The order is that
# in which a schema without a type is taken to mean one.
KEYWORDS_OF_TYPE: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern"},
    "number": _NUMERIC,
    "integer": _NUMERIC,
    "boolean": set(),
    "null": set(),
}
COMBINING = {"$ref", "allOf", "anyOf", "oneOf", "const", "enum"}
# Each takes the values at which it asks for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "$dynamicRef": (),
    "$recursiveRef": (),
    "additionalItems": (),
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "else": (),
    "if": (),
    "multipleOf": (),
    "not": (),
    "patternProperties": ({},),
    "propertyNames": ({},),
    "then": (),
    "unevaluatedItems": (False,),  # nothing is written that no keyword has looked at
    "unevaluatedProperties": (False,),
    "uniqueItems": (False,),
}


class SchemaRefused(Exception):
    """A schema that is wrong, too large, or asks for what a grammar cannot say."""

    def __init__(self, rule: str, at: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.at = at  # where in the schema, as in `.properties.name`


def check_keywords(schema: Schema, at: str) -> None:
    for keyword, neutral in REFUSED.items():
        if keyword in schema and not any(
            schema[keyword] is n or schema[keyword] == n for n in neutral
        ):
            raise SchemaRefused("is a keyword that is not supported", f"{at}.{keyword}")


def check_options(options: object, at: str) -> list[Any]:
    if not isinstance(options, list) or not options:
        raise SchemaRefused("must be an array with at least one item", at)
    if len(options) > MAX_ALTERNATIVES:
        raise SchemaRefused(f"must have at most {MAX_ALTERNATIVES:,} items", at)
    return options


def says_something(schema: Schema) -> bool:
    """Whether any keyword is there that is not an annotation."""
    known = COMBINING.union(*KEYWORDS_OF_TYPE.values(), {"type"})
    return bool(known & schema.keys())


def join(one: Schema, other: Schema, at: str) -> Schema:
    """Both at once, where no keyword of one has a bearing on a keyword of the other."""
    for kind in ("additionalProperties", "items"):
        related = "properties" if kind == "additionalProperties" else "prefixItems"
        for left, right in ((one, other), (other, one)):
            if kind in left and related in right and kind not in right:
                raise SchemaRefused(f"must not be combined with `{kind}` of another schema", at)
    known = COMBINING.union(*KEYWORDS_OF_TYPE.values(), {"type"})
    for keyword in known & one.keys() & other.keys():
        if one[keyword] != other[keyword]:
            raise SchemaRefused(f"must not be combined with another `{keyword}`", at)
    return {**one, **other}


def types_of(schema: Schema, at: str) -> list[str]:
    """The types of a schema's values; one that its keywords mean, where it names none."""
    given = schema.get("type")
    if given is None:
        for kind, keywords in KEYWORDS_OF_TYPE.items():
            if keywords & schema.keys():
                return [kind]
        return ["value"]
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(t, str) and t in KEYWORDS_OF_TYPE for t in types):
        raise SchemaRefused(f"must be of {', '.join(KEYWORDS_OF_TYPE)}", f"{at}.type")
    return list(dict.fromkeys(types))


def value_types(schema: Schema) -> set[str]:
    """The types that values certainly have; none when the schema does not say so."""
    given = schema.get("type", [])
    types = given if isinstance(given, list) else [given]
    return {"number" if kind == "integer" else kind for kind in types}


def constants(schema: Schema) -> set[str]:
    """The texts that a schema's value is one of; none when it may be anything else."""
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    return set(values) if all(isinstance(value, str) for value in values) else set()


def are_apart(one: set[str], other: set[str]) -> bool:
    return bool(one and other) and one.isdisjoint(other)


def literals(values: Sequence[Any], schema: Schema, at: str) -> str:
    """An expression for one of `values`, of those that the schema's type lets stand."""
    others = (says_keyword for says_keyword in schema if says_keyword not in ("const", "enum"))
    bounds = set().union(*KEYWORDS_OF_TYPE.values())
    if bounds.intersection(others):
        raise SchemaRefused("must not stand beside other keywords than `type`", f"{at}.enum")
    allowed = types_of(schema, at) if "type" in schema else ["value"]
    fitting = [value for value in values if _has_type(value, allowed)]
    if not fitting:
        raise SchemaRefused("must have a value of the schema's type", f"{at}.enum")
    try:
        texts = [
            json.dumps(v, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            for v in fitting
        ]
    except ValueError:
        raise SchemaRefused("must hold values that JSON can write", f"{at}.enum") from None
    return ebnf.one_of(map(ebnf.literal, texts))


def _has_type(value: object, allowed: Sequence[str]) -> bool:
    if "value" in allowed:
        return True
    if isinstance(value, bool):
        return "boolean" in allowed
    if isinstance(value, int | float):
        is_whole = isinstance(value, int) or value.is_integer()
        return "number" in allowed or ("integer" in allowed and is_whole)
    names = {dict: "object", list: "array", str: "string", type(None): "null"}
    return names[type(value)] in allowed


def mapping(schema: Schema, keyword: str, at: str) -> Schema:
    value = schema.get(keyword, {})
    if not isinstance(value, dict):
        raise SchemaRefused("must be an object of schemas", f"{at}.{keyword}")
    return value


def count(schema: Schema, keyword: str, at: str) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise SchemaRefused(f"must be a whole number from 0 to {MAX_COUNT:,}", f"{at}.{keyword}")
    return value


def bounds(schema: Schema, at: str) -> tuple[int, int]:
    """The lowest and the highest whole number in range."""
    lowest = math.ceil(limit(schema, "minimum", at, -ebnf.MAX_INTEGER))
    highest = math.floor(limit(schema, "maximum", at, ebnf.MAX_INTEGER))
    lowest += lowest == schema.get("exclusiveMinimum")
    highest -= highest == schema.get("exclusiveMaximum")
    if lowest > highest:
        raise SchemaRefused("must leave a whole number between its bounds", at)
    return lowest, highest


def limit(schema: Schema, keyword: str, at: str, default: int) -> int | float:
    """The narrower of a bound and its exclusive form."""
    found: list[int | float] = [default]
    for name in (keyword, f"exclusive{keyword.capitalize()}"):
        value = schema.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or not abs(value) <= ebnf.MAX_INTEGER:
            raise SchemaRefused(
                f"must be a number of at most {ebnf.MAX_INTEGER_DIGITS} digits", f"{at}.{name}"
            )
        found.append(value)
    return max(found) if keyword == "minimum" else min(found)
