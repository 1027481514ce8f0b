"""From a request's body to the token sequences that an engine is asked for.

Here are the checks that need an engine: the prompt's length, the room for the answer, the ids of
tokens. What comes out is final: no default and no doubt is left for those who run it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

from deepinfer.errors import ContextLengthExceeded, InvalidValue, UnsupportedParameter
from deepinfer.generation import (
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenId,
    as_float32,
)
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.forced_calls import find_grammar
from deepinfer.server.messages import ChatMessage
from deepinfer.server.schemas import (
    DEFAULT_MAX_TOKENS,
    INT64_MAX,
    WHAT_FITS,
    CompletionBody,
    GenerationBody,
    Prompt,
    TokenIds,
)
from deepinfer.text.chat_template import MAX_RENDER_S
from deepinfer.text.output import NoOutput, OutputText
from deepinfer.text.plain_turns import fold_system_turns, write_tools_as_text
from deepinfer.text.reasoning import CLOSING, OPENING
from deepinfer.text.scores import ScoreKeeper
from deepinfer.text.stop import StopMatcher
from deepinfer.text.template_bounds import TemplateTooSlow

logger = logging.getLogger(__name__)

# Above this many characters a text is tokenised in a thread, so that the event loop goes on.
INLINE_CHARS = 4_096
# The library takes some 340 bytes for each character while it tokenises. A token of text has about
# four; the second figure is for what has many more, such as white space.
MAX_TEXT_CHARS = 1_000_000
CHARS_PER_TOKEN = 16
LONG_TEXT_CHARS = 100_000  # from which on few are tokenised at a time
# A template that needs longer starts again in a thread, where others are not kept waiting.
INLINE_RENDER_S = 0.02
# One message to the engine process holds every sequence with its prompt.
MAX_PROMPT_TOKENS_PER_REQUEST = 4_000_000
# Of all choices, tokens and alternatives; each takes some 450 bytes while an answer is collected.
# OpenAI and vLLM bound each factor alone, which leaves their product beyond any memory.
MAX_LOG_PROBS_PER_REQUEST = 400_000
MIN_TEMPERATURE = 1e-5  # below it logits would overflow; the likeliest token is as certain


@dataclass(frozen=True)
class Scoring:
    """Which log probabilities an answer comes with."""

    num_log_probs: int | None = None  # at each place beside the token's own; None for none at all
    is_echo: bool = False  # the answer begins with its prompt
    with_prompt: bool = False  # and the prompt is scored too


@dataclass(frozen=True)
class _MaxTokens:
    """How many tokens a request allows for an answer, before the prompt's length is known."""

    asked: int | None  # by the client; None: nothing
    default: int | None  # of the route; None: what the context has room for
    is_cut: bool = False  # what is asked may be more than the context has room for

    def reserve(self, limit: int) -> int:
        """Of the `limit` that it comes to, what is held until the answer is there.

        Of a limit that no client has asked for it is little: few answers fill their context.
        """
        is_asked = self.asked is not None and self.asked != WHAT_FITS
        return limit if is_asked else min(limit, DEFAULT_MAX_TOKENS)


@dataclass(frozen=True)
class Choice:
    """One sequence to generate and the text that becomes of it."""

    index: int
    request: GenerationRequest
    output: OutputText
    echo: str | None = None  # the prompt's text, where the answer begins with it


@dataclass(frozen=True)
class Plan:
    """What one HTTP request comes to. Choice i of prompt p is at p * n + i."""

    choices: tuple[Choice, ...]
    prompt_tokens: int  # each prompt counted once, however many choices it has
    reserved_tokens: int  # of answers, which the key's limit holds until they are there
    priority: int = 0  # among the requests of one key; a lower one comes first


async def prepare_completion(engine: ServedEngine, body: CompletionBody, id_: str) -> Plan:
    """Raises InvalidValue or ContextLengthExceeded."""
    prompts = await tokenize_prompts(
        engine, body.prompt, add_special_tokens=body.add_special_tokens
    )
    is_ranked = body.num_candidates > body.n
    num_log_probs = 0 if is_ranked and body.logprobs is None else body.logprobs
    scoring = Scoring(num_log_probs, body.echo, body.echo and body.logprobs is not None)
    max_tokens = _MaxTokens(body.max_tokens, DEFAULT_MAX_TOKENS)
    return _plan(engine, body, prompts, max_tokens, id_, scoring, body.grammar, param="prompt")


