"""The response object: what was asked for, said back, and what became of it."""

from __future__ import annotations

import time
from typing import Any, Literal, Self

from pydantic import Field

from deepinfer import generation
from deepinfer.errors import RequestError
from deepinfer.server.answers import Answer
from deepinfer.server.responses_api.body import ResponsesBody
from deepinfer.server.responses_api.items import CompactionItem, Item, MessageItem, OutputItem
from deepinfer.server.responses_api.tools import (
    CustomTool,
    FunctionTool,
    NamespaceTool,
    ToolChoiceParam,
    UnservedTool,
)

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
# The few codes that the OpenAI SDK knows in a response, by the status that ours come with.
ERROR_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class InputTokensDetails(Answer):
    """Zero stands for what the engine does not tell."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Answer):
    reasoning_tokens: int = 0


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int

    @classmethod
    def of(cls, usage: generation.Usage) -> Self:
        return cls(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class IncompleteDetails(Answer):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Answer):
    code: str
    message: str

    @classmethod
    def of(cls, error: RequestError) -> Self:
        return cls(code=ERROR_CODES.get(error.status, "server_error"), message=error.message)


class ToolOfResponse(Answer):
    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class CustomToolOfResponse(Answer):
    type: Literal["custom"] = "custom"
    name: str
    description: str
    format: dict[str, Any]


class NamespaceOfResponse(Answer):
    type: Literal["namespace"] = "namespace"
    name: str
    description: str
    tools: list[ToolOfResponse | CustomToolOfResponse]


class NamedTool(Answer):
    type: Literal["function", "custom"] = "function"
    name: str


class AllowedTools(Answer):
    type: Literal["allowed_tools"] = "allowed_tools"
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class TextOfResponse(Answer):
    format: dict[str, Any]
    verbosity: Literal["low", "medium", "high"]


class ReasoningOfResponse(Answer):
    effort: str | None
    summary: None = None


class ResponseObject(Answer):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus = "in_progress"
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningOfResponse
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextOfResponse
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools
    tools: list[ToolOfResponse | CustomToolOfResponse | NamespaceOfResponse] = Field(
        description="Those that the model was offered"
    )
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metadata: dict[str, str]

    @classmethod
    def of(cls, body: ResponsesBody, id_: str, model: str) -> Self:
        """The response to `body` before anything of it is written."""
        text_format = body.text.format
        choice = body.tool_choice
        return cls(
            id=id_,
            created_at=int(time.time()),
            model=model,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            parallel_tool_calls=body.parallel_tool_calls,
            previous_response_id=body.previous_response_id,
            prompt_cache_key=body.prompt_cache_key,
            reasoning=ReasoningOfResponse(effort=body.effort),
            safety_identifier=body.safety_identifier,
            store=body.store,
            temperature=body.temperature,
            text=TextOfResponse(
                format={"type": "text"} if text_format is None else text_format.told,
                verbosity=body.text.verbosity,
            ),
            tool_choice=_tell_choice(choice),
            tools=[_tell_tool(tool) for tool in body.tools if not isinstance(tool, UnservedTool)],
            top_logprobs=body.top_logprobs or 0,
            top_p=body.top_p,
            truncation=body.truncation,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            user=body.user,
            metadata=body.metadata,
        )


def _tell_choice(
    choice: ToolChoiceParam,
) -> Literal["none", "auto", "required"] | NamedTool | AllowedTools:
    if isinstance(choice.told, str):
        return choice.mode
    return (NamedTool if choice.allowed is None else AllowedTools).model_validate(choice.told)


def _tell_tool(
    tool: FunctionTool | CustomTool | NamespaceTool,
) -> ToolOfResponse | CustomToolOfResponse | NamespaceOfResponse:
    if isinstance(tool, NamespaceTool):
        tools = [_tell_own_tool(own) for own in tool.tools]
        return NamespaceOfResponse(name=tool.name, description=tool.description, tools=tools)
    return _tell_own_tool(tool)


def _tell_own_tool(tool: FunctionTool | CustomTool) -> ToolOfResponse | CustomToolOfResponse:
    told = ToolOfResponse if isinstance(tool, FunctionTool) else CustomToolOfResponse
    return told(**tool.model_dump(include=set(told.model_fields)))


class DeletedResponse(Answer):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(Answer):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class CompactedResponse(Answer):
    """What a conversation was made into: the users' messages, and a summary of the rest."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[MessageItem | CompactionItem]
    usage: ResponseUsage


class ItemList(Answer):
    """One page of what a response was made from."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = Field(description="Null on an empty page")
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: list[Item], *, has_more: bool) -> Self:
        ends = (items[0].id, items[-1].id) if items else (None, None)
        return cls(data=items, first_id=ends[0], last_id=ends[1], has_more=has_more)
