"""What clients are answered: the shapes of every response, as the API reference promises them.

Whole answers are rendered from these models. Streams are rendered by byte templates (`sse.py`),
which the tests hold to the chunk models here.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from deepinfer import generation

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: generation.Usage) -> Self:
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )


class CompletionLogProbs(Answer):
    """Parallel lists, one entry a token; the first token of an echoed prompt has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    text: str
    index: int
    logprobs: CompletionLogProbs | None = None
    finish_reason: FinishReason


class Completion(Answer):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Answer):
    text: str
    index: int
    logprobs: CompletionLogProbs | None = None
    finish_reason: FinishReason | None


class CompletionChunk(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class TopLogProb(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogProb(TopLogProb):
    top_logprobs: list[TopLogProb]


class ChatLogProbs(Answer):
    content: list[TokenLogProb]
    refusal: None = None


class CalledFunction(Answer):
    name: str
    arguments: str


class CallOfTool(Answer):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None


class ReadMessage(AssistantMessage):
    """The message of a model that thinks, or of a request with tools."""

    reasoning_content: str | None = None
    tool_calls: list[CallOfTool] | None = None


class ChatChoice(Answer):
    index: int
    message: ReadMessage | AssistantMessage
    logprobs: ChatLogProbs | None = None
    finish_reason: ChatFinishReason


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(Answer):
    name: str | None = None
    arguments: str | None = None


class CallDelta(Answer):
    """`id`, `type` and the function's name come once, with the first piece of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class ChatDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogProbs | None = None
    finish_reason: ChatFinishReason | None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Model(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepinfer"
    root: str  # the model's own id, whatever name it is served under
    parent: str | None = None  # of an adapter: the model that it changes
    max_model_len: int
    context_length: int
    engine: str
    status: str  # the phase of the engine's life


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    status: Literal["healthy"] = "healthy"
    model: str
    gpus: int
    nvidia_5090: bool


class Alive(Answer):
    status: Literal["alive"] = "alive"


class EngineState(Answer):
    """Where one of the server's engines is in its life."""

    model: str
    engine: str
    phase: str
    percent: int


class Ready(Health):
    models: list[EngineState]


class Version(Answer):
    version: str


class Tokenized(Answer):
    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Answer):
    prompt: str


class GpuInfo(Answer):
    id: int
    name: str
    total_memory_gb: float
    free_memory_gb: float
    compute_capability: str
    driver_version: str
    cuda_version: str
    is_nvidia_5090: bool
    is_nvidia_4090: bool


class GpuList(Answer):
    gpus: list[GpuInfo]


class ErrorObject(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Answer):
    """The object is what the OpenAI SDK reads; `detail` is what the API reference promises."""

    error: ErrorObject
    detail: str


class NotReady(ErrorBody):
    phase: str
    percent: int


class NoneReady(NotReady):
    models: list[EngineState]