async def prepare_chat(
    engine: ServedEngine,
    body: ChatBody,
    id_: str,
    *,
    cuts_max_tokens: bool = False,
    default_max_tokens: int | None = DEFAULT_MAX_TOKENS,
) -> Plan:
    """Raises what `tokenize_chat_body` does, InvalidValue or ContextLengthExceeded.

    With `cuts_max_tokens` an answer may be as long as the context has room, if that is less.
    `default_max_tokens` is the route's own default; None is what the context has room for. The
    operator's setting replaces it.
    """
    prompt = await tokenize_chat_body(engine, body)
    scoring = Scoring((body.top_logprobs or 0) if body.logprobs else None)
    max_tokens = _MaxTokens(body.asked_max_tokens, default_max_tokens, cuts_max_tokens)
    if body.offers_tools and (body.requires_call or body.grammar is not None):
        # The grammar of many tools takes up to a second to make.
        grammar = await asyncio.to_thread(find_grammar, engine, body, prompt)
    else:
        grammar = find_grammar(engine, body, prompt)
    return _plan(engine, body, [prompt], max_tokens, id_, scoring, grammar, param="messages")


async def tokenize_chat_body(engine: ServedEngine, body: ChatBody) -> TokenIds:
    """The prompt of a chat.

    Raises UnsupportedParameter for a call that is required of a model without tools, and
    InvalidValue when it has no chat template or that refuses the messages.
    """
    arguments = body.template_arguments
    if body.offers_tools and engine.tool_format is None:
        if body.requires_call:
            raise UnsupportedParameter(
                "`tool_choice` requires a call, and this server has tools turned off for this "
                "model; leave it out",
                param="tool_choice",
            )
        logger.info("left out %d tools: `engine.tool_format` is none", len(body.allowed_tools))
        del arguments["tools"]
    return await tokenize_chat(
        engine,
        body.messages,
        add_special_tokens=body.add_special_tokens,
        add_generation_prompt=body.add_generation_prompt,
        continues_final_message=body.continue_final_message,
        arguments=arguments,
    )


async def tokenize_prompts(
    engine: ServedEngine, prompts: Sequence[Prompt], *, add_special_tokens: bool
) -> list[TokenIds]:
    """Token ids pass as they are; long texts are tokenised in a thread."""

    def tokenize() -> list[TokenIds]:
        return [
            tuple(engine.tokenizer.encode(prompt, add_special_tokens=add_special_tokens))
            if isinstance(prompt, str)
            else prompt
            for prompt in prompts
        ]

    num_chars = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
    _check_num_chars(engine, max(map(len, filter(_is_text, prompts)), default=0), "prompt")
    return (
        tokenize() if num_chars <= INLINE_CHARS else await _in_thread(engine, tokenize, num_chars)
    )


def _is_text(prompt: Prompt) -> bool:
    return isinstance(prompt, str)


def _check_num_chars(engine: ServedEngine, num_chars: int, param: str) -> None:
    """Raises ContextLengthExceeded for a text that is too long to be worth its tokens."""
    most = max(MAX_TEXT_CHARS, CHARS_PER_TOKEN * engine.manifest.limits.max_seq_len)
    if num_chars > most:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {engine.context_len} tokens; the prompt is "
            f"too long: it has {num_chars:,} characters, of which at most {most:,} are tokenized",
            param=param,
        )


async def tokenize_chat(
    engine: ServedEngine,
    messages: Sequence[ChatMessage],
    *,
    add_special_tokens: bool,
    **template_options: Any,
) -> TokenIds:
    """`template_options` are those of ChatTemplate.render, and so is what this raises."""
    tokenizer, template = engine.tokenizer, engine.chat_template
    arguments = template_options.pop("arguments")

    def has_text_arguments() -> bool:
        return any(
            not isinstance(call.function.parsed_arguments, dict)
            for message in messages
            for call in message.tool_calls
        )

    def render(limit_s: float, *, wraps_text: bool = False) -> tuple[str, bool]:
        """The prompt, and whether there is text in it that reads like a control token."""
        given = [[m.as_template_input(wraps_text=wraps_text) for m in messages], arguments]
        # What reads like a control token to the model is to be mere text where clients say it.
        hidden = tokenizer.special_text.hide(given)
        turns: Sequence[Mapping[str, Any]] = hidden[0]
        own_arguments: dict[str, Any] = hidden[1]
        if engine.writes_tools_as_text:
            own_arguments = dict(own_arguments)
            turns = write_tools_as_text(turns, own_arguments.pop("tools", None) or ())
        abilities = template.abilities(has_tools=own_arguments.get("tools") is not None)
        turns = fold_system_turns(turns, abilities)
        text = template.render(turns, arguments=own_arguments, limit_s=limit_s, **template_options)
        return text, hidden is not given

    def tokenize(limit_s: float = MAX_RENDER_S) -> TokenIds:
        try:
            text, is_hidden = render(limit_s)
        except InvalidValue:
            # Many templates take objects only, and an earlier call may have been none.
            if not has_text_arguments():
                raise
            text, is_hidden = render(limit_s, wraps_text=True)
        _check_num_chars(engine, len(text), "messages")
        encode = tokenizer.special_text.encode if is_hidden else tokenizer.encode
        return tuple(encode(text, add_special_tokens=add_special_tokens))

    num_chars = sum(message.num_chars for message in messages)
    if num_chars <= INLINE_CHARS and not any(map(_may_be_long, arguments.values())):
        with contextlib.suppress(TemplateTooSlow):
            return tokenize(INLINE_RENDER_S)
    return await _in_thread(engine, tokenize, num_chars)


