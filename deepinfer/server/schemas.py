"""What clients may send: every field of a request, with its type, bounds and default.

A body that has become one of these models needs no further check but those that take an engine:
the length of the prompt and the ids of tokens. Arrays fail at their first wrong item, so that a
body of millions of mistakes costs no more than one of millions of words. JSON types are strict
(`"1"` is not a number); null means the default. The body of a chat is in `chat_body.py`, the
answers' side in `answers.py`; fields that are known from other servers and refused here are in
`refused.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    FailFast,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from deepinfer.server import refused as refused_fields
from deepinfer.server.schema_base import Rule, Schema, invalid, needs
from deepinfer.server.structured import StructuredFields
from deepinfer.validation import MAX_SHOWN_CHARS

# Bounds of OpenAI's description of its API.
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 100
MAX_COMPLETION_LOGPROBS = 5
MAX_TOP_LOGPROBS = 20
MAX_BEST_OF = 20
# Bounds of ours: nothing that a client sends may cost more than it is worth.
MAX_STOP_STRINGS = 64  # OpenAI's 4 are too few for evaluation harnesses
MAX_STOP_CHARS = 1_000
# An automaton is made of them on the event loop; so many characters take some milliseconds.
MAX_ALL_STOP_CHARS = 8_000
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1_024
MAX_TOKEN_ID_DIGITS = 10
MAX_MESSAGES = 10_000
MAX_TOOLS = 128  # as in the OpenAI API
MAX_SEQUENCES = 1_024  # prompts times choices
MAX_PRIORITY = 1_000
# Logits are divided by it, and by a temperature beside it: below, they would overflow 32 bits.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 10
INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

# What the API reference promises for completions and chats; cut to what the context has room for.
DEFAULT_MAX_TOKENS = 512
WHAT_FITS = -1  # as a number of tokens to generate, known from vLLM and llama.cpp: no limit

# Whether the model has a token of that id, only an engine knows.
TOKEN_ID_SCHEMA: dict[str, Any] = {"type": "integer", "minimum": 0}
DescribedTokenId = Annotated[int, WithJsonSchema(TOKEN_ID_SCHEMA)]
TokenIds = tuple[int, ...]
Prompt = str | TokenIds


def _check_max_tokens(value: int) -> int:
    if value < 1 and value != WHAT_FITS:
        raise invalid("must be at least 1, or -1 for what the context has room for")
    return value


_MAX_TOKENS_SCHEMA = {"type": "integer", "minimum": WHAT_FITS, "maximum": INT32_MAX}
MaxTokens = Annotated[
    int,
    Field(le=INT32_MAX),
    AfterValidator(_check_max_tokens),
    WithJsonSchema({**_MAX_TOKENS_SCHEMA, "not": {"const": 0}}),
]
# The schema of completions says itself when it may be 0.
MaxTokensOrZero = Annotated[
    int,
    Field(le=INT32_MAX),
    AfterValidator(lambda value: value and _check_max_tokens(value)),
    WithJsonSchema(_MAX_TOKENS_SCHEMA),
]


def parse_stop(value: object) -> tuple[str, ...]:
    """The stop strings; empty ones, which some clients send, are none."""
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
        raise invalid("must be a string or an array of strings")
    if len(strings) > MAX_STOP_STRINGS:
        raise invalid(f"must have at most {MAX_STOP_STRINGS} strings")
    for index, string in enumerate(strings):
        if len(string) > MAX_STOP_CHARS:
            at = "" if isinstance(value, str) else f"[{index}]"
            raise invalid(f"must have at most {MAX_STOP_CHARS:,} characters", at)
    if sum(map(len, strings)) > MAX_ALL_STOP_CHARS:
        raise invalid(f"must have at most {MAX_ALL_STOP_CHARS:,} characters together")
    return tuple(string for string in strings if string)


StopStrings = Annotated[
    tuple[str, ...],
    PlainValidator(parse_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "maxItems": MAX_STOP_STRINGS,
                    "items": {"type": "string", "maxLength": MAX_STOP_CHARS},
                },
            ]
        }
    ),
]


def _parse_logit_bias(value: object) -> dict[int, float]:
    if not isinstance(value, dict):
        raise invalid("must be an object of token ids and numbers")
    if len(value) > MAX_LOGIT_BIASES:
        raise invalid(f"must have at most {MAX_LOGIT_BIASES:,} token ids")
    bias = {}
    for key, number in value.items():
        at = key[:MAX_SHOWN_CHARS]
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_TOKEN_ID_DIGITS):
            raise invalid("must be named by a token id", at)
        if type(number) not in (int, float) or not -MAX_LOGIT_BIAS <= number <= MAX_LOGIT_BIAS:
            raise invalid(f"must be a number from -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS}", at)
        bias[int(key)] = float(number)
    return bias


LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_parse_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_LOGIT_BIASES,
            "propertyNames": {"pattern": rf"^[0-9]{{1,{MAX_TOKEN_ID_DIGITS}}}$"},
            "additionalProperties": {
                "type": "number",
                "minimum": -MAX_LOGIT_BIAS,
                "maximum": MAX_LOGIT_BIAS,
            },
        }
    ),
]


# Clients that know one model only send no name for it, or an empty one.
ModelName = Annotated[str, AfterValidator(lambda name: name or None)]


class StreamOptions(Schema):
    without_effect = refused_fields.STREAM_OPTIONS_WITHOUT_EFFECT

    include_usage: bool = Field(
        default=False, description="End the stream with a chunk that holds the usage"
    )
    continuous_usage_stats: bool = Field(
        default=False, description="Say the usage so far in every chunk; with `include_usage`"
    )


class GenerationBody(StructuredFields, Schema):
    """The fields that completions and chat completions share."""

    without_effect = refused_fields.WITHOUT_EFFECT
    rules: ClassVar[tuple[Rule, ...]] = (needs("stream_options", stream=True),)

    model: ModelName | None = Field(
        default=None,
        description="Model id, engine name or one of the served names; the first one when left "
        "out. Another name is a 404",
    )
    max_tokens: MaxTokens | None = Field(
        default=None,
        description="Maximum number of tokens to generate; -1: what the context has room for. The "
        "default is cut to that; a number of yours that does not fit is a 400",
        json_schema_extra={"default": DEFAULT_MAX_TOKENS},
    )
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="Sampling temperature; 0 is greedy"
    )
    top_p: float = Field(
        default=0.95, ge=0, le=1, description="Share of probability that is sampled from"
    )
    top_k: int = Field(
        default=-1, ge=-1, le=INT32_MAX, description="Tokens sampled from; -1 and 0 are off"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="Least probability, relative to the likeliest token's"
    )
    frequency_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Penalty for each time that a token has come"
    )
    presence_penalty: float = Field(
        default=0.0, ge=-2, le=2, description="Penalty for a token that has come at all"
    )
    repetition_penalty: float = Field(
        default=1.0,
        ge=MIN_REPETITION_PENALTY,
        le=MAX_REPETITION_PENALTY,
        description="Factor against tokens of the prompt and the answer; 1 is off",
    )
    seed: int | None = Field(
        default=None,
        ge=INT64_MIN,
        le=INT64_MAX,
        description="Makes sampling repeatable; choice i of n is sampled with seed + i",
    )
    stop: StopStrings = Field(
        default=(),
        description="Strings that end the answer; they are not part of it. Empty ones are ignored",
    )
    stop_token_ids: Annotated[list[DescribedTokenId], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_STOP_TOKEN_IDS,
        description="Token ids that end the answer; their text is not part of it",
    )
    logit_bias: LogitBias = Field(
        default_factory=dict,
        description=f"Numbers from -{MAX_LOGIT_BIAS} to {MAX_LOGIT_BIAS} by token id, which are "
        "added to the logits; refused with `unsupported_parameter` by engines for the CPU",
    )
    include_stop_str_in_output: bool = Field(
        default=False, description="Show the stop string or stop token that ended the answer"
    )
    skip_special_tokens: bool = Field(
        default=True, description="Leave special tokens out of the text"
    )
    truncate_prompt_tokens: int | None = Field(
        default=None, ge=1, le=INT32_MAX, description="Keep so many tokens of the prompt, the last"
    )
    min_tokens: int = Field(
        default=0, ge=0, le=INT32_MAX, description="Tokens before the model may end the answer"
    )
    ignore_eos: bool = Field(default=False, description="Go on when the model ends the answer")
    priority: int = Field(
        default=0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Turn among the waiting requests of one key; a lower number comes first",
    )
    n: int = Field(default=1, ge=1, le=MAX_CHOICES, description="Choices for each prompt")
    stream: bool = Field(default=False, description="Send the answer as server-sent events")
    stream_options: StreamOptions | None = Field(
        default=None, description="Only with `stream: true`"
    )

    @property
    def num_candidates(self) -> int:
        """Sequences to generate for each prompt."""
        return self.n

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def has_continuous_usage(self) -> bool:
        return self.includes_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise invalid("needs `stream` to be true", "stream_options")
        return self


def _parse_prompts(value: object) -> tuple[Prompt, ...]:
    """One string, or an array of strings, of token ids, or of arrays of token ids."""
    if isinstance(value, str):
        return (_check_text(value, ""),)
    if not isinstance(value, list | tuple):
        raise invalid(PROMPT_RULE)
    if not value:
        raise invalid("must not be empty")
    if type(value[0]) is int:
        return (_check_token_ids(value, ""),)
    if len(value) > MAX_SEQUENCES:
        raise invalid(f"must have at most {MAX_SEQUENCES:,} prompts")
    if isinstance(value[0], str):
        return tuple(_check_text(text, f"[{index}]") for index, text in enumerate(value))
    return tuple(_check_token_ids(ids, f"[{index}]") for index, ids in enumerate(value))


PROMPT_RULE = "must be a string, or an array of strings, of token ids or of arrays of token ids"


def _check_text(text: object, at: str) -> str:
    if not isinstance(text, str):
        raise invalid("must be a string like the ones before it", at)
    if not text:
        raise invalid("must not be empty", at)
    return text


def _check_token_ids(token_ids: object, at: str) -> TokenIds:
    if not isinstance(token_ids, list | tuple):
        raise invalid(PROMPT_RULE if at == "[0]" else "must be an array of token ids", at)
    if not token_ids:
        raise invalid("must not be empty", at)
    if set(map(type, token_ids)) != {int}:
        raise invalid("must hold token ids only, which are whole numbers", at)
    return tuple(token_ids)


_TOKEN_IDS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "items": TOKEN_ID_SCHEMA,
}
Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_parse_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_SEQUENCES,
                    "items": {"type": "string", "minLength": 1},
                },
                _TOKEN_IDS_SCHEMA,
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_SEQUENCES,
                    "items": _TOKEN_IDS_SCHEMA,
                },
            ]
        }
    ),
]


class CompletionBody(GenerationBody):
    """The body of POST /v1/completions."""

    refused = refused_fields.COMPLETION
    rules = (
        *GenerationBody.rules,
        {
            "anyOf": [
                {"properties": {"max_tokens": {"not": {"const": 0}}}},
                {"required": ["echo"], "properties": {"echo": {"const": True}}},
            ]
        },
    )

    prompt: Prompts = Field(description="What to continue: text or token ids, one or many")
    max_tokens: MaxTokensOrZero | None = Field(
        default=None,
        description="Maximum number of tokens to generate; -1: what the context has room for. The "
        "default is cut to that; 0 needs `echo: true`, and only scores the prompt",
        json_schema_extra={"default": DEFAULT_MAX_TOKENS},
    )
    best_of: int | None = Field(
        default=None,
        ge=0,
        le=MAX_BEST_OF,
        description="Generate so many answers and return the `n` with the highest mean log "
        "probability of their tokens; more than `n` not in streams",
    )
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COMPLETION_LOGPROBS,
        description="Log probability of each token, and of so many of the likeliest at its place",
    )
    add_special_tokens: bool = Field(
        default=True, description="Begin a prompt's text with the tokenizer's own special tokens"
    )
    echo: bool = Field(
        default=False, description="Begin the answer with the prompt, scored if `logprobs` is set"
    )

    @property
    def num_candidates(self) -> int:
        return self.n if self.best_of is None else self.best_of

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.num_candidates < self.n:
            raise invalid(f"must be at least `n`, which is {self.n}", "best_of")
        if self.num_candidates > self.n and self.stream:
            raise invalid("above `n` needs `stream` to be false", "best_of")
        if self.max_tokens == 0 and not self.echo:
            raise invalid("of 0 needs `echo` to be true", "max_tokens")
        if len(self.prompt) * self.num_candidates > MAX_SEQUENCES:
            raise invalid(
                f"asks for {self.num_candidates} sequences of {len(self.prompt):,} prompts each; "
                f"at most {MAX_SEQUENCES:,} may be generated by one request",
                "n" if self.best_of is None else "best_of",
            )
        return self
