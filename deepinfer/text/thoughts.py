"""Lets a model think before an answer that a grammar holds it to.

The block of thoughts is any text that does not hold the marker that closes it, as in
`free_text.py`; right behind the marker the answer begins, so that what is left once thoughts are
split off fits the grammar to the letter.
"""

from __future__ import annotations

from deepinfer.text import ebnf
from deepinfer.text.char_ranges import char, negate, union, write_class
from deepinfer.text.reasoning import CLOSING, OPENING

ROOT = "root ::= "
MARKER_START = CLOSING[0]


def allow_thoughts(grammar: str, prompt_end: str, *, may_open: bool) -> str:
    """`grammar` behind a block of thoughts, as far as the end of the prompt leaves room for one.

    A block that the prompt has opened must come to its end. One that it has closed, as templates
    do where thinking is off, stays closed; else the model opens one or does not, if it may.
    """
    end = prompt_end.rstrip()
    if end.endswith(CLOSING) or not (may_open or end.endswith(OPENING)):
        return grammar
    assert grammar.startswith(ROOT), "the root comes first, and no rule refers to it"
    block = f"thoughts {ebnf.literal(CLOSING)}"
    if not end.endswith(OPENING):
        block = f"({ebnf.literal(OPENING)} {block})?"
    answer = grammar.removeprefix(ROOT)
    return f"{ROOT}{block} answer\nanswer ::= {answer.rstrip()}\n{_thought_rules()}"


def _thought_rules() -> str:
    """`thoughts`, in which a marker that has begun is never begun anew before it has failed."""
    free = write_class(negate(char(MARKER_START)))
    rules = [f"thoughts ::= {free}* ({ebnf.literal(MARKER_START)}+ thoughts1 {free}*)*"]
    for place in range(1, len(CLOSING)):
        next_char = CLOSING[place]
        rule = write_class(negate(union([*char(MARKER_START), *char(next_char)])))
        if place + 1 < len(CLOSING):
            rule += f" | {ebnf.literal(next_char)} thoughts{place + 1}"
        rules.append(f"thoughts{place} ::= {rule}")
    return "\n".join(rules) + "\n"
