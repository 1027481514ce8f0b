"""Puts a load on a server: a fixed concurrency, or a rate, from one or several processes.

A closed loop sends the next request when one ends. An open loop sends each request when it is due,
however many are in flight, and measures from that time, so a slow server cannot hide its delay.

`python -m deepinfer.bench.load` is one of several client processes. It reads its plan as a line of
JSON on stdin, since the plan has the API key, which must not appear on a command line. It writes
`ready` after its warm-up, reads the start time, and writes its LoadResult as msgpack.
"""

from __future__ import annotations

import asyncio
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from random import Random
from typing import Any, Literal, TypeVar

import msgspec

from deepinfer.bench.client import BenchClient, Prompt, RequestResult, Target
from deepinfer.bench.prompts import PromptMaker, PromptPlan
from deepinfer.errors import BenchError

MAX_MADE_AHEAD = 2_000  # prompts made before the clock starts
START_MARGIN_S = 0.05  # for the start time to reach every process
READY = b"ready\n"
PROCESS_LOST = "a process of the benchmark ended"
LOST_HINT = "its last output is above"

ArrivalKind = Literal["poisson", "fixed"]
# Called when the process is ready; returns the start time by time.perf_counter(), which is the
# same clock in all processes of a machine.
WaitForStart = Callable[[], Awaitable[float]]
T = TypeVar("T")


