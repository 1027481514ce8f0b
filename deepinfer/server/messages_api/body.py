"""What clients may send to /v1/messages and /v1/messages/count_tokens, in Anthropic's terms.

What makes up the prompt is in the body that both share. `conversation.py` says what becomes of it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    FailFast,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from deepinfer.generation import Grammar
from deepinfer.server import refused as refused_fields
from deepinfer.server.messages_api.blocks import (
    CONTENT_OF_ROLES,
    Block,
    Content,
    Text,
    Texts,
    ToolResult,
    ToolUse,
)
from deepinfer.server.messages_api.context_edits import ContextManagement, Edit
from deepinfer.server.messages_api.tools import ClientTool, Tool, ToolChoice, UnservedTool
from deepinfer.server.schema_base import Schema, invalid, missing, unsupported
from deepinfer.server.schemas import (
    INT32_MAX,
    MAX_MESSAGES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_TOOLS,
    ModelName,
    parse_stop,
)
from deepinfer.server.structured import parse_json_schema


class InputMessage(Schema):
    """A turn of the conversation."""

    rules = (CONTENT_OF_ROLES,)

    role: Literal["user", "assistant", "system"]
    content: Content

    @model_validator(mode="after")
    def _check_blocks_of_role(self) -> Self:
        if not self.content and self.role != "assistant":
            raise invalid("must not be empty", "content")
        for index, block in enumerate(self.content):
            owner = _owner(block)
            if owner is not None and owner != self.role:
                raise invalid(
                    f"belongs to messages of the role `{owner}`; this one's is `{self.role}`",
                    f"content[{index}]",
                )
        return self


def _owner(block: Block) -> Literal["user", "assistant"] | None:
    """The only role that such a block may come from."""
    if isinstance(block, Text):
        return None
    return "user" if isinstance(block, ToolResult) else "assistant"


def _check_thinking(value: object) -> object:
    if value not in ("enabled", "disabled", "adaptive"):
        raise unsupported("may be `enabled`, `adaptive` or `disabled`")
    return value


class ThinkingWish(Schema):
    """Whether the model thinks before it answers."""

    rules = (
        {
            "anyOf": [
                {"properties": {"type": {"enum": ["adaptive", "disabled"]}}},
                {
                    "required": ["budget_tokens"],
                    "properties": {"budget_tokens": {"type": "integer"}},
                },
            ]
        },
    )

    type: Annotated[Literal["enabled", "disabled", "adaptive"], BeforeValidator(_check_thinking)]
    budget_tokens: int | None = Field(
        default=None, ge=1, le=INT32_MAX, description="Not enforced; `max_tokens` is for both"
    )
    display: Literal["summarized", "omitted"] = Field(
        default="summarized", description="`omitted`: the blocks of thinking are empty"
    )

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.type == "enabled" and self.budget_tokens is None:
            raise missing("budget_tokens")
        return self


def _parse_format(param: str) -> PlainValidator:
    def parse(value: object) -> Grammar | None:
        if value is None:
            return None
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(kind, str):
            raise invalid('must be an object such as {"type": "json_schema", "schema": {...}}')
        if kind != "json_schema":
            raise unsupported("may only be `json_schema`", "type")
        return parse_json_schema(value.get("schema"), param, "schema")

    return PlainValidator(parse)


_FORMAT = WithJsonSchema(
    {
        "type": "object",
        "required": ["type", "schema"],
        "properties": {"type": {"enum": ["json_schema"]}, "schema": {"type": "object"}},
    }
)


class OutputConfig(Schema):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        default=None, description="Handed to the chat template, which may know it"
    )
    format: Annotated[Grammar | None, _parse_format("output_config.format"), _FORMAT] = Field(
        default=None, description="JSON that fits a schema"
    )


class PromptBody(Schema):
    """The body of POST /v1/messages/count_tokens."""

    refused = refused_fields.MESSAGES
    without_effect = refused_fields.MESSAGES_WITHOUT_EFFECT

    model: ModelName | None = Field(
        default=None, description="Model id or engine name; the served engine when left out"
    )
    messages: Annotated[list[InputMessage], FailFast()] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far"
    )
    system: Texts = Field(default="", description="What the model is told before it")
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=MAX_TOOLS,
        description="Tools that the model may call. Those with another `type` than `custom` are "
        "left out, or refused where a call is required",
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="Whether the model may or must call; it may when left out"
    )
    thinking: ThinkingWish | None = Field(
        default=None, description="The chat template decides when left out"
    )
    output_config: OutputConfig | None = Field(default=None, description="Effort, and a schema")
    output_format: Annotated[Grammar | None, _parse_format("output_format"), _FORMAT] = Field(
        default=None, description="The former name of `output_config.format`"
    )
    context_management: ContextManagement | None = Field(
        default=None, description="What to clear from a conversation that has grown long"
    )

    @property
    def client_tools(self) -> list[ClientTool]:
        return [tool for tool in self.tools if isinstance(tool, ClientTool)]

    @property
    def unserved_tools(self) -> list[UnservedTool]:
        """Tools that the model is not offered, as somebody else than the client would run them."""
        return [tool for tool in self.tools if isinstance(tool, UnservedTool)]

    @property
    def context_edits(self) -> list[Edit]:
        return [] if self.context_management is None else self.context_management.edits

    @property
    def grammar(self) -> Grammar | None:
        configured = None if self.output_config is None else self.output_config.format
        return configured or self.output_format

    @property
    def is_prefilled(self) -> bool:
        """Whether the answer goes on from the last message."""
        return self.messages[-1].role == "assistant" and any(
            isinstance(block, Text) and block.text for block in self.messages[-1].content
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.output_config is not None and self.output_config.format and self.output_format:
            raise invalid("must not be combined with `output_config.format`", "output_format")
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool"):
            self._check_forced_call(choice)
        for index, block in enumerate(self.messages[-1].content):
            if isinstance(block, ToolUse):
                place = f"messages[{len(self.messages) - 1}].content[{index}]"
                raise invalid("must be followed by a message with its `tool_result`", place)
        return self

    def _check_forced_call(self, choice: ToolChoice) -> None:
        if not self.tools:
            raise invalid("needs `tools`", "tool_choice")
        if choice.type == "tool" and choice.name in {tool.name for tool in self.client_tools}:
            return
        for index, tool in enumerate(self.tools):
            is_chosen = choice.type == "any" or choice.name == tool.name
            if isinstance(tool, UnservedTool) and is_chosen:
                raise unsupported(
                    f"may only be `custom` where a call is required; `{tool.type}` is none of the "
                    "client's own tools",
                    f"tools[{index}].type",
                )
        if choice.type == "tool":
            raise invalid("must be the name of one of `tools`", "tool_choice.name")


def _parse_stop_sequences(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise invalid("must be an array of strings")
    return parse_stop(value)


StopSequences = Annotated[
    tuple[str, ...],
    PlainValidator(_parse_stop_sequences),
    WithJsonSchema(
        {
            "type": "array",
            "maxItems": MAX_STOP_STRINGS,
            "items": {"type": "string", "maxLength": MAX_STOP_CHARS},
        }
    ),
]


class MessagesBody(PromptBody):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(
        ge=0,
        le=INT32_MAX,
        description="Most tokens to generate, as far as the context has room; with 0 the prompt is "
        "read into the prefix cache and the answer is empty",
    )
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="Sampling temperature; 0 is greedy"
    )
    top_p: float = Field(
        default=1.0, ge=0, le=1, description="Share of probability that is sampled from"
    )
    top_k: int = Field(
        default=-1, ge=-1, le=INT32_MAX, description="Tokens sampled from; -1 or 0: all"
    )
    stop_sequences: StopSequences = Field(
        default=(), description="Strings that end the answer; they are not part of it"
    )
    stream: bool = Field(default=False, description="Send the answer as server-sent events")

    @property
    def shows_thinking(self) -> bool:
        return self.thinking is None or self.thinking.display != "omitted"
