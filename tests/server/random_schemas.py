"""Random JSON schemas of what the server honours."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["a", "b c", 'q"', "é", "name", "x_1"]


def make_schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A schema whose values are short, so that a model without sense comes to an end."""
    makers = [_integer, _number, _string, _enum, _plain]
    if depth:
        makers += [_object, _object, _array, _tuple, _any_of]
    return rng.choice(makers)(rng, depth - 1)


def _plain(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"], "integer", "number"])}


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low, high = sorted(rng.randint(-(10 ** rng.randint(1, 6)), 10**4) for _ in range(2))
    keyword = rng.choice(["minimum", "exclusiveMinimum"])
    return {"type": "integer", keyword: low - 1, "maximum": high}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-2000, 500) + rng.choice([0, 0.5, 0.25])
    keyword = rng.choice(["maximum", "exclusiveMaximum"])
    return {"type": "number", "minimum": low, keyword: low + rng.randint(2, 3000)}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 6)}


def _enum(rng: random.Random, depth: int) -> dict[str, Any]:
    values = ['say "no"\n', 3, 1.5, None, True, "日本", {"k": [1]}, [], ""]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.2:
        return {
            "type": "object",
            "additionalProperties": make_schema(rng, 0),
            "maxProperties": 0,
        }
    names = rng.sample(NAMES, rng.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: make_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    if rng.random() < 0.7:
        schema["additionalProperties"] = False
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": make_schema(rng, depth),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }


def _tuple(rng: random.Random, depth: int) -> dict[str, Any]:
    prefix = [make_schema(rng, depth) for _ in range(rng.randint(1, 3))]
    schema = {"type": "array", "prefixItems": prefix, "minItems": rng.randint(0, len(prefix))}
    return schema | rng.choice([{}, {"items": False}, {"items": {"type": "null"}, "maxItems": 4}])


def _any_of(rng: random.Random, depth: int) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"oneOf": [_string(rng, 0), _integer(rng, 0), {"type": "null"}]}
    name = rng.choice(NAMES)
    return {
        "anyOf": [{"$ref": "#/$defs/leaf"}, make_schema(rng, depth)],
        "$comment": name,
    }


def make_document(rng: random.Random) -> dict[str, Any]:
    """A whole schema, with a part that others refer to."""
    return {**make_schema(rng), "$defs": {"leaf": make_schema(rng, 0)}}
