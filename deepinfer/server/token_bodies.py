"""What clients may send to the routes that count and spell tokens and generate none."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import FailFast, Field, model_validator

from deepinfer.server import refused as refused_fields
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages import ChatMessage, Tool
from deepinfer.server.schema_base import Schema, invalid, missing
from deepinfer.server.schemas import MAX_MESSAGES, MAX_TOOLS, DescribedTokenId, ModelName


class ModelBody(Schema):
    """A body that says whose tokens are meant."""

    model: ModelName | None = Field(
        default=None, description="Model id or engine name; the first engine when left out"
    )


class TokenizeBody(ModelBody):
    """The body of POST /tokenize: a text, or a conversation that a chat template makes one of."""

    refused = refused_fields.TOKENIZE
    rules = (
        {
            "anyOf": [
                {
                    "required": ["prompt"],
                    "properties": {
                        "prompt": {"type": "string"},
                        "messages": {"enum": [None, []]},
                        "tools": {"enum": [None, []]},
                    },
                },
                {
                    "required": ["messages"],
                    "properties": {
                        "prompt": {"const": None},
                        "messages": {"type": "array", "minItems": 1},
                    },
                },
            ]
        },
    )

    prompt: str | None = Field(default=None, description="Text; this or `messages`")
    messages: Annotated[list[ChatMessage], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_MESSAGES,
        description="Conversation; this or `prompt`",
    )
    tools: list[Tool] = Field(
        default_factory=list,
        max_length=MAX_TOOLS,
        description="Functions that the chat template shows with messages",
    )
    add_special_tokens: bool | None = Field(
        default=None,
        description="Add what the tokenizer begins and ends texts with; true for a prompt and "
        "false for messages when left out, as the generating routes do it",
    )
    add_generation_prompt: bool = Field(
        default=True, description="End messages with the beginning of the answer"
    )

    continue_final_message: bool = Field(
        default=False, description="End messages within the last one"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Handed to the chat template, as in chats"
    )

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.prompt is None and not self.messages:
            if "messages" in self.model_fields_set:
                raise invalid("must not be empty", "messages")
            raise missing("prompt")
        if self.prompt is not None and self.messages:
            raise invalid("may not be given together with `prompt`", "messages")
        if self.prompt is not None and self.tools:
            raise invalid("may not be given together with `prompt`", "tools")
        return self

    @property
    def chat(self) -> ChatBody:
        """The chat whose prompt is asked for."""
        return ChatBody.model_construct(
            messages=self.messages,
            tools=self.tools,
            add_special_tokens=bool(self.add_special_tokens),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            chat_template_kwargs=self.chat_template_kwargs,
        )


class DetokenizeBody(ModelBody):
    """The body of POST /detokenize."""

    tokens: Annotated[list[DescribedTokenId], FailFast()] = Field(description="Token ids")
