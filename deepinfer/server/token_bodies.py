"""What clients may send to the routes that count and spell tokens and generate none."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import FailFast, Field, model_validator

from deepinfer.server import refused as refused_fields
from deepinfer.server.messages import ChatMessage
from deepinfer.server.schema_base import Schema, invalid, missing
from deepinfer.server.schemas import MAX_MESSAGES


class ModelBody(Schema):
    """A body that says whose tokens are meant."""

    model: str | None = Field(
        default=None, description="Model id or engine name; the first engine when left out"
    )


class TokenizeBody(ModelBody):
    """The body of POST /tokenize: a text, or a conversation that a chat template makes one of."""

    refused = refused_fields.TOKENIZE

    prompt: str | None = Field(default=None, description="Text; this or `messages`")
    messages: Annotated[list[ChatMessage], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_MESSAGES,
        description="Conversation; this or `prompt`",
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
        default_factory=dict, description="Arguments of the chat template that are known here"
    )

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if self.prompt is None and not self.messages:
            if "messages" in self.model_fields_set:
                raise invalid("must not be empty", "messages")
            raise missing("prompt")
        if self.prompt is not None and self.messages:
            raise invalid("may not be given together with `prompt`", "messages")
        return self


class DetokenizeBody(ModelBody):
    """The body of POST /detokenize."""

    tokens: Annotated[list[int], FailFast()] = Field(description="Token ids")
