"""What is counted and measured while a server works: plain numbers that cost next to nothing.

Everything here belongs to the thread of the event loop, so nothing is locked and nothing is looked
up by a label. What the numbers are called outside, and how they are written down, is for
`metrics.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from deepinfer.generation import FinishReason, Usage
from deepinfer.server.record import RequestRecord

# Upper bounds in seconds. From the short waits of a small model on a GPU to the long ones of a
# large one on a CPU.
WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
TOKEN_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 5)
TOTAL_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
LAG_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LENGTH_BOUNDS = tuple(2**power for power in range(0, 19, 2))  # tokens: 1, 4, 16 ... 262,144

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is there to receive it


class Histogram:
    """How many values were at most each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)  # the last is beyond every bound

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def cumulative_counts(self) -> list[int]:
        """One for each bound, and last the number of all values."""
        return list(accumulate(self._counts))


class Running(Protocol):
    """A generation that has not ended."""

    @property
    def usage(self) -> Usage: ...


class GenerationMeter:
    """What one engine has generated."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.num_finished: Counter[FinishReason] = Counter()  # choices
        self.time_to_first_token = Histogram(WAIT_BOUNDS_S)
        self.inter_token = Histogram(TOKEN_BOUNDS_S)
        self.end_to_end = Histogram(TOTAL_BOUNDS_S)
        self.queue_time = Histogram(WAIT_BOUNDS_S)
        self.prompt_len = Histogram(LENGTH_BOUNDS)
        self.output_len = Histogram(LENGTH_BOUNDS)
        self._ended_tokens = 0
        self._running: set[Running] = set()

    @property
    def generation_tokens(self) -> int:
        """Of generations that have ended and of those that run, as far as they are."""
        running = sum(generation.usage.completion_tokens for generation in self._running)
        return self._ended_tokens + running

    def begin(self, generation: Running) -> None:
        self._running.add(generation)

    def note_tokens(self, record: RequestRecord, now: float, prompt_tokens: int) -> None:
        """New tokens of a request, however many; called once a wake-up, before the record is."""
        if record.last_token_at is not None:
            self.inter_token.observe(now - record.last_token_at)
            return
        self.prompt_tokens += prompt_tokens
        self.prompt_len.observe(prompt_tokens)
        self.time_to_first_token.observe(now - record.started_at)
        if record.queue_s is not None:
            self.queue_time.observe(record.queue_s)

    def end(self, generation: Running, record: RequestRecord, output_lens: Sequence[int]) -> None:
        """`output_lens` are the tokens of each choice, in the order of the record's reasons."""
        self._running.discard(generation)
        self._ended_tokens += sum(output_lens)
        for reason, output_len in zip(record.finish_reasons, output_lens, strict=True):
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                self.num_finished[FinishReason(reason)] += 1
                self.output_len.observe(output_len)
        if FinishReason.CANCELLED not in record.finish_reasons:
            self.end_to_end.observe(record.elapsed_s)


class HttpMeter:
    """What has become of HTTP requests. Routes are templates: no label is a client's to choose."""

    def __init__(self) -> None:
        self.loop_lag = Histogram(LAG_BOUNDS_S)  # how late the event loop runs what is due
        self.num_responses: Counter[tuple[str, int]] = Counter()  # by route and status
        self.num_errors: Counter[tuple[str, str]] = Counter()  # by route and code
        self.num_by_key: Counter[str] = Counter()  # requests by the name of their key
        self.tokens_by_key: Counter[tuple[str, str]] = Counter()  # by its name and their kind
        self.num_rejected = 0
        self.num_cancelled = 0
        self.num_open_streams = 0

    def end(self, record: RequestRecord, route: str) -> None:
        status = record.status or CLIENT_CLOSED_REQUEST
        self.num_responses[route, status] += 1
        if record.error_code is not None:
            self.num_errors[route, record.error_code] += 1
        self.num_rejected += status == 429
        self.num_cancelled += record.is_disconnected
        if record.key_name:
            self._count_for_key(record)

    def _count_for_key(self, record: RequestRecord) -> None:
        self.num_by_key[record.key_name] += 1
        if record.usage is not None and record.first_token_at is not None:
            self.tokens_by_key[record.key_name, "prompt"] += record.usage.prompt_tokens
            self.tokens_by_key[record.key_name, "generation"] += record.usage.completion_tokens
