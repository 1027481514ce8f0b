"""The tools of a Responses request, and which of them the model may or must call.

A chat has functions only: those of a namespace are offered under a name that begins with it, and a
custom tool, which takes a text, as a function with one argument. Tools that OpenAI runs are left
out where the model may do without them, and refused where it must call.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from deepinfer.server import messages
from deepinfer.server import refused as refused_fields
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.schemas import MAX_TOOLS

MAX_SHOWN_KIND = 40
CUSTOM_ARGUMENT = "input"
NAMESPACE_SEPARATOR = "__"


def name_in_chat(name: str, namespace: str | None) -> str:
    if namespace is None:
        return name
    return namespace.removesuffix(NAMESPACE_SEPARATOR) + NAMESPACE_SEPARATOR + name


def read_custom_input(arguments: str) -> str:
    """The text in a custom tool's arguments, which may have broken off; else the arguments."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return _read_broken_input(arguments)
    text = parsed.get(CUSTOM_ARGUMENT) if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else arguments


def _read_broken_input(arguments: str) -> str:
    _, found, rest = arguments.partition(f'"{CUSTOM_ARGUMENT}"')
    start = rest.find('"')
    if not found or start < 0:
        return ""
    text = rest[start + 1 :]
    for end in range(len(text), max(len(text) - len("\\ud83d\\ude0"), -1), -1):
        try:  # an escape that is not whole is left out
            return str(json.loads(f'"{text[:end]}"', strict=False))
        except ValueError:
            continue
    return ""


def _as_in_chats(name: str) -> Any:
    return messages.Function.model_fields[name]


class FunctionTool(Schema):
    """A function that the model may call and the client carries out."""

    refused = refused_fields.RESPONSE_TOOL
    without_effect = refused_fields.RESPONSE_TOOL_WITHOUT_EFFECT

    type: Literal["function"]
    name: str = _as_in_chats("name")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the arguments"
    )
    strict: bool | None = None


class CustomTool(Schema):
    """A tool that takes a text of the model."""

    refused = refused_fields.RESPONSE_TOOL
    without_effect = refused_fields.RESPONSE_TOOL_WITHOUT_EFFECT

    type: Literal["custom"]
    name: str = _as_in_chats("name")
    description: str = ""
    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})

    @property
    def syntax(self) -> str | None:
        """The language of the grammar that the text must fit."""
        return str(self.format.get("syntax")) if self.format.get("type") == "grammar" else None

    @property
    def parameters(self) -> dict[str, Any]:
        text: dict[str, Any] = {"type": "string"}
        definition = self.format.get("definition")
        if self.syntax == "regex" and isinstance(definition, str):
            text["pattern"] = f"^(?:{definition})$"
        return {
            "type": "object",
            "properties": {CUSTOM_ARGUMENT: text},
            "required": [CUSTOM_ARGUMENT],
            "additionalProperties": False,
        }

    @property
    def told(self) -> str:
        """The description, and the grammar, which the model has to keep to by itself."""
        if self.syntax is None:
            return self.description
        form = f"The input must fit this grammar ({self.syntax}):\n{self.format.get('definition')}"
        return f"{self.description}\n\n{form}" if self.description else form


@dataclass(frozen=True)
class UnservedTool:
    """A tool that somebody else than the client would run."""

    type: str


def _parse_own_tool(value: object) -> FunctionTool | CustomTool:
    kind = value.get("type") if isinstance(value, Mapping) else None
    tool = CustomTool if kind == "custom" else FunctionTool
    return tool.model_validate(value)


OwnTool = Annotated[
    FunctionTool | CustomTool,
    PlainValidator(_parse_own_tool),
    WithJsonSchema({"anyOf": [FunctionTool.model_json_schema(), CustomTool.model_json_schema()]}),
]


class NamespaceTool(Schema):
    """Functions and custom tools under one name."""

    type: Literal["namespace"]
    name: str = _as_in_chats("name")
    description: str = ""
    tools: list[OwnTool] = Field(max_length=MAX_TOOLS)