_Result = TypeVar("_Result")


async def _in_thread(engine: ServedEngine, work: Callable[[], _Result], num_chars: int) -> _Result:
    """Not many long texts at a time."""
    if num_chars <= LONG_TEXT_CHARS:
        return await asyncio.to_thread(work)
    async with engine.tokenizing:
        return await asyncio.to_thread(work)


def _may_be_long(argument: object) -> bool:
    """Of a template; to measure lists and objects is to write them out."""
    return isinstance(argument, list | dict) or (
        isinstance(argument, str) and len(argument) > INLINE_CHARS
    )


def _plan(
    engine: ServedEngine,
    body: GenerationBody,
    prompts: Sequence[TokenIds],
    max_tokens: _MaxTokens,
    id_: str,
    scoring: Scoring,
    grammar: Grammar | None,
    *,
    param: str,
) -> Plan:
    if body.truncate_prompt_tokens is not None:
        prompts = [prompt[-body.truncate_prompt_tokens :] for prompt in prompts]
    limits = [_fit_max_tokens(engine, len(prompt), max_tokens, param) for prompt in prompts]
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    if prompt_tokens * body.num_candidates > MAX_PROMPT_TOKENS_PER_REQUEST:
        raise InvalidValue(
            f"`n` is {body.num_candidates} and the prompts have {prompt_tokens:,} tokens; their "
            f"product may be at most {MAX_PROMPT_TOKENS_PER_REQUEST:,}",
            param="n",
        )
    _check_log_probs(body, prompts, limits, scoring)
    check_token_ids(engine, body.stop_token_ids, "stop_token_ids")
    check_token_ids(engine, tuple(body.logit_bias), "logit_bias")
    seed = random.getrandbits(63) if body.seed is None else body.seed
    shown = _shown_tokens(engine, body, grammar)
    stop = StopMatcher(body.stop, is_shown=body.include_stop_str_in_output)
    choices: list[Choice] = []
    for prompt, limit in zip(prompts, limits, strict=True):
        check_token_ids(engine, prompt, param)
        echo = engine.tokenizer.decode(prompt) if scoring.is_echo else None
        for i in range(body.num_candidates):
            index = len(choices)
            request = GenerationRequest(
                request_id=f"{id_}-{index}",
                prompt_token_ids=prompt,
                sampling=_sampling(body, limit, _wrap_int64(seed + i), scoring, grammar),
                adapter=engine.adapter,
            )
            # A completion goes on from its prompt, a chat answer is a text of its own.
            continues = prompt if _goes_on(body) else ()
            # The copy shares the compiled stop strings, which are made once a request.
            make_output = OutputText if limit else NoOutput
            output = make_output(
                engine.tokenizer.detokenizer(continues, shown=shown),
                copy(stop),
                _keep_scores(engine, scoring, echo),
                is_stop_shown=body.include_stop_str_in_output,
            )
            choices.append(Choice(index, request, output, echo))
    reserved = sum(map(max_tokens.reserve, limits)) * body.num_candidates
    return Plan(tuple(choices), prompt_tokens, reserved, body.priority)


def _check_log_probs(
    body: GenerationBody, prompts: Sequence[TokenIds], limits: Sequence[int], scoring: Scoring
) -> None:
    """Raises InvalidValue when more is asked for than an answer may hold."""
    if scoring.num_log_probs is None:
        return
    num_tokens = sum(limits) + (sum(map(len, prompts)) if scoring.with_prompt else 0)
    count = num_tokens * body.num_candidates * (scoring.num_log_probs + 1)
    if count > MAX_LOG_PROBS_PER_REQUEST:
        name = "top_logprobs" if isinstance(body, ChatBody) else "logprobs"
        raise InvalidValue(
            f"`{name}` {scoring.num_log_probs}, {num_tokens:,} tokens and {body.num_candidates} "
            f"choices come to {count:,} log probabilities; one request may ask for at most "
            f"{MAX_LOG_PROBS_PER_REQUEST:,}. Lower `{name}`, `max_tokens` or `n`",
            param=name,
        )


