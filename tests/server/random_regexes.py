"""Random regular expressions of what the server honours."""

from __future__ import annotations

import random

CHARS = [
    "a",
    "B",
    "7",
    "_",
    " ",
    r"\.",
    r"\n",
    '"',
    r"\\",
    "é",
    "ÿ",
    "日",
    "😀",
    r"\x7f",
    r"\u0085",
]
SETS = [r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "."]
RANGES = ["a-f", "0-4", "é-ü", "À-Ⰰ", "ぁ-ん", "一-龥", "😀-🙏", "~-ࠁ", r"\s", r"\w", r"\-", "]"]
COUNTS = ["?", "*", "+", "{2}", "{0,3}", "{1,2}?", "{,2}"]


def make_regex(rng: random.Random, depth: int = 2) -> str:
    """An expression whose texts are short where it has no open end."""
    makers = [_sequence, _sequence, _alternatives] if depth else [_atom]
    return rng.choice(makers)(rng, depth - 1)


def _atom(rng: random.Random, depth: int) -> str:
    if rng.random() < 0.4:
        return rng.choice(CHARS)
    return rng.choice(SETS) if rng.random() < 0.4 else _class(rng)


def _class(rng: random.Random) -> str:
    parts = rng.sample(RANGES, rng.randint(1, 3))
    parts.sort(key=lambda part: part != "]")  # which is no end of a class where it comes first
    return f"[{rng.choice(['', '^'])}{''.join(parts)}]"


def _sequence(rng: random.Random, depth: int) -> str:
    return "".join(_term(rng, depth) for _ in range(rng.randint(1, 3)))


def _term(rng: random.Random, depth: int) -> str:
    if rng.random() < 0.5:
        return _atom(rng, depth)
    return f"(?:{make_regex(rng, depth)}){rng.choice(COUNTS)}"


def _alternatives(rng: random.Random, depth: int) -> str:
    return f"({'|'.join(make_regex(rng, depth) for _ in range(rng.randint(2, 3)))})"
