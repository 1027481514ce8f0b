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
    WithJsonSchema,
    model_validator,
)

from deepinfer.server import refused as refused_fields
from deepinfer.server.schema_base import Rule, Schema, invalid, missing, unsupported

MAX_NAME_CHARS = 256
MAX_CALLS_PER_MESSAGE = 128
# Parts of a tool's result that are no text, and what the model reads in their place: an error
# would come back with each later request, since the history holds them.
ATTACHMENT_NOTES = {
    **dict.fromkeys(("image_url", "image", "input_image"), "[image omitted]"),
    **dict.fromkeys(("input_audio", "audio"), "[audio omitted]"),
    **dict.fromkeys(("file", "input_file", "document"), "[file omitted]"),
}
RESULT_ATTACHMENTS = "result_attachments"  # in a validation's context: `note` or `refuse`
TOOL_NAME_RULE = re.compile(r"[a-zA-Z0-9_.-]{1,64}")  # OpenAI's, and the dot of MCP servers


def _parse_role(value: object) -> object:
    if value == "function":
        raise unsupported("may not be `function`; results of calls have the role `tool`")
    return value


def _parse_content(value: object) -> str:
    """A string, or the texts of content parts with a line break between them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise invalid("must be a string or an array of text parts")
    if not value:
        raise invalid("must not be an empty array")
    return "\n".join(_parse_part(part, f"[{index}]") for index, part in enumerate(value))


def _parse_part(part: object, at: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise invalid('must be an object such as {"type": "text", "text": "..."}', at)
    if kind != "text":
        raise unsupported(f"may only be `text`; `{kind[:40]}` is not supported", f"{at}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid("must be a string", f"{at}.text")
    return text


Role = Annotated[
    Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_parse_role)
]
Content = Annotated[
    str,
    PlainValidator(_parse_content),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "text"],
                        "properties": {
                            "type": {"type": "string", "enum": ["text"]},
                            "text": {"type": "string"},
                        },
                    },
                },
            ]
        }
    ),
]


class CalledFunction(Schema):
    name: str = Field(max_length=MAX_NAME_CHARS)
    arguments: str = Field(default="{}", description="JSON text, as the model wrote it")

    @property
    def parsed_arguments(self) -> Any:
        """What templates write as JSON; text that is none stays as it is."""
        try:
            return json.loads(self.arguments)
        except ValueError:
            return self.arguments


class ToolCall(Schema):
    """A call of an earlier turn."""

    id: str = Field(max_length=MAX_NAME_CHARS)
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.parsed_arguments}
        return {"id": self.id, "type": self.type, "function": function}


_SAYS_SOMETHING: Rule = {
    "required": ["content"],
    "properties": {
        "content": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "tool_calls": {"enum": [None, []]},
    },
}
_CALLS_SOMETHING: Rule = {
    "required": ["tool_calls"],
    "properties": {
        "role": {"const": "assistant"},
        "tool_calls": {"type": "array", "minItems": 1},
    },
}


class ChatMessage(Schema):
    refused = refused_fields.MESSAGE
    rules = ({"anyOf": [_SAYS_SOMETHING, _CALLS_SOMETHING]},)

    role: Role = Field(description="`developer` is rendered as `system`")
    content: Content | None = Field(
        default=None, description="Text, or parts of type `text`, which line breaks join"
    )
    reasoning_content: str | None = Field(
        default=None, description="Earlier thoughts of the assistant, which the template may show"
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

    @property
    def num_chars(self) -> int:
        calls = sum(len(call.function.arguments) for call in self.tool_calls)
        return len(self.content or "") + calls

    @model_validator(mode="after")
    def _check_fields_of_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise invalid(
                f"belongs to assistants' messages; this one's role is {self.role}", "tool_calls"
            )
        if self.content is None and not self.tool_calls:
            if "content" not in self.model_fields_set:
                raise missing("content")
            raise invalid("must be a string or an array of text parts", "content")
        return self

    def as_template_input(self) -> dict[str, Any]:
        # Templates that know no developer would leave out what it says; OpenAI takes it for system.
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content or ""}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
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
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(
        default_factory=lambda: {"type": "object", "properties": {}},
        description="JSON schema of the arguments",
    )
    strict: bool = False


class Tool(Schema):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function

    def as_template_input(self) -> dict[str, Any]:
        function = self.function.model_dump(include={"name", "description", "parameters"})
        known = {key: value for key, value in function.items() if value is not None}
        return {"type": "function", "function": known}


@dataclass(frozen=True)
class ToolWish:
    """Whether tools may or must be called; `name` is of the one that must be."""

    mode: Literal["none", "auto", "required"]
    name: str | None = None


def _parse_tool_choice(value: object) -> ToolWish:
    if value == "none" or value == "auto" or value == "required":
        return ToolWish(value)
    if isinstance(value, dict) and value.get("type") == "function":
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str):
            return ToolWish("required", name)
    raise invalid(
        'must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
    )


ToolChoice = Annotated[
    ToolWish,
    PlainValidator(_parse_tool_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
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
                },
            ]
        }
    ),
]
