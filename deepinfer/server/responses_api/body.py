"""The bodies of POST /v1/responses and of the routes beside it, and the chat that they come to.

Fields that chats have too are declared by the chat's own, so bounds and defaults are written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from deepinfer.server import refused as refused_fields
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages import ChatMessage, ToolWish
from deepinfer.server.responses_api.compaction import REQUEST
from deepinfer.server.responses_api.conversation import as_messages
from deepinfer.server.responses_api.fields import (
    EFFORTS,
    LOG_PROBS,
    Include,
    ReasoningConfig,
    TextConfig,
    check_metadata,
)
from deepinfer.server.responses_api.item_params import Input, OptionalInput
from deepinfer.server.responses_api.items import Item, ItemReference
from deepinfer.server.responses_api.tools import (
    AUTO,
    OfferedTools,
    Tool,
    ToolChoice,
    UnservedTool,
    choose_tools,
)
from deepinfer.server.schema_base import Rule, Schema, invalid, missing
from deepinfer.server.schemas import (
    INT32_MAX,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    MaxTokens,
    ModelName,
)

MAX_IDENTIFIER_CHARS = 512
MAX_INCLUDED = 16
MAX_SUMMARY_TOKENS = 2_048  # as far as the context has room
# What these fields are called in a chat, whose checks are used.
PARAM_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
    "tools[].function.parameters": "tools[].parameters",
}
FIELDS_OF_CHATS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "priority",
)


def _as_in_chats(name: str) -> Any:
    return ChatBody.model_fields[name]


def _identifier(description: str) -> Any:
    return Field(default=None, max_length=MAX_IDENTIFIER_CHARS, description=description)


class ResponseStreamOptions(Schema):
    without_effect = refused_fields.RESPONSE_STREAM_OPTIONS_WITHOUT_EFFECT


class _Prompt(Schema):
    """What makes up the prompt of a response."""

    model: ModelName | None = _as_in_chats("model")
    instructions: str | None = Field(
        default=None, description="What the system says first; not kept for the next response"
    )
    previous_response_id: str | None = _identifier("The stored response that this one goes on from")
    chat_template_kwargs: dict[str, Any] = _as_in_chats("chat_template_kwargs")
    text: TextConfig = Field(default_factory=TextConfig, description="What the text must be")
    reasoning: ReasoningConfig | None = Field(default=None, description="How much to think")
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=MAX_TOOLS,
        description="Functions, custom tools and namespaces of them that the model may call. "
        "Others are left out, or refused where a call is required",
    )
    tool_choice: ToolChoice = Field(
        default=AUTO,
        description="Whether the model may or must call, and which tools",
        json_schema_extra={"default": "auto"},
    )
    parallel_tool_calls: bool = _as_in_chats("parallel_tool_calls")
    truncation: Literal["auto", "disabled"] = Field(
        default="disabled",
        description="`auto`: drop the oldest turns where the prompt would not fit",
    )

    @cached_property
    def offered_tools(self) -> OfferedTools:
        return choose_tools(self.tools, self.tool_choice)

    @property
    def unserved_tools(self) -> list[UnservedTool]:
        """Tools that the model is not offered, as somebody else than the client would run them."""
        return [tool for tool in self.tools if isinstance(tool, UnservedTool)]

    @property
    def effort(self) -> str | None:
        return None if self.reasoning is None else self.reasoning.effort

    @property
    def given_items(self) -> Sequence[Item | ItemReference]:
        return ()

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        _ = self.offered_tools
        return self

    def as_chat(self, items: Sequence[Item], **fields: Any) -> ChatBody:
        """The chat of these items. Nothing is left to check: all its fields have been."""
        offered = self.offered_tools
        is_required = self.tool_choice.mode == "required"
        return ChatBody.model_construct(
            messages=as_messages(self.instructions, items),
            model=self.model,
            # A call that is required is the whole answer, whatever form a text would have.
            response_format=None if is_required else self.text.grammar,
            tools=[tool.as_chat_tool() for tool in offered.tools],
            tool_choice=ToolWish(self.tool_choice.mode, offered.required),
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=EFFORTS.get(self.effort or "", self.effort),
            verbosity=self.text.verbosity if "verbosity" in self.text.model_fields_set else None,
            chat_template_kwargs=self.chat_template_kwargs,
            **fields,
        )


class ResponsesBody(_Prompt):
    """The body of POST /v1/responses."""

    refused = refused_fields.RESPONSES
    without_effect = refused_fields.RESPONSES_WITHOUT_EFFECT
    rules = (
        {
            "anyOf": [
                {"properties": {"top_logprobs": {"enum": [None, 0]}}},
                {
                    "required": ["include"],
                    "properties": {"include": {"type": "array", "contains": {"const": LOG_PROBS}}},
                },
            ]
        },
    )

    input: Input = Field(description="A user's text, or items in order")
    max_output_tokens: MaxTokens | None = Field(
        default=None,
        description="Maximum number of tokens to generate, thoughts included; what the context has "
        "room for when left out, and with -1. A number of yours that does not fit is a 400",
    )
    max_tool_calls: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Said back; it counts calls that the server carries out, of which it has none",
    )
    temperature: float = _as_in_chats("temperature")
    top_p: float = _as_in_chats("top_p")
    top_k: int = _as_in_chats("top_k")
    min_p: float = _as_in_chats("min_p")
    frequency_penalty: float = _as_in_chats("frequency_penalty")
    presence_penalty: float = _as_in_chats("presence_penalty")
    repetition_penalty: float = _as_in_chats("repetition_penalty")
    seed: int | None = _as_in_chats("seed")
    stop: tuple[str, ...] = _as_in_chats("stop")
    stop_token_ids: list[int] = _as_in_chats("stop_token_ids")
    min_tokens: int = _as_in_chats("min_tokens")
    ignore_eos: bool = _as_in_chats("ignore_eos")
    priority: int = _as_in_chats("priority")
    stream: bool = _as_in_chats("stream")
    stream_options: ResponseStreamOptions | None = Field(
        default=None, description="Nothing to choose"
    )
    store: bool = Field(default=True, description="Keep the response, for a while, to be read")
    include: list[Include] = Field(
        default_factory=list, max_length=MAX_INCLUDED, description="What the answer shows besides"
    )
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description=f"Likeliest tokens at each place; needs `{LOG_PROBS}` in `include`",
    )
    metadata: Annotated[dict[str, str], AfterValidator(check_metadata)] = Field(
        default_factory=dict, description="Up to 16 texts of yours, kept with the response"
    )
    user: str | None = _identifier("Said back in the response")
    safety_identifier: str | None = _identifier("Said back in the response")
    prompt_cache_key: str | None = _identifier("Said back; prompts share their cache without it")

    @property
    def given_items(self) -> Sequence[Item | ItemReference]:
        return self.input

    @property
    def includes_log_probs(self) -> bool:
        return LOG_PROBS in self.include

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.top_logprobs and not self.includes_log_probs:
            raise invalid(f"needs `{LOG_PROBS}` in `include`", "top_logprobs")
        # Once the text is complete nothing but the end may follow.
        for name in ("min_tokens", "ignore_eos"):
            if self.text.format is not None and getattr(self, name):
                raise invalid("must not be combined with `text.format`", name)
        return self

    def as_chat(self, items: Sequence[Item], **fields: Any) -> ChatBody:
        return super().as_chat(
            items,
            max_tokens=self.max_output_tokens,
            logprobs=self.includes_log_probs,
            top_logprobs=self.top_logprobs,
            **{name: getattr(self, name) for name in FIELDS_OF_CHATS},
            **fields,
        )


_GIVES_INPUT: Rule = {
    "required": ["input"],
    "properties": {"input": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1}]}},
}


def _gives_text(name: str) -> Rule:
    return {"required": [name], "properties": {name: {"type": "string"}}}


class InputTokensBody(_Prompt):
    """The body of POST /v1/responses/input_tokens."""

    rules = (
        {"anyOf": [_GIVES_INPUT, _gives_text("previous_response_id"), _gives_text("instructions")]},
    )

    refused = {"conversation": ()}
    without_effect = refused_fields.RESPONSE_PROMPT_WITHOUT_EFFECT

    input: OptionalInput = Field(
        default_factory=list, description="A user's text, or items in order"
    )

    @property
    def given_items(self) -> Sequence[Item | ItemReference]:
        return self.input

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        others = (self.previous_response_id, self.instructions)
        if not self.input and others == (None, None):
            raise missing("input")
        return self


class CompactBody(Schema):
    """The body of POST /v1/responses/compact."""

    rules = ({"anyOf": [_GIVES_INPUT, _gives_text("previous_response_id")]},)

    refused = {"image": ({},)}
    without_effect = refused_fields.RESPONSE_COMPACT_WITHOUT_EFFECT

    model: ModelName | None = _as_in_chats("model")
    input: OptionalInput = Field(
        default_factory=list, description="A user's text, or items in order"
    )
    instructions: str | None = Field(default=None, description="What the system says first")
    previous_response_id: str | None = _identifier("The stored response that is compacted as well")

    @property
    def given_items(self) -> Sequence[Item | ItemReference]:
        return self.input

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if not self.input and self.previous_response_id is None:
            raise missing("input")
        return self

    def as_chat(self, items: Sequence[Item]) -> ChatBody:
        """The chat in which the model is asked for a summary."""
        messages = as_messages(self.instructions, items)
        request = ChatMessage.model_construct(role="user", content=REQUEST)
        return ChatBody.model_construct(
            messages=[*messages, request], model=self.model, max_tokens=MAX_SUMMARY_TOKENS
        )
