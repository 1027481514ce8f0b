"""The prompts of a load: which one has which index is settled by the seed, whoever sends it.

A prompt is a few random words, so that no prefix cache knows it, and then a passage of the corpus.
Lengths in tokens are met by the measured number of tokens a word; what they came to is in the
answers' usage. With `prefix_tokens`, each prompt starts with one of `num_prefixes` passages that
many prompts share.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec

from deepinfer.bench.corpus import Sample, read_dataset, read_words
from deepinfer.bench.lengths import Lengths
from deepinfer.bench.target import Prompt

NUM_RANDOM_ITEMS = 8  # at the start of each prompt
DEFAULT_OUTPUT_TOKENS = 128  # where a data set does not say how long the answer was

Items = list[str | int]  # words or token ids


class PromptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`input_lengths` None: the data set's own. `output_lengths` None: likewise, where it says."""

    input_lengths: Lengths | None
    output_lengths: Lengths | None
    dataset: str | None = None  # path of a file
    token_ids: tuple[int, ...] = ()  # of the corpus; when given, prompts are ids and not text
    tokens_per_word: float = 1.3
    prefix_tokens: int = 0
    num_prefixes: int = 1
    seed: int = 0
    run: int = 0  # of a sweep: no cache shall know a run's prompts from the run before it

    def rng(self, purpose: object) -> Random:
        return Random(f"{self.seed}:{self.run}:{purpose}")


class PromptMaker:
    """Makes any prompt of a plan. The corpus is read once, when this is made."""

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
            return self._make_of(self._samples[index % len(self._samples)], prefix, rng)
        lengths = self._plan.input_lengths
        assert lengths is not None, "only a data set has lengths of its own"
        own = self._passage(rng, lengths.draw(rng))
        return Prompt(self._join([*prefix, *own]), self._output_tokens(rng, None))

    def _make_of(self, sample: Sample, prefix: Items, rng: Random) -> Prompt:
        text = " ".join([*map(str, prefix), sample.prompt])
        return Prompt(text, self._output_tokens(rng, sample))

    def _output_tokens(self, rng: Random, sample: Sample | None) -> int:
        if self._plan.output_lengths is not None:
            return self._plan.output_lengths.draw(rng)
        if sample is not None and sample.output_tokens is not None:
            return sample.output_tokens
        if sample is not None and sample.answer_words is not None:
            return max(round(sample.answer_words * self._plan.tokens_per_word), 1)
        return DEFAULT_OUTPUT_TOKENS

    def _passage(self, rng: Random, num_tokens: int) -> Items:
        """So many tokens' worth of the corpus, from anywhere and round its end."""
        if num_tokens == 0:
            return []
        count = max(round(num_tokens / self._tokens_per_item), 1)
        start = rng.randrange(len(self._items))
        head = rng.choices(self._items, k=min(NUM_RANDOM_ITEMS, count))
        passage = list(self._items[start : start + count - len(head)])
        while len(head) + len(passage) < count:
            passage += self._items[: count - len(head) - len(passage)]
        return [*head, *passage]

    def _join(self, items: Items) -> str | tuple[int, ...]:
        if self._plan.token_ids:
            return tuple(int(item) for item in items)
        return " ".join(map(str, items))
