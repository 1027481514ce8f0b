"""A grammar in EBNF for what one of two grammars allows.

It takes the form that grammars are written in here: literals in double quotes, sets in brackets,
`root` first, and no rule that refers to it.
"""

from __future__ import annotations

import re

ROOT = "root ::= "
# A literal or a set, in which nothing is a name, or a name.
TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[A-Za-z_][A-Za-z0-9_]*')


def either(first: str, second: str) -> str:
    """The rules of both, each under names of its own."""
    assert first.startswith(ROOT) and second.startswith(ROOT), "the root comes first"
    rules = f"{_rename(first, 'a_').rstrip()}\n{_rename(second, 'b_').rstrip()}\n"
    return f"{ROOT}a_root | b_root\n{rules}"


def _rename(grammar: str, prefix: str) -> str:
    def rename(found: re.Match[str]) -> str:
        text = found[0]
        return text if text[0] in '"[' else prefix + text

    return TOKEN.sub(rename, grammar)
