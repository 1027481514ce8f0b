"""The waiting queue of an engine process and the account of its KV cache. Pure: no backend, no I/O.

The libraries end every running request when one outgrows the cache, so a request is admitted only
when its worst case (prompt and all tokens that it may generate) fits beside those of the others.
First come, first served: a large request at the head waits for room and is not overtaken for ever.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from deepinfer.engine import Capacity
from deepinfer.errors import ContextLengthExceeded, QueueFull
from deepinfer.generation import GenerationRequest

MAX_RETRY_AFTER_S = 120  # above that the OpenAI SDK does not retry at all
DEFAULT_RETRY_AFTER_S = 5  # before anything has finished there is no rate to go by
RATE_WINDOW = 64  # finished requests that the drain rate is taken over


class DrainRate:
    """How many requests finish per second, over the last ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished_at: deque[float] = deque(maxlen=RATE_WINDOW)

    def record_finish(self) -> None:
        self._finished_at.append(self._clock())

    def seconds_to_drain(self, num_requests: int) -> int:
        """A bounded estimate in whole seconds, at least 1."""
        if len(self._finished_at) < 2:
            return DEFAULT_RETRY_AFTER_S
        elapsed_s = max(self._clock() - self._finished_at[0], 1e-3)
        seconds = math.ceil(num_requests * elapsed_s / len(self._finished_at))
        return min(max(seconds, 1), MAX_RETRY_AFTER_S)


class AdmissionQueue:
    """Requests that wait, and the blocks that admitted ones have reserved."""

    def __init__(self, capacity: Capacity, max_waiting: int) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.drain_rate = DrainRate()
        self._waiting: dict[str, GenerationRequest] = {}
        self._reserved_blocks: dict[str, int] = {}  # of admitted requests

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_admitted(self) -> int:
        return len(self._reserved_blocks)

    @property
    def num_free_blocks(self) -> int:
        return self.capacity.num_blocks - sum(self._reserved_blocks.values())

    def put(self, requests: Sequence[GenerationRequest]) -> None:
        """Queue all of `requests`. Raises QueueFull or ContextLengthExceeded, queueing none."""
        for request in requests:
            self._check_size(request)
        if len(self._waiting) + len(requests) > self.max_waiting:
            raise QueueFull(
                f"{len(self._waiting):,} requests are waiting; this engine queues at most "
                f"{self.max_waiting:,}",
                retry_after_s=self.drain_rate.seconds_to_drain(len(self._waiting)),
            )
        self._waiting.update((request.request_id, request) for request in requests)

    def admit(self) -> Iterator[GenerationRequest]:
        """Take requests from the head while their worst case fits, reserving their blocks."""
        while self._waiting and self.num_admitted < self.capacity.max_batch_size:
            request = next(iter(self._waiting.values()))
            num_blocks = self.capacity.blocks_for(request.max_total_len)
            if num_blocks > self.num_free_blocks:
                return
            del self._waiting[request.request_id]
            self._reserved_blocks[request.request_id] = num_blocks
            yield request

    def remove_waiting(self, request_id: str) -> bool:
        """Forget a request that still waits; False when it does not."""
        return self._waiting.pop(request_id, None) is not None

    def release(self, request_id: str) -> None:
        """Give back the blocks of an admitted request that has ended."""
        if self._reserved_blocks.pop(request_id, None) is not None:
            self.drain_rate.record_finish()

    def _check_size(self, request: GenerationRequest) -> None:
        if self.capacity.blocks_for(request.max_total_len) > self.capacity.num_blocks:
            raise ContextLengthExceeded(
                f"The prompt has {len(request.prompt_token_ids):,} tokens and max_tokens is "
                f"{request.sampling.max_tokens:,}; the KV cache of this engine holds "
                f"{self.capacity.num_tokens:,} tokens",
                param="max_tokens",
            )
