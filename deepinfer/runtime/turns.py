"""Whose turn it is among waiting requests: fair between tenants, by priority within each.

A tenant's turn comes by the tokens that it has been given so far (start-time fair queueing): the
one with the least goes first, whatever number of requests it has waiting. Who comes back after a
pause begins level with the others and has no arrears to claim. Of one tenant's requests those
with a lower priority come first, and equals in the order in which they came. Pure.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from deepinfer.generation import GenerationRequest

MAX_GONE = 64  # entries of removed requests that a backlog keeps before it is put in order


@dataclass
class _Backlog:
    """What one tenant has waiting."""

    num_waiting: int = 0
    # (priority, number of arrival, id); entries of removed requests stay until they are met.
    order: list[tuple[int, int, str]] = field(default_factory=list)


class Turns:
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
