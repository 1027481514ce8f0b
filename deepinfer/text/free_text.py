"""Rules of grammars for text that goes on until a tag: anything that does not hold the tag.

As in `ebnf.py`, characters are listed by ranges, since xgrammar makes of "all but these" what is no
UTF-8. Less is allowed than could be: no control characters, and no `<` within the beginning of the
tag, so that a rule never has to look back.
"""

from __future__ import annotations

from deepinfer.text import ebnf

TAG_START = "<"
ASCII_RANGES = ((" ", ";"), ("=", "\x7f"))  # all but TAG_START
_BEYOND_ASCII = ebnf.PLAIN_CHARS.partition(r"\x7f")[2]
_ESCAPED = {"\\": r"\\", "]": r"\]", "[": r"\[", "-": r"\-", "^": r"\^", "\x7f": r"\x7f"}

# JSON whose strings write `<` as an escape, so that no tag is in them.
JSON_CHARS = ebnf.PLAIN_CHARS.replace(r"#-\[", r"#-;=-\[")
COUNTED = "counted"  # how the names of the rules begin that count characters


def text_rules(tag: str) -> str:
    """The rule `text`, for any text without `tag`, and those that it is made of."""
    assert tag[0] == TAG_START and TAG_START not in tag[1:]
    # As `(char | ...)*` the same would cost xgrammar more with each character.
    char = text_char()
    rules = [f"text ::= {char}* ({ebnf.literal(TAG_START)}+ tag1 {char}*)*"]
    for place in range(1, len(tag)):
        rule = f"tag{place} ::= {text_char(without=tag[place])}"
        if place + 1 < len(tag):
            rule += f" | {ebnf.literal(tag[place])} tag{place + 1}"
        rules.append(rule)
    return "\n".join(rules) + "\n"


def text_char(*, without: str = "") -> str:
    """One character that does not begin a tag."""
    ranges = [piece for lowest, highest in ASCII_RANGES for piece in _cut(lowest, highest, without)]
    return rf"[\t\n{''.join(ranges)}{_BEYOND_ASCII}]"


def _cut(lowest: str, highest: str, without: str) -> list[str]:
    if not without or not lowest <= without <= highest:
        return [_range(lowest, highest)]
    below, above = chr(ord(without) - 1), chr(ord(without) + 1)
    parts = [(lowest, below), (above, highest)]
    return [_range(first, last) for first, last in parts if first <= last]


def _range(lowest: str, highest: str) -> str:
    first, last = (_ESCAPED.get(char, char) for char in (lowest, highest))
    return first if first == last else f"{first}-{last}"
