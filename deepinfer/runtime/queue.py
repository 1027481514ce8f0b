"""The waiting queue of an engine process and the account of its KV cache. Pure: no backend, no I/O.

The libraries end every running request when one outgrows the cache, so a request is admitted only
when its worst case (prompt and all tokens that it may generate) fits beside those of the others. A
large request at the head of the queue waits for room and is not overtaken without end.

The order is fair between tenants (start-time fair queueing): the tenant that has been given the
fewest tokens so far is next, however many requests it has waiting. One that comes back after a
pause begins level with the others. Of one tenant's requests those with a lower priority come
first, and equals in the order of their arrival.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from deepinfer.engine import Capacity
from deepinfer.errors import ContextLengthExceeded, QueueFull
from deepinfer.generation import GenerationRequest

MAX_RETRY_AFTER_S = 120  # above that the OpenAI SDK does not retry at all
DEFAULT_RETRY_AFTER_S = 5  # before anything has finished there is no rate to go by
RATE_WINDOW = 64  # finished requests that the drain rate is taken over
MAX_GONE = 64  # entries of removed requests that a backlog keeps before it is put in order


class AdmissionQueue:
    """Requests that wait, and the blocks that admitted ones have reserved."""

    def __init__(self, capacity: Capacity, max_waiting: int, max_waiting_tokens: int) -> None:
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens
        self.drain_rate = DrainRate()
        self._fair_queue = FairQueue()
        self._num_waiting_tokens = 0  # of prompts, those of held requests included
        self._held: dict[str, tuple[GenerationRequest, str, int]] = {}  # with tenant and priority
        self._reserved_blocks: dict[str, int] = {}  # of admitted requests
        self._num_free_blocks = capacity.num_blocks

    @property
    def num_waiting(self) -> int:
        return len(self._fair_queue) + len(self._held)

    @property
    def num_admitted(self) -> int:
        return len(self._reserved_blocks)

    def put(
        self,
        requests: Sequence[GenerationRequest],
        *,
        tenant: str = "",
        priority: int = 0,
        is_bounded: bool = True,
        is_held: Callable[[GenerationRequest], bool] = lambda _: False,
    ) -> None:
        """Queue all of `requests`. Raises QueueFull or ContextLengthExceeded, queueing none.

        Without `is_bounded` they are taken however many wait. Those that `is_held` have no turn
        before `release_held`.
        """
        for request in requests:
            self._check_size(request)
        if is_bounded:
            self._check_room(requests)
        for request in requests:
            self._num_waiting_tokens += len(request.prompt_token_ids)
            if is_held(request):
                self._held[request.request_id] = (request, tenant, priority)
            else:
                self._fair_queue.add(request, tenant, priority)

    def release_held(self, request_id: str) -> None:
        """Give a held request its turn."""
        self._fair_queue.add(*self._held.pop(request_id))

    def admit(self) -> Iterator[GenerationRequest]:
        """Take requests in their turn while their worst case fits, reserving their blocks."""
        while self.num_admitted < self.capacity.max_batch_size:
            request = self._fair_queue.peek()
            if request is None:
                return
            num_blocks = self.capacity.blocks_for(request.max_total_len)
            if num_blocks > self._num_free_blocks:
                return
            self._fair_queue.take(request)
            self._num_waiting_tokens -= len(request.prompt_token_ids)
            self._reserved_blocks[request.request_id] = num_blocks
            self._num_free_blocks -= num_blocks
            yield request

    def remove_waiting(self, request_id: str) -> bool:
        """Forget a request that still waits; False when it does not."""
        held = self._held.pop(request_id, None)
        request = self._fair_queue.remove(request_id) if held is None else held[0]
        if request is None:
            return False
        self._num_waiting_tokens -= len(request.prompt_token_ids)
        return True

    def release(self, request_id: str) -> None:
        """Give back the blocks of an admitted request that has ended."""
        num_blocks = self._reserved_blocks.pop(request_id, None)
        if num_blocks is not None:
            self._num_free_blocks += num_blocks
            self.drain_rate.record_finish()

    def _check_room(self, requests: Sequence[GenerationRequest]) -> None:
        retry_after_s = self.drain_rate.seconds_to_drain(self.num_waiting)
        if self.num_waiting + len(requests) > self.max_waiting:
            raise QueueFull(
                f"{self.num_waiting:,} requests are waiting; this engine queues at most "
                f"{self.max_waiting:,}",
                retry_after_s=retry_after_s,
            )
        num_tokens = sum(len(request.prompt_token_ids) for request in requests)
        # One call that is larger than the bound may wait alone, or it could never be served.
        if self.num_waiting and self._num_waiting_tokens + num_tokens > self.max_waiting_tokens:
            raise QueueFull(
                f"Prompts of {self._num_waiting_tokens:,} tokens are waiting; this engine queues "
                f"at most {self.max_waiting_tokens:,}",
                retry_after_s=retry_after_s,
            )

    def _check_size(self, request: GenerationRequest) -> None:
        if self.capacity.blocks_for(request.max_total_len) > self.capacity.num_blocks:
            raise ContextLengthExceeded(
                # The first words are OpenAI's, by which client libraries know this error.
                f"This model's maximum context length is {self.capacity.num_tokens} tokens, which "
                f"is all of the KV cache; the prompt has {len(request.prompt_token_ids):,} and "
                f"max_tokens is {request.sampling.max_tokens:,}",
                param="max_tokens",
            )


@dataclass
class _Backlog:
    """What one tenant has waiting."""

    num_waiting: int = 0
    # (priority, number of arrival, id); entries of removed requests stay until they are met.
    order: list[tuple[int, int, str]] = field(default_factory=list)


class FairQueue:
    def __init__(self) -> None:
        self._requests: dict[str, tuple[GenerationRequest, str]] = {}  # by id, with the tenant
        self._backlogs: dict[str, _Backlog] = {}  # of tenants with something waiting
        self._given: dict[str, int] = {}  # tokens, by tenant; an entry for each key of the server
        self._arrivals = itertools.count()
        self._level = 0  # what the tenant served last had been given when its turn came

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: GenerationRequest, tenant: str, priority: int) -> None:
        if tenant not in self._backlogs:
            self._backlogs[tenant] = _Backlog()
            self._given[tenant] = max(self._given.get(tenant, 0), self._level)
        backlog = self._backlogs[tenant]
        backlog.num_waiting += 1
        heapq.heappush(backlog.order, (priority, next(self._arrivals), request.request_id))
        self._requests[request.request_id] = (request, tenant)

    def peek(self) -> GenerationRequest | None:
        """The request whose turn it is; None when nothing waits."""
        if not self._requests:
            return None
        tenant = min(self._backlogs, key=self._given.__getitem__)
        return self._requests[self._backlogs[tenant].order[0][2]][0]

    def take(self, request: GenerationRequest) -> None:
        """Remove what `peek` has returned, and count it as given."""
        _, tenant = self._requests[request.request_id]
        self._level = self._given[tenant]
        self._given[tenant] += request.max_total_len
        self.remove(request.request_id)

    def remove(self, request_id: str) -> GenerationRequest | None:
        """Forget a request; None when it does not wait."""
        found = self._requests.pop(request_id, None)
        if found is None:
            return None
        request, tenant = found
        backlog = self._backlogs[tenant]
        backlog.num_waiting -= 1
        if not backlog.num_waiting:
            del self._backlogs[tenant]
        else:
            self._drop_gone(backlog)
        return request

    def _drop_gone(self, backlog: _Backlog) -> None:
        """See to it that the first entry is of a request that waits, and that few are not."""
        while backlog.order[0][2] not in self._requests:
            heapq.heappop(backlog.order)
        if len(backlog.order) > 2 * backlog.num_waiting + MAX_GONE:
            backlog.order = [entry for entry in backlog.order if entry[2] in self._requests]
            heapq.heapify(backlog.order)


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
