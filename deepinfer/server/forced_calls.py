"""What an answer must be: the grammar that a client gives, or the tool call that it requires."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from deepinfer.errors import InvalidValue
from deepinfer.generation import Grammar, TokenId
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.schemas import GenerationBody
from deepinfer.text.call_grammar import make_call_grammar
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.reasoning import CLOSING, OPENING
from deepinfer.text.thoughts import allow_thoughts
from deepinfer.text.tool_schema import choose_tools

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
    if not isinstance(body, ChatBody) or not body.requires_call:
        return body.grammar
    _check_alone(body)
    assert engine.tool_format is not None, "tools of another model are refused"
    name = body.tool_choice.name
    parallel = body.parallel_tool_calls and name is None
    tools = choose_tools(body.offered_tools, name)
    try:
        grammar = make_call_grammar(tools, engine.tool_format, parallel=parallel)
        return Grammar("ebnf", grammar, param="tools")
    except SchemaRefused as refusal:
        raise InvalidValue(
            f"The parameters of a tool cannot be enforced: they {refusal.rule}", param="tools"
        ) from None


def read_prompt_end(engine: ServedEngine, body: ChatBody, prompt: Sequence[TokenId]) -> str:
    """Enough of a prompt's text to see whether it leaves a block of thoughts open."""
    final = (body.messages[-1].content or "") if body.continue_final_message else ""
    if final.rfind(OPENING) > final.rfind(CLOSING):
        return OPENING  # the message that is continued ends within its thoughts
    detokenizer = engine.tokenizer.detokenizer(shown=engine.tokenizer.special_token_ids)
    return detokenizer.push(prompt[-PROMPT_END_TOKENS:])


def _check_alone(body: ChatBody) -> None:
    others = {
        "response_format": body.grammar is not None,
        "min_tokens": body.min_tokens > 0,
        "ignore_eos": body.ignore_eos,
    }
    for name, is_given in others.items():
        if is_given:
            raise InvalidValue(
                f"`tool_choice` requires a call, and `{name}` is at odds with that; leave one out",
                param="tool_choice",
            )
