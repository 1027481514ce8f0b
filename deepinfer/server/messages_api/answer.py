"""What clients of the Messages API are answered: messages, their blocks, counts, models, errors.

Whole answers are rendered from these models. Streams are rendered in `events.py`, which the tests
hold to the models of events here.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from deepinfer import generation
from deepinfer.server.answers import Answer, ErrorObject

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBlock(Answer):
    type: Literal["text"] = "text"
    text: str


class ThinkingBlock(Answer):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: Literal[""] = ""  # there is nothing to prove


class ToolUseBlock(Answer):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(Answer):
    """How much of the prompt was in a cache is not known, and said to be so."""

    input_tokens: int
    cache_creation_input_tokens: None = None
    cache_read_input_tokens: None = None
    output_tokens: int

    @classmethod
    def of(cls, usage: generation.Usage) -> Self:
        return cls(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)


class Message(Answer):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None = None  # null only where a stream begins
    stop_sequence: str | None = None
    usage: MessageUsage


class ClearedToolUses(Answer):
    type: Literal["clear_tool_uses_20250919"] = "clear_tool_uses_20250919"
    cleared_tool_uses: int
    cleared_input_tokens: int


class ClearedThinking(Answer):
    type: Literal["clear_thinking_20251015"] = "clear_thinking_20251015"
    cleared_thinking_turns: int
    cleared_input_tokens: int


AppliedEdit = ClearedToolUses | ClearedThinking


class AppliedContextManagement(Answer):
    applied_edits: list[AppliedEdit]


class ManagedMessage(Message):
    """The answer to a request with `context_management`."""

    context_management: AppliedContextManagement


class MessageStart(Answer):
    type: Literal["message_start"]
    message: Message


class ContentBlockStart(Answer):
    type: Literal["content_block_start"]
    index: int
    content_block: Block


class TextDelta(Answer):
    type: Literal["text_delta"]
    text: str


class ThinkingDelta(Answer):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureDelta(Answer):
    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Answer):
    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(Answer):
    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStop(Answer):
    type: Literal["content_block_stop"]
    index: int


class StopDelta(Answer):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Answer):
    type: Literal["message_delta"] = "message_delta"
    delta: StopDelta
    usage: MessageUsage


class ManagedMessageDelta(MessageDelta):
    """Where a message ends that answers a request with `context_management`."""

    context_management: AppliedContextManagement


class MessageStop(Answer):
    type: Literal["message_stop"]


MESSAGE_EVENTS = (
    MessageStart,
    ContentBlockStart,
    ContentBlockDelta,
    ContentBlockStop,
    MessageDelta,
    ManagedMessageDelta,
    MessageStop,
)


class TokenCount(Answer):
    input_tokens: int


class OriginalTokenCount(Answer):
    original_input_tokens: int


class ManagedTokenCount(TokenCount):
    """The count of a request with `context_management`, after and before it."""

    context_management: OriginalTokenCount


class ModelInfo(Answer):
    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelInfoList(Answer):
    """The only page of models."""

    data: list[ModelInfo]
    has_more: Literal[False] = False
    first_id: str
    last_id: str


class ErrorDetails(Answer):
    error_code: str


class DetailedErrorObject(ErrorObject):
    details: ErrorDetails


class MessagesErrorBody(Answer):
    """Anthropic's envelope, and with it all that errors of other routes have."""

    type: Literal["error"]
    error: DetailedErrorObject
    detail: str
    request_id: str
