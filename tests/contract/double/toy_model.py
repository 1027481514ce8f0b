"""The model of the double: the next token is a hash of everything before it.

A prompt that goes on with what was emitted continues alike, whatever else is in the batch; with a
seed the answer depends on the seed as well. Temperature, top-p and penalties change nothing. Token
ids below FIRST_PLAIN_ID are drawn only as EOS_LIKE_ID, and that rarely.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

MASK = (1 << 64) - 1
FIRST_PLAIN_ID = 2
EOS_LIKE_ID = 1
DRAWS_PER_EOS = 64
FORCING_BIAS = 50.0  # a bias of this size or more decides alone


@dataclass(frozen=True)
class Bias:
    """What an `embedding_bias` of extreme values comes to."""

    forced: int | None = None
    banned: frozenset[int] = frozenset()

    @classmethod
    def of(cls, values: Iterable[float] | None, banned: Iterable[int] = ()) -> Bias:
        biases = [float(value) for value in values] if values is not None else []
        forced = max(range(len(biases)), key=biases.__getitem__, default=None)
        if forced is not None and biases[forced] < FORCING_BIAS:
            forced = None
        low = (token for token, bias in enumerate(biases) if bias <= -FORCING_BIAS)
        return cls(forced, frozenset([*low, *banned]))


def fold(state: int, token_ids: Iterable[int]) -> int:
    """The state after more tokens; 0 is that of no tokens."""
    for token_id in token_ids:
        state = _mix(state * 0x9E3779B97F4A7C15 + token_id + 1)
    return state


def draw(
    state: int, vocab_size: int, seed: int | None, bias: Bias, also_banned: Collection[int] = ()
) -> int:
    """The next token; without a seed it is the greedy one."""
    if bias.forced is not None:
        return bias.forced
    mixed = state if seed is None else _mix(state ^ _mix(seed + 1))
    token = FIRST_PLAIN_ID + mixed % (vocab_size - FIRST_PLAIN_ID)
    if (mixed >> 40) % DRAWS_PER_EOS == 0:
        token = EOS_LIKE_ID
    for _ in range(vocab_size):
        if token not in bias.banned and token not in also_banned:
            break
        token = (token + 1) % vocab_size
    return token


def log_probability(state: int, rank: int = 1) -> float:
    """Of the token of that rank; deterministic, and lower for a higher rank."""
    return -(rank - 1) - (1 + state % 4000) / 4001


def runners_up(state: int, vocab_size: int, chosen: int, count: int) -> list[int]:
    """The next likeliest tokens after the chosen one."""
    candidates = ((chosen + 1 + state % 7 + step) % vocab_size for step in range(count + 1))
    return [token for token in candidates if token != chosen][:count]


def _mix(value: int) -> int:
    """The finaliser of splitmix64."""
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)
