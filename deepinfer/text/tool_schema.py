"""What an answer must look like to be calls of the given tools: the grammar for a forced choice.

A grammar is literal text around JSON schemas, so that any engine that can do both can enforce it.
This module knows no engine, and takes parameter schemas as valid as the caller has found them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepinfer.errors import InvalidValue
from deepinfer.text.json_schema import restricts
from deepinfer.text.tool_calls import ToolFormat

Schema = dict[str, Any]

# What OpenAI's API means by a function without parameters.
NO_PARAMETERS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}

# Keywords whose values map names to schemas, and those whose values are data.
_SCHEMA_MAPS = frozenset(
    {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
)
DATA = frozenset({"const", "enum", "default", "examples"})


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments.

    Without any keyword it is that of a function which takes none.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CallFrame:
    """Literal text, JSON by a schema, literal text."""

    prefix: str
    schema: Schema
    suffix: str


@dataclass(frozen=True)
class CallGrammar:
    """One of `frames`; if there is a `separator`, then any number of them, joined by it."""

    frames: tuple[CallFrame, ...]
    separator: str | None = None


def choose_tools(tools: Sequence[Tool], name: str | None = None) -> list[Tool]:
    """All of `tools`, or the one called `name`. Raises InvalidValue when there is no such tool."""
    chosen = [tool for tool in tools if name in (None, tool.name)]
    if not chosen:
        raise InvalidValue(_no_tool(tools, name), param="tool_choice")
    return chosen


def tool_call_schema(
    chosen: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool = True
) -> CallGrammar:
    """The grammar of calls to any of `chosen`, in a format that writes them as JSON."""
    if tool_format in (ToolFormat.HERMES, ToolFormat.GENERIC):
        frame = CallFrame("<tool_call>\n", _call_schema(chosen, "arguments"), "\n</tool_call>")
        return CallGrammar((frame,), "\n" if parallel else None)
    if tool_format is ToolFormat.LLAMA3:
        frame = CallFrame("", _call_schema(chosen, "parameters"), "")
        return CallGrammar((frame,), "; " if parallel else None)
    if tool_format is ToolFormat.MISTRAL:
        return CallGrammar((CallFrame("[TOOL_CALLS]", _array_schema(chosen, parallel), ""),))
    frames = [
        CallFrame(f"[TOOL_CALLS]{tool.name}[ARGS]", arguments_schema(tool), "") for tool in chosen
    ]
    return CallGrammar(tuple(frames), "" if parallel else None)


def _no_tool(tools: Sequence[Tool], name: str | None) -> str:
    if name is None:
        return "A tool can be required only if there is one; `tools` is empty"
    names = ", ".join(f"`{tool.name}`" for tool in tools) or "none"
    return f"Tool choice `{name}` must be the name of one of `tools`, which are {names}"


def _call_schema(tools: Sequence[Tool], arguments_key: str) -> Schema:
    calls = [_call(tool, arguments_key) for tool in tools]
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**call, "$defs": _definitions(tools)}


def _array_schema(tools: Sequence[Tool], parallel: bool) -> Schema:
    calls = [_call(tool, "arguments") for tool in tools]
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema = {"type": "array", "items": items, "minItems": 1}
    if not parallel:
        schema["maxItems"] = 1
    return {**schema, "$defs": _definitions(tools)}


def _call(tool: Tool, arguments_key: str) -> Schema:
    return {
        "type": "object",
        "properties": {
            "name": {"const": tool.name},
            arguments_key: {"$ref": f"#/$defs/{pointer_part(tool.name)}"},
        },
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _definitions(tools: Sequence[Tool]) -> Schema:
    return {
        tool.name: arguments_schema(tool, f"#/$defs/{pointer_part(tool.name)}") for tool in tools
    }


def arguments_schema(tool: Tool, place: str = "#") -> Schema:
    """The tool's schema as it stands at `place`; arguments are an object whatever it says."""
    if not _may_hold_something(tool.parameters):
        return NO_PARAMETERS
    schema: Schema = _move(dict(tool.parameters), place)
    return {**schema, "type": "object"}


def _may_hold_something(parameters: Mapping[str, Any]) -> bool:
    """Whether any keyword speaks of properties; an empty `properties` names none."""
    empty = {key for key in ("properties", "required") if not parameters.get(key)}
    return any(map(restricts, parameters.keys() - empty - {"type"}))


def _move(schema: Any, place: str) -> Any:
    """A schema whose references count from `#`, made to count from `place`."""
    if isinstance(schema, list):
        return [_move(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {keyword: _moved_value(keyword, value, place) for keyword, value in schema.items()}


def _moved_value(keyword: str, value: Any, place: str) -> Any:
    if keyword in DATA:
        return value
    if keyword == "$ref" and isinstance(value, str) and value.startswith("#"):
        return place + value[1:]
    if keyword in _SCHEMA_MAPS and isinstance(value, dict):
        return {name: _move(one, place) for name, one in value.items()}
    return _move(value, place)


def pointer_part(name: str) -> str:
    """As RFC 6901 writes a name inside a reference."""
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")