def arrivals(
    kind: ArrivalKind, rate_per_s: float, rng: Random, *, phase: float = 0.0
) -> Iterator[float]:
    """Arrival times of an open loop, in seconds after its start, without end.

    `phase` shifts fixed arrivals by a part of their interval, for processes that share a rate.
    """
    at_s = 0.0
    for index in itertools.count():
        at_s = (
            at_s + rng.expovariate(rate_per_s)
            if kind == "poisson"
            else (index + phase) / rate_per_s
        )
        yield at_s


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One load, or the share of one of `num_shares` processes."""

    target: Target
    prompts: PromptPlan
    concurrency: int | None  # of a closed loop; either this or a rate
    rate_per_s: float | None
    arrivals: ArrivalKind = "poisson"
    num_requests: int | None  # of all shares together; None: as many as fit into `duration_s`
    duration_s: float | None  # in which requests are sent; all of them are awaited
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
        """Indices of this share's requests. Those of the warm-up are negative."""
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


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that one process sent, and what the client itself took."""

    requests: list[RequestResult]
    started_at: float
    ended_at: float  # of the last request
    cpu_share: float  # of one core, used by the client
    max_lag_s: float  # largest delay between due time and sending in an open loop


async def run_load(plan: LoadPlan, wait_for_start: WaitForStart) -> LoadResult:
    """Warm up, wait for the start, send the load and wait for every request."""
    # Each stream has its own connection; the default limit of open files is too low for them.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    client = BenchClient(plan.target, timeout_s=plan.timeout_s)
    maker = PromptMaker(plan.prompts)
    try:
        await _warm_up(plan, client, maker)
        run = _LoadRun(plan, client, maker)
        start_at = await wait_for_start()
        cpu_at = time.process_time()
        await asyncio.sleep(max(start_at - time.perf_counter(), 0))
        await (run.run_closed(start_at) if plan.rate_per_s is None else run.run_open(start_at))
        ended_at = time.perf_counter()
        cpu_s = time.process_time() - cpu_at
    finally:
        client.close()
    return LoadResult(
        requests=run.results,
        started_at=start_at,
        ended_at=ended_at,
        cpu_share=cpu_s / (ended_at - start_at),
        max_lag_s=run.max_lag_s,
    )


class _LoadRun:
    """The measured part of a load."""

    def __init__(self, plan: LoadPlan, client: BenchClient, maker: PromptMaker) -> None:
        self.results: list[RequestResult] = []
        self.max_lag_s = 0.0
        self._plan = plan
        self._client = client
        self._prompts = _make_ahead(maker, plan)

    async def run_closed(self, start_at: float) -> None:
        end_at = None if self._plan.duration_s is None else start_at + self._plan.duration_s

        async def stream() -> None:
            while end_at is None or time.perf_counter() < end_at:
                prompt = next(self._prompts, None)
                if prompt is None:
                    return
                self.results.append(await self._client.send(prompt))

        streams = (stream() for _ in range(self._plan.own_concurrency))
        await asyncio.gather(*streams)

    async def run_open(self, start_at: float) -> None:
        plan = self._plan
        assert plan.rate_per_s is not None
        offsets = arrivals(
            plan.arrivals,
            plan.rate_per_s / plan.num_shares,
            plan.prompts.rng(f"arrivals:{plan.share}"),
            phase=plan.share / plan.num_shares,
        )
        async with asyncio.TaskGroup() as group:
            for prompt, offset_s in zip(self._prompts, offsets, strict=False):
                if plan.duration_s is not None and offset_s > plan.duration_s:
                    return
                due_at = start_at + offset_s
                await asyncio.sleep(max(due_at - time.perf_counter(), 0))
                self.max_lag_s = max(self.max_lag_s, time.perf_counter() - due_at)
                group.create_task(self._send(prompt, due_at))

    async def _send(self, prompt: Prompt, due_at: float) -> None:
        self.results.append(await self._client.send(prompt, due_at=due_at))


def _make_ahead(maker: PromptMaker, plan: LoadPlan) -> Iterator[Prompt]:
    """Prompts in order, the first ones made now, because making them delays reading responses."""
    indices = plan.indices
    num_ahead = MAX_MADE_AHEAD if plan.num_requests is not None else plan.concurrency or 0
    made = [maker.make(index) for index in itertools.islice(indices, num_ahead)]
    return itertools.chain(made, map(maker.make, indices))


async def _warm_up(plan: LoadPlan, client: BenchClient, maker: PromptMaker) -> None:
    """Requests that do not count, with the concurrency of the load."""
    num_streams = plan.own_warm_up if plan.concurrency is None else plan.own_concurrency
    # Other prompts than the measured ones, which the prefix cache must not know.
    indices = iter(range(-1 - plan.share, -1 - plan.num_warm_up, -plan.num_shares))

    async def stream() -> None:
        for index in indices:
            await client.send(maker.make(index))

    await asyncio.gather(*(stream() for _ in range(num_streams)))


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:  # there is none for PyPy
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def run_shares(plan: LoadPlan, num_processes: int) -> list[LoadResult]:
    """Run the load in this process or in several. Raises BenchError if one of them ends early."""
    if num_processes == 1:

        async def start_now() -> float:
            return time.perf_counter()

        return [run_async(run_load(plan, start_now))]
    command = [sys.executable, "-m", "deepinfer.bench.load"]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(num_processes)
    ]
    try:
        for worker, share in zip(workers, split(plan, num_processes), strict=True):
            _write_line(worker, msgspec.json.encode(share))
        for worker in workers:
            if _pipe(worker.stdout).readline() != READY:
                raise BenchError(f"{PROCESS_LOST} before it was ready", hint=LOST_HINT)
        start_at = time.perf_counter() + START_MARGIN_S
        for worker in workers:
            _write_line(worker, msgspec.json.encode(start_at))
        return [
            msgspec.msgpack.decode(_pipe(worker.stdout).read(), type=LoadResult)
            for worker in workers
        ]
    except msgspec.DecodeError:
        raise BenchError(f"{PROCESS_LOST} before its load did", hint=LOST_HINT) from None
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                _pipe(pipe).close()


def _write_line(worker: subprocess.Popen[bytes], line: bytes) -> None:
    pipe = _pipe(worker.stdin)
    pipe.write(line + b"\n")
    pipe.flush()


def _pipe(pipe: Any) -> Any:
    assert pipe is not None
    return pipe


def main() -> None:
    async def wait_for_start() -> float:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        line = await asyncio.to_thread(sys.stdin.buffer.readline)
        return msgspec.json.decode(line, type=float)

    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=LoadPlan)
    result = run_async(run_load(plan, wait_for_start))
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))


if __name__ == "__main__":
    main()
