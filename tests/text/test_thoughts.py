"""Grammars that leave room for thoughts, as far as the prompt does."""

from __future__ import annotations

import pytest

from deepinfer.text.thoughts import allow_thoughts

GRAMMAR = 'root ::= "yes"\n'
OPENED = 'root ::= thoughts "</think>" answer\n'
OPTIONAL = 'root ::= ("<think>" thoughts "</think>")? answer\n'


@pytest.mark.parametrize(
    ("prompt_end", "may_open", "start"),
    [
        ("assistant:\n<think>\n", True, OPENED),
        ("assistant:\n<think>", False, OPENED),
        ("assistant:\n", True, OPTIONAL),
        ("assistant: ye", False, GRAMMAR),
        ("<think>\n\n</think>\n\n", True, GRAMMAR),
    ],
    ids=["opened", "opened and continued", "not opened", "continued", "thinking off"],
)
def test_thoughts_come_first_where_the_prompt_leaves_room(
    prompt_end: str, may_open: bool, start: str
) -> None:
    grammar = allow_thoughts(GRAMMAR, prompt_end, may_open=may_open)
    assert grammar.startswith(start)
    assert (grammar == GRAMMAR) == (start == GRAMMAR)
