"""The prompts of a load: lengths, the texts they are made of, and the prompt for each index.

The seed alone decides which prompt has which index, whichever process sends it. A prompt starts
with a few random words, which no prefix cache knows, and continues with a passage of the packaged
texts; or it comes from a data set. With `prefix_tokens`, each prompt starts with one of
`num_prefixes` shared passages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec

from deepinfer.bench.client import Prompt
from deepinfer.errors import ConfigError

MAX_TOKENS = 1_000_000  # of a prompt or an answer; a lognormal distribution has no maximum
LENGTHS_HINT = (
    "give `128`, `uniform:64:256` or `lognormal:128:0.7` (median and sigma; `:2048` caps it)"
)

PACKAGED_TEXTS = Path(__file__).parent.parent / "calibration" / "default.jsonl"
# Longer runs of characters without a space, such as encoded data, would make lengths jump.
MAX_WORD_CHARS = 20
MAX_DATASET_BYTES = 2 * 2**30
DATASET_HINT = (
    'a line is `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}` or '
    '`{"prompt": ..., "output_tokens": ...}`'
)

NUM_RANDOM_ITEMS = 8  # at the start of each prompt
DEFAULT_OUTPUT_TOKENS = 128  # for samples of a data set without an answer
Items = list[str | int]  # words or token ids


class Lengths(msgspec.Struct, frozen=True):
    """A length in tokens: `low` is the fixed value, the minimum, or the median of a lognormal."""

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int  # maximum of every draw
    sigma: float = 0.0  # of the logarithm

    def draw(self, rng: Random) -> int:
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return rng.randint(self.low, self.high)
        drawn = rng.lognormvariate(math.log(self.low), self.sigma)
        return min(max(round(drawn), 1), self.high)

    def __str__(self) -> str:
        if self.kind == "fixed":
            return str(self.low)
        if self.kind == "uniform":
            return f"uniform:{self.low}:{self.high}"
        return f"lognormal:{self.low}:{self.sigma:g}:{self.high}"


def parse_lengths(text: str) -> Lengths:
    """`128`, `uniform:64:256` or `lognormal:128:0.7:2048`. Raises ConfigError."""
    kind, *numbers = text.split(":")
    try:
        match kind, numbers:
            case "uniform", [low, high]:
                lengths = Lengths("uniform", int(low), int(high))
            case "lognormal", [median, sigma]:
                lengths = Lengths("lognormal", int(median), MAX_TOKENS, float(sigma))
            case "lognormal", [median, sigma, high]:
                lengths = Lengths("lognormal", int(median), int(high), float(sigma))
            case _, []:
                lengths = Lengths("fixed", int(kind), int(kind))
            case _:
                raise ValueError(kind)
    except ValueError:
        raise ConfigError(f"`{text}` is not a number of tokens", hint=LENGTHS_HINT) from None
    if not 1 <= lengths.low <= lengths.high <= MAX_TOKENS:
        raise ConfigError(
            f"`{text}` must be between 1 and {MAX_TOKENS:,} tokens, the smaller number first",
            hint=LENGTHS_HINT,
        )
    if not 0 <= lengths.sigma <= 10:
        raise ConfigError(f"sigma in `{text}` must be between 0 and 10", hint=LENGTHS_HINT)
    return lengths


def parse_list(text: str) -> tuple[int, ...]:
    """`1,4,16`. Raises ConfigError."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= MAX_TOKENS for number in numbers):
        raise ConfigError(
            f"`{text}` is not a list of numbers from 1 to {MAX_TOKENS:,}",
            hint="give numbers such as `1,4,16`",
        )
    return numbers


class Sample(msgspec.Struct, frozen=True):
    """One prompt of a data set, with the length of its answer in words or tokens."""

    prompt: str
    answer_words: int | None = None
    output_tokens: int | None = None


def read_words() -> list[str]:
    """The words of the packaged texts, in order."""
    lines = PACKAGED_TEXTS.read_bytes().splitlines()
    texts = [msgspec.json.decode(line)["text"] for line in lines]
    return [word for text in texts for word in text.split() if len(word) <= MAX_WORD_CHARS]


