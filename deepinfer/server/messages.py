"""A chat as clients send it: messages of every role, and the tools that the model may call."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from deepinfer.server import refused as refused_fields
from deepinfer.server.schema_base import Rule, Schema, invalid, missing, unsupported

MAX_NAME_CHARS = 256
MAX_CALLS_PER_MESSAGE = 128
MAY_BE_SILENT = ("assistant", "tool")  # roles whose messages may have no content
# Parts of a tool's result that are no text, and what the model reads in their place: an error
# would come back with each later request, since the history holds them.
ATTACHMENT_NOTES = {
    **dict.fromkeys(("image_url", "image", "input_image"), "[image omitted]"),
    **dict.fromkeys(("input_audio", "audio"), "[audio omitted]"),
    **dict.fromkeys(("file", "input_file", "document"), "[file omitted]"),
}
RESULT_ATTACHMENTS = "result_attachments"  # in a validation's context: `note` or `refuse`
TOOL_WITHOUT_EFFECT = {
    "cache_control": "Accepted; prompts share their cache without it",
    "defer_loading": "Accepted; every tool is in the prompt",
    "input_examples": "Accepted; not shown to the model",
}
TOOL_NAME_RULE = re.compile(r"[a-zA-Z0-9_.-]{1,64}")  # OpenAI's, and the dot of MCP servers


def _parse_role(value: object) -> object:
    if value == "function":
        raise unsupported("may not be `function`; results of calls have the role `tool`")
    return value


def _parse_content(value: object, info: ValidationInfo) -> str:
    """A string, or the texts of content parts with a line break between them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of text parts")
    role = info.data.get("role")
    if not value and role not in MAY_BE_SILENT:
        raise invalid("must not be an empty array")
    settings = info.context or {}
    takes_attachments = role == "tool" and settings.get(RESULT_ATTACHMENTS, "note") == "note"
    parts: list[str] = []
    for index, part in enumerate(value):
        at = f"[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise invalid('must be an object such as {"type": "text", "text": "..."}', at)
        if takes_attachments and kind in ATTACHMENT_NOTES:
            parts.append(ATTACHMENT_NOTES[kind])
            continue
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            raise unsupported(f"may only be `text`; `{kind[:40]}` is not supported", f"{at}.type")
        text = part.get(kind)
        if not isinstance(text, str):
            raise invalid("must be a string", f"{at}.{kind}")
        parts.append(text)
    return "\n".join(parts)


# As JSON escapes it. A pair of them is a character; one alone is none, and models do write it.
LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Role = Annotated[
    Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_parse_role)
]
Content = Annotated[
    str,
    PlainValidator(_parse_content),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]}),
]


def _parse_arguments(value: object) -> object:
    # Some clients keep what they have parsed; OpenAI's form is the text.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


Arguments = Annotated[
    str,
    BeforeValidator(_parse_arguments),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]


class CalledFunction(Schema):
    name: str = Field(max_length=MAX_NAME_CHARS)
    arguments: Arguments = Field(
        default="{}", description="JSON text, as the model wrote it, or the object itself"
    )

    @property
    def parsed_arguments(self) -> Any:
        """What templates write as JSON; text that is none, or that no tokenizer takes, stays."""
        try:
            parsed = json.loads(self.arguments or "{}")
            if LONE_SURROGATE.search(self.arguments):
                json.dumps(parsed, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return self.arguments
        return {} if parsed is None else parsed


class ToolCall(Schema):
    """A call of an earlier turn."""

    id: str = Field(max_length=MAX_NAME_CHARS)
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_input(self, *, wraps_text: bool = False) -> dict[str, Any]:
        """With `wraps_text` arguments that are no object become the only one of an object."""
        arguments = self.function.parsed_arguments
        if wraps_text and not isinstance(arguments, dict):
            arguments = {"arguments": arguments}
        function = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": self.type, "function": function}


def _part(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {"enum": [kind]}, kind: {"type": "string"}},
    }


def _content_of(*parts: dict[str, Any], is_optional: bool) -> dict[str, Any]:
    items = {"type": "array", "minItems": int(not is_optional), "items": {"anyOf": list(parts)}}
    return {"anyOf": [{"type": "string"}, items, *([{"type": "null"}] if is_optional else [])]}


_NO_CALLS: dict[str, Any] = {"enum": [None, []]}
_ATTACHMENT = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"enum": list(ATTACHMENT_NOTES)}},
}
_CONTENT_OF_ROLES: Rule = {
    "anyOf": [
        {
            "required": ["content"],
            "properties": {
                "role": {"enum": ["system", "developer", "user"]},
                "content": _content_of(_part("text"), is_optional=False),
                "tool_calls": _NO_CALLS,
            },
        },
        {
            "properties": {
                "role": {"const": "assistant"},
                "content": _content_of(_part("text"), _part("refusal"), is_optional=True),
            }
        },
        {
            "properties": {
                "role": {"const": "tool"},
                "content": _content_of(_part("text"), _ATTACHMENT, is_optional=True),
                "tool_calls": _NO_CALLS,
            }
        },
    ]
}