def _parse_tool(value: object) -> FunctionTool | CustomTool | NamespaceTool | UnservedTool:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind in ("function", "custom"):
        return _parse_own_tool(value)
    if kind == "namespace":
        return NamespaceTool.model_validate(value)
    return UnservedTool(kind[:MAX_SHOWN_KIND])


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}


_OWN_KINDS = ["function", "custom", "namespace"]
Tool = Annotated[
    FunctionTool | CustomTool | NamespaceTool | UnservedTool,
    PlainValidator(_parse_tool),
    WithJsonSchema(
        {
            "anyOf": [
                FunctionTool.model_json_schema(),
                _untitled(CustomTool.model_json_schema()),
                _untitled(NamespaceTool.model_json_schema()),
                {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "not": {"enum": _OWN_KINDS}}},
                },
            ]
        }
    ),
]


@dataclass(frozen=True)
class ServedTool:
    """A function of the chat, and the tool of the request that it stands for."""

    tool: FunctionTool | CustomTool
    namespace: str | None = None
    namespace_description: str = ""

    @property
    def chat_name(self) -> str:
        return name_in_chat(self.tool.name, self.namespace)

    def is_called(self, kind: str, name: str) -> bool:
        """Whether a choice means it; one in a namespace goes by either of its names."""
        if kind == "namespace":
            return self.namespace == name
        return self.tool.type == kind and name in (self.tool.name, self.chat_name)

    def as_chat_tool(self) -> messages.Tool:
        is_custom = isinstance(self.tool, CustomTool)
        description = self.tool.told if isinstance(self.tool, CustomTool) else self.tool.description
        given: dict[str, Any] = {}
        if is_custom or self.tool.parameters is not None:
            given["parameters"] = self.tool.parameters
        function = messages.Function.model_construct(
            name=self.chat_name,
            # What a namespace is for is said where nothing else is.
            description=description or self.namespace_description or None,
            **given,
        )
        return messages.Tool.model_construct(type="function", function=function)


def serve_tools(tools: Iterable[object]) -> Iterator[ServedTool]:
    for tool in tools:
        if isinstance(tool, NamespaceTool):
            for inner in tool.tools:
                yield ServedTool(inner, tool.name, tool.description)
        elif isinstance(tool, FunctionTool | CustomTool):
            yield ServedTool(tool)


@dataclass(frozen=True)
class ToolChoiceParam:
    """Whether tools may or must be called, as the client has put it in `told`.

    `named` is the kind and the name of the one that must be; `allowed` are those of the only ones
    that may be.
    """

    mode: Literal["none", "auto", "required"]
    told: str | dict[str, Any]
    named: tuple[str, str] | None = None
    allowed: tuple[tuple[str, str | None], ...] | None = None


def _parse_tool_choice(value: object) -> ToolChoiceParam:
    if isinstance(value, ToolChoiceParam):  # the default, which null stands for
        return value
    if value == "none" or value == "auto" or value == "required":
        return ToolChoiceParam(value, value)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid('must be "none", "auto", "required" or {"type": "function", "name": "..."}')
    if kind == "allowed_tools":
        return _parse_allowed_tools(value)
    if kind not in ("function", "custom"):
        raise unsupported(
            f"may be `function`, `custom` or `allowed_tools`; `{kind[:MAX_SHOWN_KIND]}` is none of "
            "the client's own tools",
            "type",
        )
    name = value.get("name")
    if not isinstance(name, str):
        raise invalid("must be the name of one of `tools`", "name")
    return ToolChoiceParam("required", {"type": kind, "name": name}, named=(kind, name))


def _parse_allowed_tools(value: dict[str, Any]) -> ToolChoiceParam:
    mode, tools = value.get("mode"), value.get("tools")
    if mode != "auto" and mode != "required":
        raise invalid("must be `auto` or `required`", "mode")
    if not isinstance(tools, list | tuple) or not tools:
        raise invalid("must be an array with at least one of `tools`", "tools")
    if len(tools) > MAX_TOOLS:
        raise invalid(f"must have at most {MAX_TOOLS} tools", "tools")
    allowed: list[tuple[str, str | None]] = []
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(kind, str):
            raise invalid(
                'must be an object such as {"type": "function", "name": "..."}', f"tools[{index}]"
            )
        name = tool.get("name")
        if kind in _OWN_KINDS and not isinstance(name, str):
            raise invalid("must be the name of one of `tools`", f"tools[{index}].name")
        allowed.append((kind, name if isinstance(name, str) else None))
    told = {"type": "allowed_tools", "mode": mode, "tools": list(tools)}
    return ToolChoiceParam(mode, told, allowed=tuple(allowed))


