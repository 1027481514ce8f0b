"""The tools that a client offers in the Messages API, and which of them the model may call.

A client's own tools are described by a JSON schema. Those that have a `type` of their own run on a
server or are known to a model by name, and are refused here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from deepinfer.server import messages
from deepinfer.server import refused as refused_fields
from deepinfer.server.messages_api.blocks import MAX_SHOWN_KIND
from deepinfer.server.schema_base import Schema, invalid, missing, unsupported

TOOL_NAME_RULE = re.compile(r"[a-zA-Z0-9_.-]{1,128}")  # Anthropic's, and the dot of MCP servers
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


def _check_kind(value: object) -> object:
    if isinstance(value, str) and value != "custom":
        kind = value[:MAX_SHOWN_KIND]
        raise unsupported(f"may only be `custom`; tools of type `{kind}` are not supported")
    return value


ToolName = Annotated[
    str,
    AfterValidator(_check_name),
    WithJsonSchema({"type": "string", "pattern": f"^{TOOL_NAME_RULE.pattern}$"}),
]


class ClientTool(Schema):
    """A tool that the client runs."""

    refused = refused_fields.MESSAGES_TOOL
    without_effect = {"eager_input_streaming": "Accepted; an input is sent when it is whole"}

    # The type is read first: tools of other types have other fields.
    type: Annotated[Literal["custom"], BeforeValidator(_check_kind)] = "custom"
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON schema of the input")
    strict: bool = Field(default=False, description="Inputs fit in any case where a call is forced")

    def as_chat_tool(self) -> messages.Tool:
        function = messages.Function.model_construct(
            name=self.name,
            description=self.description,
            parameters=self.input_schema,
            strict=self.strict,
        )
        return messages.Tool.model_construct(type="function", function=function)


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
