"""The body of a chat request: what completions take too, and messages, tools and the template."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import FailFast, Field, model_validator

from deepinfer.server import refused as refused_fields
from deepinfer.server.messages import ChatMessage, Tool, ToolChoice, ToolWish
from deepinfer.server.schema_base import invalid, needs
from deepinfer.server.schemas import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    GenerationBody,
    MaxTokens,
)
from deepinfer.text import tool_schema
from deepinfer.text.chat_template import TEMPLATE_ARGUMENTS

# As in the OpenAI API.
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatBody(GenerationBody):
    """The body of POST /v1/chat/completions."""

    refused = refused_fields.CHAT
    without_effect = refused_fields.CHAT_WITHOUT_EFFECT
    rules = (
        *GenerationBody.rules,
        needs("top_logprobs", logprobs=True),
        needs("continue_final_message", idle=(None, False), add_generation_prompt=False),
    )

    messages: Annotated[list[ChatMessage], FailFast()] = Field(
        min_length=1, max_length=MAX_MESSAGES, description="The conversation so far"
    )
    max_completion_tokens: MaxTokens | None = Field(
        default=None, description="Another name for `max_tokens`"
    )
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=MAX_TOOLS,
        description="What the model may call",
    )
    tool_choice: ToolChoice = Field(
        default=ToolWish("auto"),
        description="Whether the model may or must call, and which function or functions",
        json_schema_extra={"default": "auto"},
    )
    parallel_tool_calls: bool = Field(
        default=True,
        description="Whether an answer may hold several calls; with false it ends with the first",
    )
    logprobs: bool = Field(default=False, description="Log probability of each token")
    top_logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Likeliest tokens at each place; needs `logprobs: true`",
    )
    add_generation_prompt: bool = Field(
        default=True, description="End the prompt where the assistant's answer begins"
    )
    continue_final_message: bool = Field(
        default=False,
        description="Go on with the last message; needs `add_generation_prompt: false`",
    )
    add_special_tokens: bool = Field(
        default=False, description="Add special tokens to those that the chat template writes"
    )
    reasoning_effort: ReasoningEffort | None = Field(
        default=None,
        description="Handed to the chat template, which may know it; `xhigh` and `max` as `high`",
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        default=None, description="Handed to the chat template, which may know it"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Handed to the chat template: "
        + ", ".join(f"`{name}`" for name in sorted(TEMPLATE_ARGUMENTS))
        + ", and what else the model's own template reads; another name is refused",
    )

    @property
    def allowed_tools(self) -> list[Tool]:
        """Those that the choice leaves; the model is shown no others."""
        allowed = self.tool_choice.allowed
        return [tool for tool in self.tools if allowed is None or tool.function.name in allowed]

    @property
    def offers_tools(self) -> bool:
        return bool(self.allowed_tools) and self.tool_choice.mode != "none"

    @property
    def requires_call(self) -> bool:
        return self.offers_tools and self.tool_choice.mode == "required"

    @property
    def offered_tools(self) -> list[tool_schema.Tool]:
        if not self.offers_tools:
            return []
        functions = (tool.function for tool in self.allowed_tools)
        return [tool_schema.Tool(function.name, function.parameters) for function in functions]

    @property
    def template_arguments(self) -> dict[str, Any]:
        arguments = dict(self.chat_template_kwargs)
        if self.offers_tools:
            arguments["tools"] = [tool.as_template_input() for tool in self.allowed_tools]
        if (effort := self.reasoning_effort) is not None:
            # Templates know no more than high.
            arguments["reasoning_effort"] = "high" if effort in ("xhigh", "max") else effort
        if self.verbosity is not None:
            arguments["verbosity"] = self.verbosity
        return arguments

    @property
    def asked_max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _check_together_in_chats(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid("needs `add_generation_prompt` to be false", "continue_final_message")
        if self.tool_choice.mode == "required" and not self.tools:
            raise invalid("needs `tools`", "tool_choice")
        names = {tool.function.name for tool in self.tools}
        for index, name in enumerate(self.tool_choice.allowed or ()):
            if name not in names:
                at = f"tool_choice.allowed_tools.tools[{index}].function.name"
                raise invalid("must be the name of one of `tools`", at)
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("needs `logprobs` to be true", "top_logprobs")
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise invalid(
                f"must equal `max_tokens`, which is {self.max_tokens:,}, or be left out",
                "max_completion_tokens",
            )
        return self
