"""Which JSON types the parameters of tools may have, as far as their schemas say.

The schemas are a client's and may be anything: what cannot be understood allows every type. What a
schema says beside the type is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepinfer.text.json_schema import pointer_parts
from deepinfer.text.tool_schema import Tool

Types = frozenset[str]

STRING = "string"
ANY: Types = frozenset({STRING, "object", "array", "number", "integer", "boolean", "null"})
MAX_SCHEMAS = 1_000  # of one parameter
COMBINING = ("anyOf", "oneOf", "allOf")
PYTHON_TYPES = {
    str: STRING,
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


class ParameterTypes:
    """Looks up parameters by the names of tools and theirs."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._found: dict[tuple[str, str], Types] = {}

    def find(self, tool_name: str, parameter_name: str) -> Types:
        key = (tool_name, parameter_name)
        if key not in self._found:
            self._found[key] = types_of_parameter(self._schemas.get(tool_name, {}), parameter_name)
        return self._found[key]


def types_of_parameter(root: Mapping[str, Any], name: str) -> Types:
    properties = root.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        return types_of_schema(properties[name], root)
    return types_of_schema(root.get("additionalProperties"), root)


def types_of_schema(schema: object, root: Mapping[str, Any]) -> Types:
    """`root` is where the schema's references count from."""
    waiting, seen, found = [schema], set[int](), set[str]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        own = _own_types(one) if isinstance(one, Mapping) else ANY
        if own is None and isinstance(one, Mapping):
            waiting += _parts(one, root)
        else:
            found |= own or ANY
        if len(waiting) > MAX_SCHEMAS:
            return ANY
    return frozenset(found) or ANY


def _own_types(schema: Mapping[str, Any]) -> Types | None:
    """Those that the schema says itself; None where schemas that it combines may say them."""
    if "const" in schema:
        return frozenset({type_of_value(schema["const"])})
    if isinstance(schema.get("enum"), list):
        return frozenset(map(type_of_value, schema["enum"]))
    if "type" in schema:
        given = schema["type"]
        types = given if isinstance(given, list) else [given]
        return ANY.intersection(one for one in types if isinstance(one, str))
    return None if {"$ref", *COMBINING} & schema.keys() else ANY


def type_of_value(value: object) -> str:
    """Of a value that has been read from JSON."""
    return PYTHON_TYPES[type(value)]


def _parts(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[object]:
    if "$ref" in schema:
        yield _resolve(schema["$ref"], root)
    for keyword in COMBINING:
        branches = schema.get(keyword)
        yield from branches if isinstance(branches, list) else ()


def _resolve(reference: object, root: Mapping[str, Any]) -> object:
    """The schema that a reference within `root` leads to; None, which says nothing, without one."""
    parts = pointer_parts(reference)
    if parts is None:
        return None
    found: object = root
    for part in parts:
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping):
            found = found.get(part)
        else:
            return None
    return found
