"""Contenders take turns: A B C, C B A, ... so that no one has the machine's better minutes.

The others are paused meanwhile: what one does after its turn would be in the next one's figures.

They are started anew as often as is asked for. The same program in two processes was seen to differ
by 3% for as long as both ran, so that any number of turns of one life says too little.

Who fails once, or generates another number of tokens than was asked for, takes no further part and
is named with the reason; the others go on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.side_by_side.contender import (
    Contender,
    Load,
    Measured,
    Model,
    Unavailable,
    check_count,
)

WARM_UP_TOKENS = 2  # a step of prompts and one of decoding: each shape has kernels of its own
Say = Callable[[str], None]
Seen = dict[int, list[dict[str, Measured]]]  # by streams and contender, a dictionary a turn


@dataclass(frozen=True)
class Level:
    streams: int
    prompt_tokens: int
    output_tokens: int
    turns: int = 1  # of a round; short loads scatter more, and cost less to repeat


@dataclass
class Field:
    """Who takes part still, and why others do not."""

    running: list[Contender] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)  # name to reason

    def drop(self, contender: Contender, reason: str) -> None:
        self.absent[contender.name] = reason
        if contender in self.running:
            self.running.remove(contender)
        contender.stop()


@contextmanager
def started(contenders: Sequence[Contender], model: Model, say: Say) -> Iterator[Field]:
    """All that can be prepared and started, until the end of the block."""
    taking_part = Field()
    try:
        for contender in contenders:
            say(f"starting {contender.name}")
            try:
                contender.prepare(model)
                contender.start(model)
            except Unavailable as reason:
                say(f"  {contender.name}: {reason}")
                taking_part.drop(contender, str(reason))
            else:
                taking_part.running.append(contender)
        yield taking_part
    finally:
        for contender in contenders:
            contender.stop()


def run_lives(
    contenders: Sequence[Contender],
    model: Model,
    levels: Sequence[Level],
    num_lives: int,
    num_rounds: int,
    end_at: float,
    say: Say,
) -> tuple[Seen, dict[str, str]]:
    """What each came to in all lives, and who is missing with the reason.

    No life after the first and no round begins after `end_at`, by time.monotonic().
    """
    turns: Seen = {level.streams: [] for level in levels}
    absent: dict[str, str] = {}
    for life in range(num_lives):
        if life and time.monotonic() > end_at:
            say(f"no time for life {life + 1}")
            break
        staying = [one for one in contenders if one.name not in absent]
        with started(staying, model, say) as taking_part:
            seen = run_rounds(taking_part, levels, num_rounds, end_at, say, first_round=life + 1)
        absent |= taking_part.absent
        for streams, found in seen.items():
            turns[streams] += found
    return turns, absent


def run_rounds(
    taking_part: Field,
    levels: Sequence[Level],
    num_rounds: int,
    end_at: float,
    say: Say,
    first_round: int = 1,
) -> Seen:
    """What each contender came to. No round begins after `end_at`, by time.monotonic()."""
    turns: Seen = {level.streams: [] for level in levels}
    for contender in taking_part.running:
        contender.pause()
    for level in levels:
        warm_up = Load(level.streams, level.prompt_tokens, WARM_UP_TOKENS, number=-1)
        run_turn(taking_part, warm_up, is_reversed=False)
    numbers = itertools.count()
    for round_number in range(first_round, first_round + num_rounds):
        if time.monotonic() > end_at:
            say(f"no time for round {round_number}")
            break
        for level in levels:
            for number in itertools.islice(numbers, level.turns):
                load = Load(level.streams, level.prompt_tokens, level.output_tokens, number)
                turn = run_turn(taking_part, load, is_reversed=round_number % 2 == 0)
                turns[level.streams].append(turn)
                say(f"round {round_number}, {level.streams} at once: {describe(turn)}")
    return turns


def run_turn(taking_part: Field, load: Load, *, is_reversed: bool) -> dict[str, Measured]:
    turn = {}
    order = list(taking_part.running)
    for contender in reversed(order) if is_reversed else order:
        contender.resume()
        try:
            turn[contender.name] = check_count(contender.name, load, contender.measure(load))
        except Unavailable as reason:
            taking_part.drop(contender, str(reason))
        else:
            contender.pause()
    return turn


def describe(turn: dict[str, Measured]) -> str:
    return ", ".join(f"{name} {found.rate('tokens'):.1f} tokens/s" for name, found in turn.items())