def _shown_tokens(
    engine: ServedEngine, body: GenerationBody, grammar: Grammar | None
) -> frozenset[TokenId]:
    """Special tokens that are part of the text: all if asked for, else those that are read here."""
    # The libraries' grammars take a special token for its text, which then is a part of the answer.
    if not body.skip_special_tokens or grammar is not None:
        return engine.tokenizer.special_token_ids
    if not isinstance(body, ChatBody):
        return frozenset()
    markers: tuple[str, ...] = (OPENING, CLOSING) if engine.is_thinking else ()
    if body.offers_tools and engine.tool_format is not None:
        markers += engine.tool_format.markers
    return engine.tokenizer.find_special(markers)


def _goes_on(body: GenerationBody) -> bool:
    """Whether the answer's text continues the prompt's, and is no text of its own."""
    return isinstance(body, CompletionBody) or (
        isinstance(body, ChatBody) and body.continue_final_message
    )


def _keep_scores(engine: ServedEngine, scoring: Scoring, echo: str | None) -> ScoreKeeper | None:
    if scoring.num_log_probs is None:
        return None
    return ScoreKeeper(engine.tokenizer, start=len(echo or ""))


def _fit_max_tokens(
    engine: ServedEngine, prompt_len: int, max_tokens: _MaxTokens, param: str
) -> int:
    """The tokens to generate: as asked, or the default cut to the room that the prompt leaves."""
    if not prompt_len:
        raise InvalidValue(f"`{param}` holds no token at all", param=param)
    limits, context_len = engine.manifest.limits, engine.context_len
    room = context_len - prompt_len
    max_prompt_len = min(limits.max_input_len, context_len - 1)
    if prompt_len > max_prompt_len:
        raise ContextLengthExceeded(
            # Client libraries know this error by OpenAI's first words, by "prompt is too long", or
            # both, and some read the first number, so it has no separators.
            f"This model's maximum context length is {context_len} tokens; the prompt is "
            f"too long: it has {prompt_len:,}, which may be at most {max_prompt_len:,}",
            param=param,
        )
    asked = max_tokens.asked
    if asked is None:
        default = engine.default_max_tokens
        default = max_tokens.default if default is None else default
        return min(default, room) if default else room
    if asked == WHAT_FITS:
        return room
    if asked > room:
        if max_tokens.is_cut:
            return room
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_len} tokens; the prompt has "
            f"{prompt_len:,} and max_tokens is {asked:,}, which may be at most {room:,}",
            param=param,
        )
    return asked


def check_token_ids(engine: ServedEngine, token_ids: Sequence[int], param: str) -> None:
    """Raises InvalidValue for an id that the model has no token for."""
    vocab_size = engine.manifest.tokens.vocab_size
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < vocab_size:
            raise InvalidValue(
                f"`{param}` holds the token id {token_id:,}; this model's are 0 to "
                f"{vocab_size - 1:,}",
                param=param,
            )


def _sampling(
    body: GenerationBody, max_tokens: int, seed: int, scoring: Scoring, grammar: Grammar | None
) -> SamplingParams:
    if body.min_tokens > max_tokens:
        raise InvalidValue(
            f"`min_tokens` is {body.min_tokens:,}, more than the {max_tokens:,} tokens that may be "
            "generated",
            param="min_tokens",
        )
    return SamplingParams(
        max_tokens=max(max_tokens, 1),
        min_tokens=body.min_tokens,
        temperature=as_float32(body.temperature) if body.temperature >= MIN_TEMPERATURE else 0.0,
        top_p=as_float32(body.top_p),
        top_k=body.top_k if body.top_k > 0 else None,
        min_p=as_float32(body.min_p),
        frequency_penalty=as_float32(body.frequency_penalty),
        presence_penalty=as_float32(body.presence_penalty),
        repetition_penalty=as_float32(body.repetition_penalty),
        seed=seed,
        ignore_eos=body.ignore_eos,
        stop_token_ids=tuple(body.stop_token_ids),
        logit_bias={id_: as_float32(bias) for id_, bias in body.logit_bias.items()},
        num_log_probs=scoring.num_log_probs,
        with_prompt_log_probs=scoring.with_prompt,
        grammar=grammar,
    )


def _wrap_int64(value: int) -> int:
    return (value + INT64_MAX + 1) % 2**64 - INT64_MAX - 1