def read_dataset(path: Path) -> list[Sample]:
    """Every usable sample of a file, at least one. Raises ConfigError.

    The file is JSON Lines or one JSON array, of ShareGPT conversations or of objects with a
    `prompt`.
    """
    try:
        if path.stat().st_size > MAX_DATASET_BYTES:
            raise ConfigError(
                f"data set `{path}` has {path.stat().st_size:,} bytes; the limit is "
                f"{MAX_DATASET_BYTES:,}",
                hint="use a part of it, for example with `head`",
            )
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read data set `{path}`: {error.strerror}") from error
    samples = [s for s in map(_parse_sample, _parse_rows(path, content)) if s is not None]
    if not samples:
        raise ConfigError(f"data set `{path}` contains no prompt", hint=DATASET_HINT)
    return samples


def _parse_rows(path: Path, content: bytes) -> Iterator[Any]:
    if content.lstrip()[:1] == b"[":
        try:
            yield from msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"data set `{path}` is not JSON: {error}", hint=DATASET_HINT
            ) from None
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(
                    f"line {number} of data set `{path}` is not JSON: {error}", hint=DATASET_HINT
                ) from None


def _parse_sample(row: Any) -> Sample | None:
    """None for a row without a prompt, which data sets of conversations contain."""
    if not isinstance(row, dict):
        return None
    if isinstance(prompt := row.get("prompt"), str) and prompt:
        length = row.get("output_tokens", row.get("max_tokens"))
        return Sample(prompt, output_tokens=length if type(length) is int and length > 0 else None)
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return None
    texts = [turn.get("value") for turn in turns[:2] if isinstance(turn, dict)]
    if not texts or not isinstance(texts[0], str) or not texts[0]:
        return None
    answer = texts[1] if len(texts) > 1 and isinstance(texts[1], str) else None
    return Sample(texts[0], answer_words=len(answer.split()) if answer else None)


class PromptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`input_lengths` or `output_lengths` None means the lengths of the data set."""

    input_lengths: Lengths | None
    output_lengths: Lengths | None
    dataset: str | None = None  # path of a file
    token_ids: tuple[int, ...] = ()  # of the packaged texts; if given, prompts are ids and not text
    tokens_per_word: float = 1.3
    prefix_tokens: int = 0
    num_prefixes: int = 1
    seed: int = 0
    run: int = 0  # of a sweep; every run has other prompts, so that no cache helps it

    def rng(self, purpose: object) -> Random:
        return Random(f"{self.seed}:{self.run}:{purpose}")


class PromptMaker:
    """Makes any prompt of a plan. Reads the texts or the data set once, on creation."""

    def __init__(self, plan: PromptPlan) -> None:
        self._plan = plan
        self._samples = read_dataset(Path(plan.dataset)) if plan.dataset else []
        self._items: Sequence[str | int] = plan.token_ids or read_words()
        self._tokens_per_item = 1.0 if plan.token_ids else plan.tokens_per_word
        rng = plan.rng("prefixes")
        self._prefixes = [self._passage(rng, plan.prefix_tokens) for _ in range(plan.num_prefixes)]
        rng.shuffle(self._samples)

    def make(self, index: int) -> Prompt:
        rng = self._plan.rng(index)
        prefix = self._prefixes[rng.randrange(len(self._prefixes))]
        if self._samples:
            sample = self._samples[index % len(self._samples)]
            text = " ".join([*map(str, prefix), sample.prompt])
            return Prompt(text, self._output_tokens(rng, sample))
        lengths = self._plan.input_lengths
        assert lengths is not None, "prompts without a data set need lengths"
        items = [*prefix, *self._passage(rng, lengths.draw(rng))]
        content: str | tuple[int, ...] = " ".join(map(str, items))
        if self._plan.token_ids:
            content = tuple(int(item) for item in items)
        return Prompt(content, self._output_tokens(rng, None))

    def _output_tokens(self, rng: Random, sample: Sample | None) -> int:
        if self._plan.output_lengths is not None:
            return self._plan.output_lengths.draw(rng)
        if sample is not None and sample.output_tokens is not None:
            return sample.output_tokens
        if sample is not None and sample.answer_words is not None:
            return max(round(sample.answer_words * self._plan.tokens_per_word), 1)
        return DEFAULT_OUTPUT_TOKENS

    def _passage(self, rng: Random, num_tokens: int) -> Items:
        """`num_tokens` worth of the texts from a random place, wrapping around at their end."""
        if num_tokens == 0:
            return []
        count = max(round(num_tokens / self._tokens_per_item), 1)
        start = rng.randrange(len(self._items))
        head = rng.choices(self._items, k=min(NUM_RANDOM_ITEMS, count))
        passage = list(self._items[start : start + count - len(head)])
        while len(head) + len(passage) < count:
            passage += self._items[: count - len(head) - len(passage)]
        return [*head, *passage]
