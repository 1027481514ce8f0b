"""Items as clients send them: each kind with its fields and bounds, and how it becomes an `Item`.

A kind that is known elsewhere and not here is refused by its name, and so are images, files and
audio, which are never fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema

from deepinfer.server.messages import MAX_NAME_CHARS
from deepinfer.server.responses_api.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    new_id,
)
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.schemas import MAX_MESSAGES

MAX_SHOWN_KIND = 40
# Kinds of parts and the field that has their text.
MESSAGE_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
RESULT_PARTS = {"input_text": "text", "output_text": "text", "text": "text"}
REASONING_PARTS = {"reasoning_text": "text", "text": "text"}


def _parse_parts(value: object, kinds: Mapping[str, str]) -> tuple[str, ...]:
    """The texts of an array of content parts."""
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of text parts")
    return tuple(_parse_part(part, f"[{index}]", kinds) for index, part in enumerate(value))


def _parse_part(part: object, at: str, kinds: Mapping[str, str]) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise invalid('must be an object such as {"type": "input_text", "text": "..."}', at)
    if kind not in kinds:
        known = ", ".join(f"`{name}`" for name in kinds)
        raise unsupported(f"may be {known}; `{kind[:MAX_SHOWN_KIND]}` is not", f"{at}.type")
    text = part.get(kinds[kind])
    if not isinstance(text, str):
        raise invalid("must be a string", f"{at}.{kinds[kind]}")
    return text


def _parse_content(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    texts = _parse_parts(value, MESSAGE_PARTS)
    if not texts:
        raise invalid("must not be an empty array")
    return texts


def _parse_result(value: object) -> str:
    # The tools of a chat answer with one text; parts are lines of it there, too.
    return value if isinstance(value, str) else "\n".join(_parse_parts(value, RESULT_PARTS))


def _parts(kinds: Mapping[str, str], *, min_items: int = 0) -> dict[str, Any]:
    parts = [
        {
            "type": "object",
            "required": ["type", field],
            "properties": {"type": {"const": kind}, field: {"type": "string"}},
        }
        for kind, field in kinds.items()
    ]
    return {"type": "array", "minItems": min_items, "items": {"anyOf": parts}}


def _text_or(parts: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, parts]}


Content = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_content),
    WithJsonSchema(_text_or(_parts(MESSAGE_PARTS, min_items=1))),
]
Result = Annotated[
    str, PlainValidator(_parse_result), WithJsonSchema(_text_or(_parts(RESULT_PARTS)))
]
Thoughts = Annotated[
    tuple[str, ...],
    PlainValidator(lambda value: _parse_parts(value, REASONING_PARTS)),
    WithJsonSchema(_parts(REASONING_PARTS)),
]


class ItemParam(Schema):
    id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)


class MessageParam(ItemParam):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    def as_item(self) -> MessageItem:
        part = OutputText if self.role == "assistant" else InputText
        return MessageItem(
            id=self.id or new_id("msg"),
            role=self.role,
            content=[part(text=text) for text in self.content],
        )


class FunctionCallParam(ItemParam):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    arguments: str = Field(description="JSON text, as the model wrote it")

    def as_item(self) -> FunctionCallItem:
        return FunctionCallItem(
            id=self.id or new_id("fc"),
            call_id=self.call_id,
            name=self.name,
            arguments=self.arguments,
        )


class FunctionCallOutputParam(ItemParam):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    output: Result

    def as_item(self) -> FunctionCallOutputItem:
        return FunctionCallOutputItem(
            id=self.id or new_id("fco"), call_id=self.call_id, output=self.output
        )


class ReasoningParam(ItemParam):
    """Earlier thoughts, which the chat template may show to the model again."""

    type: Literal["reasoning"]
    content: Thoughts = ()

    def as_item(self) -> ReasoningItem:
        return ReasoningItem(
            id=self.id or new_id("rs"), content=[ReasoningText(text=text) for text in self.content]
        )


AnyParam = MessageParam | FunctionCallParam | FunctionCallOutputParam | ReasoningParam
KINDS: Mapping[str, type[AnyParam]] = {
    "message": MessageParam,
    "function_call": FunctionCallParam,
    "function_call_output": FunctionCallOutputParam,
    "reasoning": ReasoningParam,
}


def _parse_item(value: object) -> Item:
    if not isinstance(value, dict):
        raise invalid('must be an object such as {"role": "user", "content": "..."}')
    kind = value.get("type") or "message"
    if not isinstance(kind, str):
        raise invalid("must be a string", "type")
    if kind not in KINDS:
        known = ", ".join(f"`{name}`" for name in KINDS)
        raise unsupported(f"may be {known}; `{kind[:MAX_SHOWN_KIND]}` is not", "type")
    return KINDS[kind].model_validate(value).as_item()


def _as_items(value: object) -> object:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of items")
    return value


_ITEM_SCHEMA = {"anyOf": [kind.model_json_schema() for kind in KINDS.values()]}
InputItem = Annotated[Any, PlainValidator(_parse_item), WithJsonSchema(_ITEM_SCHEMA)]
Input = Annotated[
    list[InputItem],
    Field(min_length=1, max_length=MAX_MESSAGES),
    FailFast(),
    BeforeValidator(_as_items),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_MESSAGES,
                    "items": _ITEM_SCHEMA,
                },
            ]
        }
    ),
]
