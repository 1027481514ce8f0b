"""From the tools of which one must be called to a grammar in EBNF, which any engine can enforce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepinfer.text import ebnf
from deepinfer.text.json_grammar import MAX_RULES, check_count, make_rules
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.tagged_grammar import make_tagged_grammar
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_formats.tags import GLM, QWEN_CODER
from deepinfer.text.tool_schema import CallGrammar, Tool, arguments_schema, tool_call_schema

EMPTY = ebnf.literal("")
TAGS = {ToolFormat.QWEN_CODER: QWEN_CODER, ToolFormat.GLM: GLM}


class ToolRefused(SchemaRefused):
    """Parameters of a tool that a grammar cannot say; `at` is the place within them."""

    def __init__(self, tool_name: str, rule: str, at: str) -> None:
        super().__init__(rule, at)
        self.tool_name = tool_name


def make_call_grammar(tools: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool) -> str:
    """One call to any of `tools`, or several.

    Raises ToolRefused for a tool's schema, and SchemaRefused for what all of them come to.
    """
    try:
        return _make_grammar(tools, tool_format, parallel=parallel)
    except SchemaRefused:
        num_rules = 0
        for tool in tools:
            num_rules += _check_tool(tool, tool_format)
            if num_rules > MAX_RULES:
                break  # it is all of them together
        raise


def make_free_call_grammar(
    tools: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool
) -> str:
    """Like `make_call_grammar`, for calls that nobody has required.

    A tool whose parameters cannot be enforced is called with any arguments, and so are all once
    those before them need as many rules as a grammar may have. Raises SchemaRefused.
    """
    loosened = []
    num_rules = 0
    for tool in tools:
        try:
            needed = _check_tool(tool, tool_format) if num_rules < MAX_RULES else MAX_RULES
        except ToolRefused:
            needed = MAX_RULES
        if num_rules + needed < MAX_RULES:
            num_rules += needed
            loosened.append(tool)
        else:
            loosened.append(Tool(tool.name, _any_arguments(tool, tool_format)))
    return make_call_grammar(loosened, tool_format, parallel=parallel)


def _make_grammar(tools: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool) -> str:
    if tool_format in TAGS:
        return make_tagged_grammar(tools, TAGS[tool_format], parallel=parallel)
    return _make_framed_grammar(tool_call_schema(tools, tool_format, parallel=parallel))


def _check_tool(tool: Tool, tool_format: ToolFormat) -> int:
    """The rules and parameters that one tool needs. Raises ToolRefused."""
    try:
        if tool_format in TAGS:
            grammar = make_tagged_grammar([tool], TAGS[tool_format], parallel=False)
            properties = tool.parameters.get("properties")
            return grammar.count("\n") + len(properties if isinstance(properties, Mapping) else ())
        return len(make_rules(arguments_schema(tool))[1])
    except SchemaRefused as refusal:
        raise ToolRefused(tool.name, refusal.rule, refusal.at) from None


def _any_arguments(tool: Tool, tool_format: ToolFormat) -> Mapping[str, Any]:
    if tool_format not in TAGS:
        return {"additionalProperties": True}
    properties = tool.parameters.get("properties")
    names = properties if isinstance(properties, Mapping) else {}
    after_key = TAGS[tool_format].after_key
    return {"properties": {n: {} for n in names if n.isprintable() and n and after_key not in n}}


def _make_framed_grammar(calls: CallGrammar) -> str:
    frames, rules = [], []
    for index, frame in enumerate(calls.frames):
        start, own_rules = make_rules(frame.schema, prefix=f"c{index}")
        parts = [ebnf.literal(frame.prefix), start, ebnf.literal(frame.suffix)]
        frames.append(" ".join(part for part in parts if part != EMPTY))
        rules += own_rules
        check_count(len(rules))
    root = "root ::= call"
    if calls.separator is not None:
        joined = f"{ebnf.literal(calls.separator)} call" if calls.separator else "call"
        root += f" ({joined})*"
    call = f"call ::= {ebnf.one_of(frames)}"
    return ebnf.with_json_rules(root, [call, *rules])
