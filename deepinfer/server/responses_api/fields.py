"""The fields of a Responses request that have a shape of their own: text, tools, reasoning.

Each is told in the terms that chats have for the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from deepinfer.generation import Grammar
from deepinfer.server import refused as refused_fields
from deepinfer.server.messages import Function, Tool, ToolWish
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.structured import parse_json_object, parse_json_schema

MAX_SHOWN_KIND = 40
# As in the OpenAI API.
MAX_METADATA_KEYS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_CHARS = 512
MAX_FORMAT_NAME_CHARS = 64

LOG_PROBS = "message.output_text.logprobs"
# Thoughts are shown as they are, so there is nothing that would have to be encrypted.
INCLUDABLE = (LOG_PROBS, "reasoning.encrypted_content")


@dataclass(frozen=True)
class TextFormat:
    """What the text must be; `told` is the format as the client has put it."""

    grammar: Grammar
    told: dict[str, Any]


def _parse_format(value: object) -> TextFormat | None:
    param = "text.format"
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid('must be an object such as {"type": "json_object"}')
    if kind == "text":
        return None
    if kind == "json_object":
        return TextFormat(parse_json_object(value, param), {"type": kind})
    if kind != "json_schema":
        raise unsupported("may be `text`, `json_object` or `json_schema`", "type")
    name, strict, description = (value.get(key) for key in ("name", "strict", "description"))
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_FORMAT_NAME_CHARS:
        raise invalid(f"must be a string of 1 to {MAX_FORMAT_NAME_CHARS} characters", "name")
    if type(strict) not in (bool, type(None)):
        raise invalid("must be true or false", "strict")
    if not isinstance(description, str | None):
        raise invalid("must be a string", "description")
    grammar = parse_json_schema(value.get("schema"), param, "schema")
    told = {"name": name, "schema": value["schema"], "strict": strict, "description": description}
    return TextFormat(grammar, {"type": kind, **told})


_FORMAT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"const": "text"}},
        },
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"const": "json_object"},
                "schema": {"anyOf": [{"type": "object"}, {"type": "null"}]},
                "value": {"anyOf": [{"type": "object"}, {"type": "null"}]},
            },
        },
        {
            "type": "object",
            "required": ["type", "name", "schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "name": {"type": "string", "minLength": 1, "maxLength": MAX_FORMAT_NAME_CHARS},
                "schema": {"type": "object"},
                "strict": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
                "description": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
    ]
}
Format = Annotated[
    TextFormat | None,
    PlainValidator(lambda value: None if value is None else _parse_format(value)),
    WithJsonSchema(_FORMAT_SCHEMA),
]


class TextConfig(Schema):
    refused = refused_fields.RESPONSE_TEXT

    format: Format = Field(default=None, description="Text, any JSON object, or JSON by a schema")

    @property
    def grammar(self) -> Grammar | None:
        return None if self.format is None else self.format.grammar


class ReasoningConfig(Schema):
    refused = refused_fields.RESPONSE_REASONING

    effort: Literal["none", "minimal", "low", "medium", "high"] | None = Field(
        default=None, description="Handed to the chat template, which may know it"
    )


def _check_kind_of_tool(value: object) -> object:
    if isinstance(value, str) and value != "function":
        raise unsupported(
            f"may be `function`; this server has no `{value[:MAX_SHOWN_KIND]}` of its own"
        )
    return value


def _as_in_chats(name: str) -> Any:
    return Function.model_fields[name]


class FunctionTool(Schema):
    """A function that the model may call and the client carries out."""

    refused = refused_fields.RESPONSE_TOOL

    type: Annotated[Literal["function"], BeforeValidator(_check_kind_of_tool)]
    name: str = _as_in_chats("name")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the arguments"
    )
    strict: bool | None = None

    def as_chat_tool(self) -> Tool:
        given: dict[str, Any] = {} if self.parameters is None else {"parameters": self.parameters}
        function = Function.model_construct(name=self.name, description=self.description, **given)
        return Tool.model_construct(type="function", function=function)


def _parse_tool_choice(value: object) -> ToolWish:
    if value == "none" or value == "auto" or value == "required":
        return ToolWish(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise invalid('must be "none", "auto", "required" or {"type": "function", "name": "..."}')
    if kind != "function":
        raise unsupported(f"may be `function`; `{kind[:MAX_SHOWN_KIND]}` is not supported", "type")
    if not isinstance(value.get("name"), str):
        raise invalid("must be the name of one of `tools`", "name")
    return ToolWish("required", value["name"])


ToolChoice = Annotated[
    ToolWish,
    PlainValidator(_parse_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "required": ["type", "name"],
                    "properties": {"type": {"enum": ["function"]}, "name": {"type": "string"}},
                },
            ]
        }
    ),
]


def _parse_include(value: object) -> str:
    if not isinstance(value, str):
        raise invalid("must be a string")
    if value not in INCLUDABLE:
        known = ", ".join(f"`{name}`" for name in INCLUDABLE)
        raise unsupported(f"may be {known}; `{value[:MAX_SHOWN_KIND]}` is not")
    return value


Include = Annotated[str, PlainValidator(_parse_include), WithJsonSchema({"enum": list(INCLUDABLE)})]


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > MAX_METADATA_KEYS:
        raise invalid(f"must have at most {MAX_METADATA_KEYS} keys; it has {len(metadata):,}")
    for key, text in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            raise invalid(f"must have keys of at most {MAX_METADATA_KEY_CHARS} characters")
        if len(text) > MAX_METADATA_CHARS:
            raise invalid(f"must have at most {MAX_METADATA_CHARS} characters", key)
    return metadata