class ChatMessage(Schema):
    refused = refused_fields.MESSAGE
    rules = (_CONTENT_OF_ROLES,)

    role: Role = Field(description="`developer` is rendered as `system`")
    content: Content | None = Field(
        default=None,
        description="Text, or parts of type `text`, which line breaks join; of an assistant also "
        "`refusal`, of a tool also images and files, which become notes. Only an assistant's or a "
        "tool's may be left out",
    )
    name: str | None = Field(
        default=None, max_length=MAX_NAME_CHARS, description="Passed on to the chat template"
    )
    tool_calls: list[ToolCall] = Field(
        default_factory=list, max_length=MAX_CALLS_PER_MESSAGE, description="Of an assistant's turn"
    )
    tool_call_id: str | None = Field(
        default=None,
        max_length=MAX_NAME_CHARS,
        description="The call that a `tool` message answers",
    )

    reasoning_content: str | None = Field(
        default=None, description="An assistant's thoughts, which the chat template may show"
    )
    reasoning: str | None = Field(default=None, description="Another name for `reasoning_content`")
    refusal: str | None = Field(
        default=None, description="Of an assistant that refused: the text, where there is no other"
    )

    @property
    def num_chars(self) -> int:
        calls = sum(len(call.function.arguments) for call in self.tool_calls)
        return len(self.content or "") + len(self.thoughts) + calls

    @property
    def thoughts(self) -> str:
        """What an assistant has thought before it spoke."""
        return (self.reasoning_content or self.reasoning or "") if self.role == "assistant" else ""

    @model_validator(mode="after")
    def _check_fields_of_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise invalid(
                f"belongs to assistants' messages; this one's role is {self.role}", "tool_calls"
            )
        if self.content is None and self.role not in MAY_BE_SILENT:
            if "content" not in self.model_fields_set:
                raise missing("content")
            raise invalid("must be a string or an array of text parts", "content")
        return self

    def as_template_input(self, *, wraps_text: bool = False) -> dict[str, Any]:
        """`wraps_text` is for calls, see there."""
        # Templates that know no developer would leave out what it says; OpenAI takes it for system.
        role = "system" if self.role == "developer" else self.role
        refusal = self.refusal if self.role == "assistant" else None
        message: dict[str, Any] = {"role": role, "content": self.content or refusal or ""}
        if self.thoughts:
            # Templates know them under one of two names.
            message |= {"reasoning_content": self.thoughts, "reasoning": self.thoughts}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [
                call.as_template_input(wraps_text=wraps_text) for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def _check_tool_name(name: str) -> str:
    if not TOOL_NAME_RULE.fullmatch(name):
        raise invalid("must be 1 to 64 letters, digits, `_`, `-` or `.`")
    return name


ToolName = Annotated[
    str,
    AfterValidator(_check_tool_name),
    WithJsonSchema({"type": "string", "pattern": f"^{TOOL_NAME_RULE.pattern}$"}),
]


class Function(Schema):
    without_effect = TOOL_WITHOUT_EFFECT

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON schema of the arguments",
    )
    strict: bool = Field(default=False, description="Arguments fit wherever a call is enforced")


class Tool(Schema):
    """A function that the model may call."""

    without_effect = TOOL_WITHOUT_EFFECT

    type: Literal["function"]
    function: Function

    def as_template_input(self) -> dict[str, Any]:
        function = self.function.model_dump(include={"name", "description", "parameters"})
        known = {key: value for key, value in function.items() if value is not None}
        if not self.function.parameters:
            # Templates look into the properties; without a keyword there are none.
            known["parameters"] = {"type": "object", "properties": {}}
        return {"type": "function", "function": known}


@dataclass(frozen=True)
class ToolWish:
    """Whether tools may or must be called; `name` is of the one that must be.

    `allowed` are the names of those that may be called at all; None for every one.
    """

    mode: Literal["none", "auto", "required"]
    name: str | None = None
    allowed: tuple[str, ...] | None = None


def _function_name(value: object) -> str | None:
    """The name in {"type": "function", "function": {"name": ...}}."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return None
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _parse_allowed_tools(value: object) -> ToolWish:
    if not isinstance(value, dict):
        raise invalid('must be an object such as {"mode": "auto", "tools": [...]}', "allowed_tools")
    mode, tools = value.get("mode"), value.get("tools")
    if mode != "auto" and mode != "required":
        raise invalid('must be "auto" or "required"', "allowed_tools.mode")
    if not isinstance(tools, list | tuple) or not tools:
        raise invalid("must be an array with at least one function", "allowed_tools.tools")
    names: list[str] = []
    for index, tool in enumerate(tools):
        if (name := _function_name(tool)) is None:
            at = f"allowed_tools.tools[{index}]"
            raise invalid('must be {"type": "function", "function": {"name": ...}}', at)
        names.append(name)
    return ToolWish(mode, allowed=tuple(names))


def _parse_tool_choice(value: object) -> ToolWish:
    if isinstance(value, ToolWish):  # null, for which the default has been put
        return value
    if value == "none" or value == "auto" or value == "required":
        return ToolWish(value)
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _parse_allowed_tools(value.get("allowed_tools"))
    if (name := _function_name(value)) is not None:
        return ToolWish("required", name)
    raise invalid(
        'must be "none", "auto", "required", {"type": "function", "function": {"name": ...}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}'
    )


_NAMED_FUNCTION = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
}
ToolChoice = Annotated[
    ToolWish,
    PlainValidator(_parse_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                _NAMED_FUNCTION,
                {
                    "type": "object",
                    "required": ["type", "allowed_tools"],
                    "properties": {
                        "type": {"enum": ["allowed_tools"]},
                        "allowed_tools": {
                            "type": "object",
                            "required": ["mode", "tools"],
                            "properties": {
                                "mode": {"enum": ["auto", "required"]},
                                "tools": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": _NAMED_FUNCTION,
                                },
                            },
                        },
                    },
                },
            ]
        }
    ),
]
