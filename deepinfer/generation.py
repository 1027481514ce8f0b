"""What the engine process is asked for and what it answers: token ids, never text.

The types double as the wire's payload, so they are msgspec structs: frozen, typed when decoded,
and without a copy in another shape on the other side of the socket.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated, Literal

import msgspec

TokenId = int

_FLOAT32 = struct.Struct("<f")
_MIN_NORMAL_FLOAT32 = 2.0**-126  # what is nearer to 0 is 0 to most processors' fast arithmetic


def as_float32(value: float) -> float:
    """The number that a library makes of `value`: all of them compute with 32 bits.

    A value may be 0 or 1 in 32 bits and neither in 64, and what is checked must be what is used.
    Raises OverflowError for what 32 bits cannot hold.
    """
    (rounded,) = _FLOAT32.unpack(_FLOAT32.pack(value))
    return float(rounded) if abs(rounded) >= _MIN_NORMAL_FLOAT32 else 0.0


class FinishReason(StrEnum):
    """Why a request ended. Only STOP and LENGTH are answers; the others are for the server.

    INTERRUPTED says that the backend has lost the request through no fault of its own; it may be
    added again, with the tokens so far.
    """

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"
    INTERRUPTED = "interrupted"


class Grammar(msgspec.Struct, frozen=True):
    """What the text of an answer must be. It goes to the library as it is; nothing here reads it.

    `text` is the JSON schema, the regular expression or the EBNF grammar; "json" takes none.
    `ebnf` says the same of JSON without white space, for libraries whose own form allows any amount
    of it. `param` is the field that a client gave it in.
    """

    kind: Literal["json", "json_schema", "regex", "ebnf"]
    text: str = ""
    ebnf: str = ""
    param: str = "response_format"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence is sampled. Every value is final: defaults are chosen before this point.

    `temperature` 0 is greedy. `top_k` None considers every token. `seed` makes the sequence
    repeatable whatever else is in the batch. Fractions are those of `as_float32`.
    """

    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[TokenId, ...] = ()
    logit_bias: dict[TokenId, float] = {}  # added to the logits before anything else
    # Log probabilities of each token that is generated, and of so many of the likeliest ones at its
    # place; None for none at all.
    num_log_probs: Annotated[int, msgspec.Meta(ge=0)] | None = None
    with_prompt_log_probs: bool = False  # of the prompt's tokens too, and as many at each place
    grammar: Grammar | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether only the likeliest token can be drawn at each place."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1 or self.min_p == 1


class LoraAdapter(msgspec.Struct, frozen=True):
    """A LoRA adapter that an engine applies to one request. `id` is its own among an engine's."""

    name: str
    id: Annotated[int, msgspec.Meta(ge=1)]
    path: str  # of its folder


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence to generate. `request_id` is unique among everything in flight."""

    request_id: str
    prompt_token_ids: tuple[TokenId, ...]  # [prompt_len], never empty
    sampling: SamplingParams
    adapter: LoraAdapter | None = None

    @property
    def max_total_len(self) -> int:
        """Tokens that the KV cache holds at worst when this request ends."""
        return len(self.prompt_token_ids) + self.sampling.max_tokens


class TokenLogProbs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Natural logarithms of probabilities at one place of a sequence, before temperature."""

    log_prob: float  # of the token that stands there
    top: tuple[tuple[TokenId, float], ...] = ()  # of the likeliest tokens, the likeliest first


class TokenChunk(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The new tokens of one request after one engine step.

    Chunks of a request come in order; exactly the last has a finish reason. When that is STOP, the
    last token id is the EOS or stop token that ended it. `message` explains ERROR; with a
    `refused_param` it is about a field of the request, which only the library could judge.

    `log_probs` has one entry a token where they were asked for; a library may give none for the
    token that ended the sequence. `prompt_log_probs` comes once, with the first tokens: one entry a
    token of the prompt, of which the first has none.
    """

    request_id: str
    token_ids: tuple[TokenId, ...] = ()  # [num_new_tokens]
    finish_reason: FinishReason | None = None
    message: str | None = None
    log_probs: tuple[TokenLogProbs, ...] = ()
    prompt_log_probs: tuple[TokenLogProbs | None, ...] = ()
    refused_param: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens read and written for one HTTP request, over all its choices."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens
