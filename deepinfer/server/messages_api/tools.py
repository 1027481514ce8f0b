"""The tools that a client offers in the Messages API, and which of them the model may call.

A client's own tools are described by a JSON schema. Those that have a `type` of their own, such as
web searches, run on a server or are known to a model by name. They are left out where the model may
do without them, and refused where it must call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema, model_validator

from deepinfer.server import messages
from deepinfer.server import refused as refused_fields
from deepinfer.server.messages_api.blocks import MAX_SHOWN_KIND
from deepinfer.server.schema_base import Schema, invalid, missing, unsupported

TOOL_NAME_RULE = re.compile(r"[a-zA-Z0-9_.-]{1,128}")  # Anthropic's, and the dot of MCP servers
MAX_EXAMPLES = 100
MODES: dict[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "tool": "required",
}


def _check_name(name: str) -> str:
    if not TOOL_NAME_RULE.fullmatch(name):
        raise invalid("must be 1 to 128 letters, digits, `_`, `-` or `.`")
    return name


ToolName = Annotated[
    str,
    AfterValidator(_check_name),
    WithJsonSchema({"type": "string", "pattern": f"^{TOOL_NAME_RULE.pattern}$"}),
]


class ClientTool(Schema):
    """A tool that the client runs."""

    refused = refused_fields.MESSAGES_TOOL
    without_effect = refused_fields.MESSAGES_TOOL_WITHOUT_EFFECT

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON schema of the input")
    strict: bool = Field(default=False, description="Inputs fit in any case where a call is forced")
    input_examples: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_EXAMPLES,
        description="Shown to the model behind the description",
    )

    def as_chat_tool(self) -> messages.Tool:
        texts = [self.description] if self.description else []
        if self.input_examples:
            examples = [json.dumps(one, ensure_ascii=False) for one in self.input_examples]
            texts.append("\n".join(["Examples of inputs:", *examples]))
        function = messages.Function.model_construct(
            name=self.name,
            description="\n\n".join(texts) or None,
            parameters=self.input_schema,
            strict=self.strict,
        )
        return messages.Tool.model_construct(type="function", function=function)


@dataclass(frozen=True)
class UnservedTool:
    """A tool that somebody else than the client would run."""

    type: str
    name: str | None


def _parse_tool(value: object) -> ClientTool | UnservedTool:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str) or kind == "custom":
        return ClientTool.model_validate(value)
    if kind == "function":  # a tool of the other routes, whose fields are others
        raise unsupported(
            "may not be `function`; tools have `name` and `input_schema` here", "type"
        )
    name = value.get("name")
    return UnservedTool(kind[:MAX_SHOWN_KIND], name if isinstance(name, str) else None)


Tool = Annotated[
    ClientTool | UnservedTool,
    PlainValidator(_parse_tool),
    WithJsonSchema(
        {
            "anyOf": [
                ClientTool.model_json_schema(),
                {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"type": "string", "not": {"enum": ["function"]}}},
                },
            ]
        }
    ),
]


class ToolChoice(Schema):
    """Whether the model may or must call, and which tool."""

    rules = (
        {
            "anyOf": [
                {"properties": {"type": {"enum": ["auto", "any", "none"]}}},
                {"required": ["name"], "properties": {"name": {"type": "string"}}},
            ]
        },
    )

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, description="With the type `tool`: which one")
    disable_parallel_tool_use: bool = Field(
        default=False, description="End the answer after its first call"
    )

    @model_validator(mode="after")
    def _check_name_is_given(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise missing("name")
        return self

    @property
    def as_wish(self) -> messages.ToolWish:
        return messages.ToolWish(MODES[self.type], self.name if self.type == "tool" else None)
