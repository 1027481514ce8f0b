"""One request inside the executor: what it asked for, its sequences, and when each ends."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.contract.double import toy_model
from tests.contract.double.record import assumed
from tests.contract.double.results import (
    END_ID,
    LENGTH,
    STOP_WORDS,
    Logprob,
    RequestOutput,
    Response,
)
from tests.contract.double.toy_model import Bias

ECHO_VARIABLE = "DOUBLE_ECHO"  # answers repeat their prompt
IGNORED_END_ID = -1  # what the executor is sent with ignore_eos


@dataclass
class ToySequence:
    """A sequence and the state that its tokens have hashed to."""

    index: int
    state: int
    token_ids: list[int] = field(default_factory=list)  # generated so far
    num_sent: int = 0
    log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[Any] = field(default_factory=list)
    finish: str | None = None


@dataclass
class Request:
    """What the executor was sent; read-only but for its sequences."""

    prompt: list[int]
    sampling: Any
    result: RequestOutput
    is_streaming: bool
    vocab_size: int
    max_tokens: int
    script: Sequence[int] | None = None  # the answer that guided decoding leads to
    adapter: Any = None  # LoRARequest, where the engine has the plugin; else it is passed over
    refusal: Exception | None = None  # what the native code will say instead of running it

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.end_id = IGNORED_END_ID if sampling.ignore_eos else sampling.end_id
        self.stop_words = [word for _, word in sampling._get_stop_reasons_and_words()]
        banned = [word[0] for word in sampling._get_bad_words() if len(word) == 1]
        self.bias = Bias.of(sampling.embedding_bias, banned)
        adapter_ids = [] if self.adapter is None else [self.adapter.lora_int_id]
        state = toy_model.fold(0, [*adapter_ids, *self.prompt])
        self.sequences = [ToySequence(i, state) for i in range(sampling.best_of)]

    @property
    def request_id(self) -> int:
        return self.result.request_id

    @property
    def worst_case_len(self) -> int:
        return len(self.prompt) + self.max_tokens

    @property
    def running(self) -> list[ToySequence]:
        return [sequence for sequence in self.sequences if sequence.finish is None]

    def step(self, sequence: ToySequence) -> None:
        """Give a sequence its next token, and its finish reason when that was the last."""
        token = self._next_token(sequence)
        if token != self.end_id or assumed("end_id_stays_in_token_ids"):
            self._append(sequence, token)
        sequence.state = toy_model.fold(sequence.state, [token])
        sequence.finish = self._finish(sequence, token)

    def response(self, sequence: ToySequence) -> Response | None:
        """What to tell the caller after a step: nothing before the end when it does not stream."""
        if sequence.finish is None and not self.is_streaming:
            return None
        num_sent, sequence.num_sent = sequence.num_sent, len(sequence.token_ids)
        sampling = self.sampling
        return Response(
            index=sequence.index,
            token_ids=sequence.token_ids[num_sent:],
            finish=sequence.finish,
            is_final=not self.running,
            log_probs=list(sequence.log_probs) if sampling._return_log_probs else None,
            top_log_probs=sequence.top_log_probs[num_sent:] if sampling.logprobs else None,
            cumulative_log_prob=sum(sequence.log_probs) if sampling._return_log_probs else None,
        )

    def _next_token(self, sequence: ToySequence) -> int:
        if os.environ.get(ECHO_VARIABLE):
            return self._echo(sequence)
        if self.script is not None:
            num = len(sequence.token_ids)
            return self.script[num] if num < len(self.script) else self.sampling.end_id
        return toy_model.draw(
            sequence.state,
            self.vocab_size,
            self._seed_of(sequence),
            self.bias,
            self._held_back(sequence),
        )

    def _echo(self, sequence: ToySequence) -> int:
        """The prompt once and then the end, or the prompt for ever."""
        num = len(sequence.token_ids)
        may_end = self.end_id != IGNORED_END_ID and not self._is_short(sequence)
        if num >= len(self.prompt) and may_end:
            return int(self.end_id)
        return self.prompt[num % len(self.prompt)]

    def _seed_of(self, sequence: ToySequence) -> int | None:
        if self.sampling._greedy_decoding:
            return None
        unseeded = 0 if assumed("unseeded_requests_repeat") else self.request_id
        seed = self.sampling.seed
        return (unseeded if seed is None else seed) + sequence.index

    def _held_back(self, sequence: ToySequence) -> Collection[int]:
        return {self.end_id} if self._is_short(sequence) else ()

    def _is_short(self, sequence: ToySequence) -> bool:
        return len(sequence.token_ids) < (self.sampling.min_tokens or 0)

    def _append(self, sequence: ToySequence, token: int) -> None:
        sequence.token_ids.append(token)
        sequence.log_probs.append(toy_model.log_probability(sequence.state))
        if self.sampling.logprobs:
            sequence.top_log_probs.append(self._top_log_probs(sequence.state, token))

    def _top_log_probs(self, state: int, chosen: int) -> dict[int, Any]:
        count = max(0, self.sampling.logprobs - 1)
        tokens = [chosen, *toy_model.runners_up(state, self.vocab_size, chosen, count)]
        return {
            token: Logprob(logprob=toy_model.log_probability(state, rank), rank=rank)
            for rank, token in enumerate(tokens, start=1)
        }

    def _finish(self, sequence: ToySequence, token: int) -> str | None:
        if token == self.end_id or (self.script is not None and token == self.sampling.end_id):
            return END_ID
        if self._ends_with_stop_word(sequence):
            return STOP_WORDS
        return LENGTH if len(sequence.token_ids) >= self.max_tokens else None

    def _ends_with_stop_word(self, sequence: ToySequence) -> bool:
        if assumed("min_tokens_holds_back_stop_ids") and self._is_short(sequence):
            return False
        return any(sequence.token_ids[-len(word) :] == word for word in self.stop_words)
