"""Puts a load on a server: so many requests at once, or so many a second, and waits for all.

A closed loop sends the next request when one ends. An open loop sends each when it is due, however
many are under way, and counts its time from then: a server that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import time
from collections.abc import Awaitable, Callable, Iterator

import msgspec

from deepinfer.bench.arrivals import ArrivalKind, arrivals
from deepinfer.bench.client import BenchClient
from deepinfer.bench.outcome import LoadResult, Outcome
from deepinfer.bench.prompts import PromptMaker, PromptPlan
from deepinfer.bench.target import Prompt, Target

MAX_MADE_AHEAD = 2_000  # prompts, made before the clock starts
# Told how the process is ready; returns when the load shall start, by time.perf_counter().
Starter = Callable[[], Awaitable[float]]


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One load, or the part of it that one of `num_shares` processes puts on."""

    target: Target
    prompts: PromptPlan
    concurrency: int | None  # of a closed loop; this or a rate
    rate_per_s: float | None
    arrivals: ArrivalKind = "poisson"
    num_requests: int | None  # of all shares together; None: as many as fit `duration_s`
    duration_s: float | None  # in which requests are sent; those under way are waited for
    num_warm_up: int
    timeout_s: float
    share: int = 0
    num_shares: int = 1

    @property
    def own_concurrency(self) -> int:
        assert self.concurrency is not None
        return _part(self.concurrency, self.share, self.num_shares)

    @property
    def own_warm_up(self) -> int:
        return _part(self.num_warm_up, self.share, self.num_shares)

    @property
    def indices(self) -> Iterator[int]:
        """Of this share's requests. Those of the warm-up are negative."""
        if self.num_requests is None:
            return itertools.count(self.share, self.num_shares)
        return iter(range(self.share, self.num_requests, self.num_shares))


def split(plan: LoadPlan, num_shares: int) -> list[LoadPlan]:
    return [
        msgspec.structs.replace(plan, share=share, num_shares=num_shares)
        for share in range(num_shares)
    ]


def _part(whole: int, share: int, num_shares: int) -> int:
    return whole // num_shares + (share < whole % num_shares)


async def run_load(plan: LoadPlan, start: Starter) -> LoadResult:
    """Warm up, wait for the start, and come back when every request has ended."""
    _allow_many_connections()
    client = BenchClient(plan.target, timeout_s=plan.timeout_s)
    maker = PromptMaker(plan.prompts)
    try:
        await _warm_up(plan, client, maker)
        run = _Run(plan, client, maker)
        start_at = await start()
        cpu_at = time.process_time()
        await asyncio.sleep(max(start_at - time.perf_counter(), 0))
        await (run.closed(start_at) if plan.rate_per_s is None else run.open(start_at))
        ended_at = time.perf_counter()
        cpu_s = time.process_time() - cpu_at
    finally:
        client.close()
    return LoadResult(
        outcomes=run.outcomes,
        started_at=start_at,
        ended_at=ended_at,
        cpu_share=cpu_s / (ended_at - start_at),
        max_lag_s=run.max_lag_s,
    )


class _Run:
    """The measured part of a load."""

    def __init__(self, plan: LoadPlan, client: BenchClient, maker: PromptMaker) -> None:
        self.outcomes: list[Outcome] = []
        self.max_lag_s = 0.0
        self._plan = plan
        self._client = client
        self._prompts = _make_ahead(maker, plan)

    async def closed(self, start_at: float) -> None:
        end_at = None if self._plan.duration_s is None else start_at + self._plan.duration_s

        async def stream() -> None:
            while end_at is None or time.perf_counter() < end_at:
                prompt = next(self._prompts, None)
                if prompt is None:
                    return
                self.outcomes.append(await self._client.ask(prompt))

        streams = (stream() for _ in range(self._plan.own_concurrency))
        await asyncio.gather(*streams)

    async def open(self, start_at: float) -> None:
        async with asyncio.TaskGroup() as group:
            for prompt, offset_s in zip(self._prompts, self._offsets(), strict=False):
                if self._plan.duration_s is not None and offset_s > self._plan.duration_s:
                    return
                due_at = start_at + offset_s
                await asyncio.sleep(max(due_at - time.perf_counter(), 0))
                self.max_lag_s = max(self.max_lag_s, time.perf_counter() - due_at)
                group.create_task(self._ask(prompt, due_at))

    async def _ask(self, prompt: Prompt, due_at: float) -> None:
        self.outcomes.append(await self._client.ask(prompt, due_at=due_at))

    def _offsets(self) -> Iterator[float]:
        plan = self._plan
        assert plan.rate_per_s is not None
        rng = plan.prompts.rng(f"arrivals:{plan.share}")
        rate_per_s = plan.rate_per_s / plan.num_shares
        return arrivals(plan.arrivals, rate_per_s, rng, phase=plan.share / plan.num_shares)


def _make_ahead(maker: PromptMaker, plan: LoadPlan) -> Iterator[Prompt]:
    """Prompts in order, the first ones made now: making them takes time from reading answers."""
    indices = plan.indices
    most = MAX_MADE_AHEAD if plan.num_requests is not None else plan.concurrency or 0
    made = [maker.make(index) for index in itertools.islice(indices, most)]
    return itertools.chain(made, map(maker.make, indices))


async def _warm_up(plan: LoadPlan, client: BenchClient, maker: PromptMaker) -> None:
    """Requests that nobody counts, as many at once as the load will have."""
    num_streams = plan.own_warm_up if plan.concurrency is None else plan.own_concurrency
    # Prompts of their own: the server's prefix cache shall not know those that are measured.
    left = iter(range(-1 - plan.share, -1 - plan.num_warm_up, -plan.num_shares))

    async def stream() -> None:
        for index in left:
            await client.ask(maker.make(index))

    await asyncio.gather(*(stream() for _ in range(num_streams)))


def _allow_many_connections() -> None:
    """Each stream has a connection of its own, and the usual limit is for a desktop's programs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
