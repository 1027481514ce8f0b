"""What an answer must be: the grammar that a client gives, a tool call, or one of the two."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from deepinfer.errors import InvalidValue
from deepinfer.generation import Grammar, TokenId
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.schemas import GenerationBody
from deepinfer.server.structured import MAX_SHOWN_PLACE
from deepinfer.text.call_grammar import (
    ToolRefused,
    make_call_grammar,
    make_free_call_grammar,
)
from deepinfer.text.either_grammar import either
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.reasoning import CLOSING, OPENING
from deepinfer.text.thoughts import allow_thoughts
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_schema import choose_tools

# What says how an answer in words must look, in the three dialects.
FORMATS = {"response_format", "text.format", "output_config.format", "output_format"}
PROMPT_END_TOKENS = 16  # enough to see an opened block of reasoning and the white space after it


def find_grammar(
    engine: ServedEngine, body: GenerationBody, prompt: Sequence[TokenId]
) -> Grammar | None:
    """The answer's own, behind the thoughts of a model that thinks.

    Raises InvalidValue for a required call that cannot be enforced.
    """
    grammar = _find_own(engine, body)
    if grammar is None or not isinstance(body, ChatBody) or not engine.is_thinking:
        return grammar
    whole = allow_thoughts(
        grammar.ebnf or grammar.text,
        read_prompt_end(engine, body, prompt),
        may_open=not body.continue_final_message,
    )
    return replace(grammar, ebnf=whole)


def _find_own(engine: ServedEngine, body: GenerationBody) -> Grammar | None:
    if not isinstance(body, ChatBody) or not body.offers_tools or engine.tool_format is None:
        return body.grammar
    answer = body.grammar
    if body.requires_call:
        _check_alone(body)
        return Grammar("ebnf", _call_grammar(engine.tool_format, body), param="tools")
    if answer is None:
        return None
    # Tools and a format together: the model calls, or answers in the format.
    calls = _call_grammar(engine.tool_format, body)
    return Grammar("ebnf", either(calls, answer.ebnf or answer.text), param=answer.param)


def _call_grammar(tool_format: ToolFormat, body: ChatBody) -> str:
    """One call or several of what is offered. Raises InvalidValue for parameters beyond it."""
    name = body.tool_choice.name
    parallel = body.parallel_tool_calls and name is None
    tools = choose_tools(body.offered_tools, name)
    try:
        try:
            return make_call_grammar(tools, tool_format, parallel=parallel)
        except SchemaRefused:
            if body.requires_call:
                raise
            # Without a format the model would be free here; any arguments will do.
            return make_free_call_grammar(tools, tool_format, parallel=parallel)
    except SchemaRefused as refusal:
        raise _explain(body, refusal) from None


def _explain(body: ChatBody, refusal: SchemaRefused) -> InvalidValue:
    """The parameters of a tool that a required call cannot be held to, by their place."""
    if not isinstance(refusal, ToolRefused):
        message = f"`tools` {refusal.rule}; a call of one of them cannot be enforced"
        return InvalidValue(message, param="tools")
    names = [tool.function.name for tool in body.tools]
    path = f"tools[{names.index(refusal.tool_name)}].function.parameters{refusal.at}"
    path = path[:MAX_SHOWN_PLACE]
    rule = f"`{path}` {refusal.rule}; a call of `{refusal.tool_name}` cannot be enforced"
    return InvalidValue(rule, param=path)


def read_prompt_end(engine: ServedEngine, body: ChatBody, prompt: Sequence[TokenId]) -> str:
    """Enough of a prompt's text to see whether it leaves a block of thoughts open."""
    final = (body.messages[-1].content or "") if body.continue_final_message else ""
    if final.rfind(OPENING) > final.rfind(CLOSING):
        return OPENING  # the message that is continued ends within its thoughts
    detokenizer = engine.tokenizer.detokenizer(shown=engine.tokenizer.special_token_ids)
    return detokenizer.push(prompt[-PROMPT_END_TOKENS:])


def _check_alone(body: ChatBody) -> None:
    # A format is for the answer that comes after the calls, as agents send both with each request.
    grammar = body.grammar
    others = {
        "min_tokens": body.min_tokens > 0,
        "ignore_eos": body.ignore_eos,
        **({} if grammar is None else {grammar.param: grammar.param not in FORMATS}),
    }
    for name, is_given in others.items():
        if is_given:
            raise InvalidValue(
                f"`tool_choice` requires a call, and `{name}` is at odds with that; leave one out",
                param="tool_choice",
            )