_NAMED: dict[str, Any] = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": {"enum": ["function", "custom"]}, "name": {"type": "string"}},
}
ToolChoice = Annotated[
    ToolChoiceParam,
    PlainValidator(_parse_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                _NAMED,
                {
                    "type": "object",
                    "required": ["type", "mode", "tools"],
                    "properties": {
                        "type": {"enum": ["allowed_tools"]},
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": MAX_TOOLS,
                            "items": _NAMED,
                        },
                    },
                },
            ]
        }
    ),
]
AUTO = ToolChoiceParam("auto", "auto")


@dataclass(frozen=True)
class OfferedTools:
    """The tools that a model is offered; `required` is the chat's name of the one it must call."""

    tools: tuple[ServedTool, ...] = ()
    required: str | None = None

    @property
    def by_chat_name(self) -> dict[str, ServedTool]:
        return {tool.chat_name: tool for tool in reversed(self.tools)}


def choose_tools(tools: Sequence[object], choice: ToolChoiceParam) -> OfferedTools:
    """The tools that the model is offered.

    Raises what a validator may for a choice that no tool fits, and for tools of others where a call
    is required.
    """
    served = list(serve_tools(tools))
    if len(served) > MAX_TOOLS:
        raise invalid(f"must have at most {MAX_TOOLS} functions together", "tools")
    if choice.mode == "required" and not tools:
        raise invalid("needs `tools`", "tool_choice")
    if choice.allowed is not None:
        return OfferedTools(_choose_allowed(tools, served, choice))
    if choice.named is not None:
        chosen = next((tool for tool in served if tool.is_called(*choice.named)), None)
        if chosen is None:
            raise invalid("must be the name of one of `tools`", "tool_choice.name")
        _check_enforceable(tools, [chosen])
        return OfferedTools(tuple(served), chosen.chat_name)
    if choice.mode == "required":
        for index, tool in enumerate(tools):
            if isinstance(tool, UnservedTool):
                raise _unserved(tool.type, f"tools[{index}].type")
        if not served:
            raise invalid("needs `tools`", "tool_choice")
        _check_enforceable(tools, served)
    return OfferedTools(tuple(served))


def _choose_allowed(
    tools: Sequence[object], served: Sequence[ServedTool], choice: ToolChoiceParam
) -> tuple[ServedTool, ...]:
    others = {tool.type for tool in tools if isinstance(tool, UnservedTool)}
    chosen: list[ServedTool] = []
    for index, (kind, name) in enumerate(choice.allowed or ()):
        found = [tool for tool in served if name is not None and tool.is_called(kind, name)]
        if not found and kind not in others:
            raise invalid("must be one of `tools`", f"tool_choice.tools[{index}]")
        if not found and choice.mode == "required":
            raise _unserved(kind, f"tool_choice.tools[{index}].type")
        chosen += (tool for tool in found if tool not in chosen)
    if choice.mode == "required":
        _check_enforceable(tools, chosen)
    return tuple(chosen)


def _unserved(kind: str, at: str) -> Any:
    return unsupported(
        "may be `function`, `custom` or `namespace` where a call is required; this server has no "
        f"`{kind[:MAX_SHOWN_KIND]}` of its own",
        at,
    )


def _check_enforceable(tools: Sequence[object], chosen: Sequence[ServedTool]) -> None:
    for served in chosen:
        syntax = served.tool.syntax if isinstance(served.tool, CustomTool) else None
        if syntax is not None and syntax != "regex":
            place = f"tools[{tools.index(served.tool)}]" if served.tool in tools else "tools"
            raise unsupported(
                f"may be a `regex` where the call is required; `{syntax[:MAX_SHOWN_KIND]}` cannot "
                "be enforced",
                f"{place}.format.syntax",
            )
