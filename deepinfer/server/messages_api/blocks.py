"""Content of messages as clients send it: a text, or blocks of text, thoughts, calls and results.

Blocks are told apart by their `type`; kinds that would have to be fetched, seen or run by the
server are refused by name. In the result of a tool they become a note instead: it stays in the
conversation, and every later request would be refused for it. What a block means in a chat is not
known here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, WithJsonSchema

from deepinfer.server.messages import ATTACHMENT_NOTES, RESULT_ATTACHMENTS
from deepinfer.server.schema_base import invalid, unsupported

MAX_BLOCKS = 10_000
MAX_ID_CHARS = 256
MAX_NAME_CHARS = 256
MAX_SHOWN_KIND = 40

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Thinking:
    """What the model thought in an earlier turn; empty where that is not readable."""

    text: str = ""


@dataclass(frozen=True)
class ToolUse:
    """A call of an earlier turn."""

    id: str
    name: str
    input: JsonObject


@dataclass(frozen=True)
class ToolResult:
    """What a call has come to."""

    tool_use_id: str
    text: str
    is_error: bool


Block = Text | Thinking | ToolUse | ToolResult


Reader = Callable[[JsonObject, str], Block]


def _string(block: JsonObject, key: str, at: str, most: int | None = None) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise invalid("must be a string", f"{at}.{key}")
    if most is not None and len(value) > most:
        raise invalid(f"must have at most {most:,} characters", f"{at}.{key}")
    return value


def _read_text(block: JsonObject, at: str) -> Text:
    return Text(_string(block, "text", at))


def _read_thinking(block: JsonObject, at: str) -> Thinking:
    return Thinking(_string(block, "thinking", at))


def _read_redacted(block: JsonObject, at: str) -> Thinking:
    _string(block, "data", at)
    return Thinking()


def _read_tool_use(block: JsonObject, at: str) -> ToolUse:
    given = block.get("input")
    if not isinstance(given, dict):
        raise invalid("must be an object", f"{at}.input")
    id_ = _string(block, "id", at, MAX_ID_CHARS)
    return ToolUse(id_, _string(block, "name", at, MAX_NAME_CHARS), given)


def _read_tool_result(block: JsonObject, at: str) -> ToolResult:
    return _read_result(block, at, RESULTS)


def _read_tool_result_of_text(block: JsonObject, at: str) -> ToolResult:
    return _read_result(block, at, TEXT_RESULTS)


def _read_result(block: JsonObject, at: str, readers: Mapping[str, Reader]) -> ToolResult:
    content = block.get("content")
    text = "" if content is None else join_texts(_read_blocks(content, f"{at}.content", readers))
    is_error = block.get("is_error")
    if type(is_error) not in (bool, type(None)):
        raise invalid("must be true or false", f"{at}.is_error")
    return ToolResult(_string(block, "tool_use_id", at, MAX_ID_CHARS), text, bool(is_error))


def _read_omitted(block: JsonObject, at: str) -> Text:
    return Text(ATTACHMENT_NOTES[block["type"]])


def _read_document(block: JsonObject, at: str) -> Text:
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "text":
        text = source.get("data")
        if isinstance(text, str):
            return Text(text)
    return _read_omitted(block, at)


def _read_tool_reference(block: JsonObject, at: str) -> Text:
    name = _string(block, "tool_name", at, MAX_NAME_CHARS)
    return Text(f"The tool `{name}` is available")


TEXT_ONLY: Mapping[str, Reader] = {"text": _read_text}
# A search among tools that are loaded later ends with references; here all are loaded at once.
TEXT_RESULTS: Mapping[str, Reader] = {**TEXT_ONLY, "tool_reference": _read_tool_reference}
RESULTS: Mapping[str, Reader] = {
    **TEXT_RESULTS,
    "image": _read_omitted,
    "document": _read_document,
}
ANY_KIND: Mapping[str, Reader] = {
    **TEXT_ONLY,
    "thinking": _read_thinking,
    "redacted_thinking": _read_redacted,
    "tool_use": _read_tool_use,
    "tool_result": _read_tool_result,
}
WITHOUT_ATTACHMENTS = {**ANY_KIND, "tool_result": _read_tool_result_of_text}


def _read_blocks(value: object, at: str, readers: Mapping[str, Reader]) -> tuple[Block, ...]:
    if isinstance(value, str):
        return (Text(value),)
    if not isinstance(value, list):
        raise invalid("must be a string or an array of blocks", at)
    if len(value) > MAX_BLOCKS:
        raise invalid(f"must have at most {MAX_BLOCKS:,} blocks", at)
    return tuple(_read_block(block, f"{at}[{i}]", readers) for i, block in enumerate(value))


def _read_block(block: object, at: str, readers: Mapping[str, Reader]) -> Block:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(block, dict) or not isinstance(kind, str):
        raise invalid('must be an object such as {"type": "text", "text": "..."}', at)
    if kind not in readers:
        known = ", ".join(f"`{name}`" for name in readers)
        raise unsupported(
            f"may be {known} here; `{kind[:MAX_SHOWN_KIND]}` is not supported", f"{at}.type"
        )
    return readers[kind](block, at)


def parse_blocks(value: object, info: ValidationInfo) -> tuple[Block, ...]:
    if value is None:  # as clients of chats send an assistant that only calls
        return ()
    takes_attachments = (info.context or {}).get(RESULT_ATTACHMENTS, "note") == "note"
    return _read_blocks(value, "", ANY_KIND if takes_attachments else WITHOUT_ATTACHMENTS)


def parse_texts(value: object, at: str = "") -> str:
    """A string, or the texts of blocks with a line break between them."""
    return join_texts(_read_blocks(value, at, TEXT_ONLY))


def join_texts(blocks: tuple[Block, ...]) -> str:
    return "\n".join(block.text for block in blocks if isinstance(block, Text))


def _describe(kind: str, required: JsonObject, optional: JsonObject | None = None) -> JsonObject:
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": {"enum": [kind]}, **required, **(optional or {})},
    }


def _string_or(*blocks: JsonObject, min_items: int = 0) -> JsonObject:
    items = blocks[0] if len(blocks) == 1 else {"anyOf": list(blocks)}
    array = {"type": "array", "minItems": min_items, "maxItems": MAX_BLOCKS, "items": items}
    return {"anyOf": [{"type": "string"}, array]}


_STRING = {"type": "string"}
_ID = {"type": "string", "maxLength": MAX_ID_CHARS}
_NAME = {"type": "string", "maxLength": MAX_NAME_CHARS}
_TEXT = _describe("text", {"text": _STRING})
_TEXTS = _string_or(_TEXT)
_THINKING = _describe("thinking", {"thinking": _STRING})
_REDACTED = _describe("redacted_thinking", {"data": _STRING})
_TOOL_USE = _describe("tool_use", {"id": _ID, "name": _NAME, "input": {"type": "object"}})
_RESULTS = _string_or(
    _TEXT,
    {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": ["image", "document"]}},
    },
    _describe("tool_reference", {"tool_name": _NAME}),
)
_RESULT_FIELDS = {
    "content": {"anyOf": [*_RESULTS["anyOf"], {"type": "null"}]},
    "is_error": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
}
_TOOL_RESULT = _describe("tool_result", {"tool_use_id": _ID}, _RESULT_FIELDS)
_BY_ROLE = {
    "user": _string_or(_TEXT, _TOOL_RESULT, min_items=1),
    "assistant": {
        "anyOf": [*_string_or(_TEXT, _THINKING, _REDACTED, _TOOL_USE)["anyOf"], {"type": "null"}]
    },
    "system": _string_or(_TEXT, min_items=1),
}

Content = Annotated[
    tuple[Block, ...],
    PlainValidator(parse_blocks),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]}),
]
Texts = Annotated[str, PlainValidator(parse_texts), WithJsonSchema(_TEXTS)]

CONTENT_OF_ROLES = {
    "anyOf": [
        {"properties": {"role": {"const": role}, "content": content}}
        for role, content in _BY_ROLE.items()
    ]
}
"""What the messages of each role may hold, as a JSON schema of a message."""
