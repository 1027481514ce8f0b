"""What an answer must be: the grammar that a client gives, or the tool call that it requires."""

from __future__ import annotations

from deepinfer.errors import InvalidValue
from deepinfer.generation import Grammar
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.schemas import GenerationBody
from deepinfer.text.call_grammar import make_call_grammar
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.tool_schema import Tool, tool_call_schema


def find_grammar(engine: ServedEngine, body: GenerationBody) -> Grammar | None:
    """Raises InvalidValue for a required call that cannot be enforced."""
    if not isinstance(body, ChatBody) or not body.requires_call:
        return body.grammar
    _check_alone(body)
    assert engine.tool_format is not None, "tools of another model are refused"
    tools = [Tool(tool.function.name, tool.function.parameters) for tool in body.tools]
    name = body.tool_choice.name
    parallel = body.parallel_tool_calls and name is None
    calls = tool_call_schema(tools, engine.tool_format, name, parallel=parallel)
    try:
        return Grammar("ebnf", make_call_grammar(calls), param="tools")
    except SchemaRefused as refusal:
        raise InvalidValue(
            f"The parameters of a tool cannot be enforced: they {refusal.rule}", param="tools"
        ) from None


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
