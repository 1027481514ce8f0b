"""From the calls that an answer must be to a grammar in EBNF, which any engine can enforce."""

from __future__ import annotations

from deepinfer.text import ebnf
from deepinfer.text.json_grammar import make_rules
from deepinfer.text.tool_schema import CallGrammar


def make_call_grammar(calls: CallGrammar) -> str:
    """One call, or several where they may be joined. Raises SchemaRefused for a tool's schema."""
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


EMPTY = ebnf.literal("")
