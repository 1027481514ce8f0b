"""Reads keywords of JSON schemas: which of them a grammar can honour, and their values.

Every function raises SchemaRefused, with the rule that is broken and the place in the schema. What
becomes of the values is not decided here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from deepinfer.text import ebnf

MAX_ALTERNATIVES = 1_000  # of one enum, anyOf or allOf
MAX_COUNT = 10_000  # minItems, maxProperties and the like
MAX_LENGTH = 65_536  # minLength and maxLength

Schema = Mapping[str, Any]

_NUMERIC = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
# By type, the keywords that say something about its values and about no others. The order is that
# in which a schema without a type is taken to mean one.
KEYWORDS_OF_TYPE: dict[str, set[str]] = {
    "object": {
        "properties",
        "required",
        "additionalProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
    },
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
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
    "contains": (),
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "else": (),
    "if": (),
    "not": (),
    "patternProperties": ({},),
    "then": (),
    "unevaluatedItems": (False,),  # nothing is written that no keyword has looked at
    "unevaluatedProperties": (False,),
}

# Values at which a keyword asks for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "propertyNames": (True, {}, {"type": "string"}),
    "uniqueItems": (False,),
}


@dataclass(frozen=True)
class Bound:
    """The least or the greatest of numbers; `is_exclusive` where they must not be equal to it."""

    value: Decimal
    is_exclusive: bool = False


class SchemaRefused(Exception):
    """A schema that is wrong, too large, or asks for what a grammar cannot say."""

    def __init__(self, rule: str, at: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.at = at  # where in the schema, as in `.properties.name`


def read_keywords(schema: Schema, at: str) -> Schema:
    """The schema as the newest draft writes it, once no keyword of it has to be refused.

    Drafts up to 7 have tuples as an array of `items`, and draft 4 exclusive bounds as flags.
    """
    _check_keywords(schema, at)
    read = {
        key: value
        for key, value in schema.items()
        if not any(value is n or value == n for n in NEUTRAL.get(key, ()))
    }
    read.pop("additionalItems", None)
    if isinstance(schema.get("items"), list):
        if "prefixItems" in schema:
            raise SchemaRefused("must be one schema beside `prefixItems`", f"{at}.items")
        read["prefixItems"] = read.pop("items")
        if "additionalItems" in schema:
            read["items"] = schema["additionalItems"]
    for bound in ("minimum", "maximum"):
        name = f"exclusive{bound.capitalize()}"
        if isinstance(schema.get(name), bool):
            del read[name]
            if schema[name] and bound in schema:
                read[name] = read.pop(bound)
    return read


def _check_keywords(schema: Schema, at: str) -> None:
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


def restricts(keyword: str) -> bool:
    """Whether it is one that may say something about values, honoured or not."""
    return keyword in REFUSED or says_something({keyword: None})


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
    fitting = [value for value in values if has_type(value, allowed)]
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


def has_type(value: object, allowed: Sequence[str]) -> bool:
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


def count(schema: Schema, keyword: str, at: str, most: int = MAX_COUNT) -> int | None:
    value = schema.get(keyword)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= most:
        raise SchemaRefused(f"must be a whole number from 0 to {most:,}", f"{at}.{keyword}")
    return value


def lengths(schema: Schema, at: str) -> tuple[int, int | None]:
    """The fewest and the most characters of a string; None where there is no end to it."""
    least = count(schema, "minLength", at, MAX_LENGTH) or 0
    most = count(schema, "maxLength", at, MAX_LENGTH)
    if most is not None and most < least:
        raise SchemaRefused("must not be below minLength", f"{at}.maxLength")
    return least, most


def bounds(schema: Schema, at: str) -> tuple[Bound | None, Bound | None]:
    """The lowest and the highest number, None where none that is written is beyond it."""
    lowest, highest = _bound(schema, "minimum", at), _bound(schema, "maximum", at)
    if lowest is not None and lowest.value < -ebnf.MAX_INTEGER:
        lowest = None
    if highest is not None and highest.value > ebnf.MAX_INTEGER:
        highest = None
    return lowest, highest


def _bound(schema: Schema, keyword: str, at: str) -> Bound | None:
    """The narrower of a bound and its exclusive form."""
    found = []
    for name, is_exclusive in ((keyword, False), (f"exclusive{keyword.capitalize()}", True)):
        value = schema.get(name)
        if value is None:
            continue
        if type(value) not in (int, float) or math.isnan(value):
            raise SchemaRefused("must be a number", f"{at}.{name}")
        found.append(Bound(exact(value), is_exclusive))
    if keyword == "minimum":
        return max(found, key=lambda bound: (bound.value, bound.is_exclusive), default=None)
    return min(found, key=lambda bound: (bound.value, not bound.is_exclusive), default=None)


def exact(number: int | float) -> Decimal:
    """The number as JSON writes it."""
    return Decimal(number) if isinstance(number, int) else Decimal(repr(number))


def step_of(schema: Schema, at: str) -> Decimal | None:
    """What numbers are a multiple of."""
    value = schema.get("multipleOf")
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise SchemaRefused("must be a number above 0", f"{at}.multipleOf")
    return exact(value)


def pointer_parts(reference: object) -> list[str] | None:
    """The names that a reference within a schema consists of; None for any other reference.

    As RFC 6901 writes them in a URI: percent-encoded, and `~1` for a slash.
    """
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    parts = reference.split("/")[1:]
    return [unquote(part).replace("~1", "/").replace("~0", "~") for part in parts]
