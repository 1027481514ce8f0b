"""The fields of a Responses request that have a shape of their own: text, reasoning, metadata.

Each is told in the terms that chats have for the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from deepinfer.generation import Grammar
from deepinfer.server import refused as refused_fields
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.structured import parse_json_object, parse_json_schema

MAX_SHOWN_KIND = 40
# As in the OpenAI API.
MAX_METADATA_KEYS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_CHARS = 512
MAX_FORMAT_NAME_CHARS = 64

LOG_PROBS = "message.output_text.logprobs"
# Thoughts are shown as they are, so there is nothing that would have to be encrypted. The others
# belong to tools that this server has not, and to images, which no conversation here holds.
INCLUDABLE = (
    LOG_PROBS,
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)
# Templates know three.
EFFORTS = {"xhigh": "high", "max": "high"}


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
    format: Format = Field(default=None, description="Text, any JSON object, or JSON by a schema")
    verbosity: Literal["low", "medium", "high"] = Field(
        default="medium", description="Handed to the chat template, which may know it"
    )

    @property
    def grammar(self) -> Grammar | None:
        return None if self.format is None else self.format.grammar


class ReasoningConfig(Schema):
    refused = refused_fields.RESPONSE_REASONING

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None,
        description="Handed to the chat template, which may know it; `xhigh` and `max` as `high`",
    )


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
