"""Items as clients send them: each kind with its fields and bounds, and how it becomes an `Item`.

Items of earlier answers are taken as they were given, with their ids and statuses. A kind that is
known elsewhere and not here is refused by its name, and so are images, files and audio, which are
never fetched; in the results of tools they become notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from deepinfer.server.messages import ATTACHMENT_NOTES, MAX_NAME_CHARS, RESULT_ATTACHMENTS
from deepinfer.server.responses_api.compaction import read_summary
from deepinfer.server.responses_api.items import (
    CompactionItem,
    CustomCallItem,
    CustomCallOutputItem,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    Item,
    ItemReference,
    MessageItem,
    NamespacedCallItem,
    NamespacedCustomCallItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    SummaryText,
    new_id,
)
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.schemas import MAX_MESSAGES

MAX_SHOWN_KIND = 40
# Kinds of parts and the field that has their text.
MESSAGE_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
RESULT_PARTS = {"input_text": "text", "output_text": "text", "text": "text"}
REASONING_PARTS = {"reasoning_text": "text", "text": "text"}
SUMMARY_PARTS = {"summary_text": "text", "text": "text"}
RESULT_ATTACHMENT_KINDS = ("input_image", "input_file")


def _parse_parts(
    value: object, kinds: Mapping[str, str], notes: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, ...]:
    """The texts of an array of content parts; `notes` are for kinds that have none."""
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of text parts")
    texts: list[str] = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in notes:
            texts.append(notes[kind])
        else:
            texts.append(_parse_part(part, f"[{index}]", kinds))
    return tuple(texts)


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
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else _parse_parts(value, MESSAGE_PARTS)


def _parse_result(value: object, info: ValidationInfo) -> str:
    if isinstance(value, str):
        return value
    takes_attachments = (info.context or {}).get(RESULT_ATTACHMENTS, "note") == "note"
    kinds = RESULT_ATTACHMENT_KINDS if takes_attachments else ()
    notes = {kind: ATTACHMENT_NOTES[kind] for kind in kinds}
    # The tools of a chat answer with one text; parts are lines of it there, too.
    return "\n".join(_parse_parts(value, RESULT_PARTS, notes))


def _parse_arguments(value: object) -> object:
    # Some clients keep what they have parsed; the API's form is the text.
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "{}" if value is None or value == "" else value


def _parts(kinds: Mapping[str, str], *others: str, min_items: int = 0) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {
            "type": "object",
            "required": ["type", field],
            "properties": {"type": {"const": kind}, field: {"type": "string"}},
        }
        for kind, field in kinds.items()
    ]
    if others:
        kind = {"enum": list(others)}
        parts.append({"type": "object", "required": ["type"], "properties": {"type": kind}})
    return {"type": "array", "minItems": min_items, "items": {"anyOf": parts}}


def _text_or(parts: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string"}, parts]}


Content = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_content),
    WithJsonSchema({"anyOf": [*_text_or(_parts(MESSAGE_PARTS))["anyOf"], {"type": "null"}]}),
]
Result = Annotated[
    str,
    PlainValidator(_parse_result),
    WithJsonSchema(_text_or(_parts(RESULT_PARTS, *RESULT_ATTACHMENT_KINDS))),
]
Arguments = Annotated[
    str,
    BeforeValidator(_parse_arguments),
    WithJsonSchema({"anyOf": [{"type": kind} for kind in ("string", "object", "null")]}),
]
Thoughts = Annotated[
    tuple[str, ...],
    PlainValidator(lambda value: _parse_parts(value, REASONING_PARTS)),
    WithJsonSchema(_parts(REASONING_PARTS)),
]
Summaries = Annotated[
    tuple[str, ...],
    PlainValidator(lambda value: _parse_parts(value, SUMMARY_PARTS)),
    WithJsonSchema(_parts(SUMMARY_PARTS)),
]


class ItemParam(Schema):
    id: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    status: Status = "completed"


class MessageParam(ItemParam):
    rules = (
        {
            "anyOf": [
                {"properties": {"role": {"const": "assistant"}}},
                {"properties": {"content": _text_or(_parts(MESSAGE_PARTS, min_items=1))}},
            ]
        },
    )

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content

    @model_validator(mode="after")
    def _check_content_of_role(self) -> Self:
        if not self.content and self.role != "assistant":
            raise invalid("must be a string or an array with at least one part", "content")
        return self

    def as_item(self) -> MessageItem:
        part = OutputText if self.role == "assistant" else InputText
        return MessageItem(
            id=self.id or new_id("msg"),
            status=self.status,
            role=self.role,
            content=[part(text=text) for text in self.content],
        )


class FunctionCallParam(ItemParam):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    namespace: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    arguments: Arguments = Field(description="JSON text, as the model wrote it")

    def as_item(self) -> FunctionCallItem:
        fields = self.model_dump(include={"call_id", "name", "arguments", "status"})
        fields["id"] = self.id or new_id("fc")
        if self.namespace is None:
            return FunctionCallItem(**fields)
        return NamespacedCallItem(**fields, namespace=self.namespace)


class CustomCallParam(ItemParam):
    type: Literal["custom_tool_call"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    namespace: str | None = Field(default=None, max_length=MAX_NAME_CHARS)
    input: str

    def as_item(self) -> CustomCallItem:
        fields = self.model_dump(include={"call_id", "name", "input", "status"})
        fields["id"] = self.id or new_id("ctc")
        if self.namespace is None:
            return CustomCallItem(**fields)
        return NamespacedCustomCallItem(**fields, namespace=self.namespace)


class FunctionCallOutputParam(ItemParam):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    output: Result

    def as_item(self) -> FunctionCallOutputItem:
        return FunctionCallOutputItem(
            id=self.id or new_id("fco"),
            call_id=self.call_id,
            output=self.output,
            status=self.status,
        )


class CustomCallOutputParam(ItemParam):
    type: Literal["custom_tool_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    output: Result

    def as_item(self) -> CustomCallOutputItem:
        return CustomCallOutputItem(
            id=self.id or new_id("cto"),
            call_id=self.call_id,
            output=self.output,
            status=self.status,
        )


class ReasoningParam(ItemParam):
    """Earlier thoughts. The chat template says which of them the model sees again."""

    type: Literal["reasoning"]
    content: Thoughts = ()
    summary: Summaries = ()

    def as_item(self) -> ReasoningItem:
        return ReasoningItem(
            id=self.id or new_id("rs"),
            summary=[SummaryText(text=text) for text in self.summary],
            content=[ReasoningText(text=text) for text in self.content],
            status=self.status,
        )


def _check_compaction(encrypted_content: str) -> str:
    if read_summary(encrypted_content) is None:
        raise unsupported("may only be from an answer of this server's `/v1/responses/compact`")
    return encrypted_content


class CompactionParam(ItemParam):
    type: Literal["compaction"]
    encrypted_content: Annotated[str, AfterValidator(_check_compaction)]

    def as_item(self) -> CompactionItem:
        return CompactionItem(id=self.id or new_id("cmp"), encrypted_content=self.encrypted_content)


class ItemReferenceParam(Schema):
    type: Literal["item_reference"] = "item_reference"
    id: str = Field(min_length=1, max_length=MAX_NAME_CHARS)

    def as_item(self) -> ItemReference:
        return ItemReference(self.id)


AnyParam = (
    MessageParam
    | FunctionCallParam
    | FunctionCallOutputParam
    | CustomCallParam
    | CustomCallOutputParam
    | ReasoningParam
    | CompactionParam
    | ItemReferenceParam
)
KINDS: Mapping[str, type[AnyParam]] = {
    "message": MessageParam,
    "function_call": FunctionCallParam,
    "function_call_output": FunctionCallOutputParam,
    "custom_tool_call": CustomCallParam,
    "custom_tool_call_output": CustomCallOutputParam,
    "reasoning": ReasoningParam,
    "compaction": CompactionParam,
    "item_reference": ItemReferenceParam,
}


def _parse_item(value: object, info: ValidationInfo) -> Item | ItemReference:
    if not isinstance(value, dict):
        raise invalid('must be an object such as {"role": "user", "content": "..."}')
    # The type of messages and of references may be left out; a reference has no role.
    is_reference = isinstance(value.get("id"), str) and "role" not in value
    kind = value.get("type") or ("item_reference" if is_reference else "message")
    if not isinstance(kind, str):
        raise invalid("must be a string", "type")
    if kind not in KINDS:
        known = ", ".join(f"`{name}`" for name in KINDS)
        raise unsupported(f"may be {known}; `{kind[:MAX_SHOWN_KIND]}` is not", "type")
    return KINDS[kind].model_validate(value, context=info.context).as_item()


def _as_items(value: object) -> object:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of items")
    return value


_ITEM_SCHEMA = {"anyOf": [kind.model_json_schema() for kind in KINDS.values()]}
InputItem = Annotated[Any, PlainValidator(_parse_item), WithJsonSchema(_ITEM_SCHEMA)]


def _describe_input(min_items: int) -> WithJsonSchema:
    items = {
        "type": "array",
        "minItems": min_items,
        "maxItems": MAX_MESSAGES,
        "items": _ITEM_SCHEMA,
    }
    return WithJsonSchema({"anyOf": [{"type": "string"}, items]})


Input = Annotated[
    list[InputItem],
    Field(min_length=1, max_length=MAX_MESSAGES),
    FailFast(),
    BeforeValidator(_as_items),
    _describe_input(1),
]
OptionalInput = Annotated[
    list[InputItem],
    Field(max_length=MAX_MESSAGES),
    FailFast(),
    BeforeValidator(_as_items),
    _describe_input(0),
]
