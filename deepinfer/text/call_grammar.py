"""From the tools of which one must be called to a grammar in EBNF, which any engine can enforce."""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.text import ebnf
from deepinfer.text.json_grammar import make_rules
from deepinfer.text.tagged_grammar import make_tagged_grammar
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_formats.tags import GLM, QWEN_CODER
from deepinfer.text.tool_schema import CallGrammar, Tool, tool_call_schema

EMPTY = ebnf.literal("")
TAGS = {ToolFormat.QWEN_CODER: QWEN_CODER, ToolFormat.GLM: GLM}


def make_call_grammar(tools: Sequence[Tool], tool_format: ToolFormat, *, parallel: bool) -> str:
    """One call to any of `tools`, or several. Raises SchemaRefused for a tool's schema."""
    if tool_format in TAGS:
        return make_tagged_grammar(tools, TAGS[tool_format], parallel=parallel)
    return _make_framed_grammar(tool_call_schema(tools, tool_format, parallel=parallel))


def _make_framed_grammar(calls: CallGrammar) -> str:
    frames, rules = [], []
    for index, frame in enumerate(calls.frames):
        start, own_rules = make_rules(frame.schema, prefix=f"c{index}")
        parts = [ebnf.literal(frame.prefix), start, ebnf.literal(frame.suffix)]
        frames.append(" ".join(part for part in parts if part != EMPTY))
        rules += own_rules
    root = "root ::= call"
    if calls.separator is not None:
        joined = f"{ebnf.literal(calls.separator)} call" if calls.separator else "call"
        root += f" ({joined})*"
    call = f"call ::= {ebnf.one_of(frames)}"
    return f"{root}{ebnf.JSON_RULES}" + "\n".join([call, *rules]) + "\n"
