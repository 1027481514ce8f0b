"""A process that puts on its share of a load: `python -m deepinfer.bench.worker`.

The plan comes as a line of JSON on stdin, with the key in it, which no command line shall show. The
worker says `ready` when it has warmed up, waits for the line with the moment to start, and writes
what came of it as msgpack. The clock is the machine's, so that moments mean the same in all.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from deepinfer.bench.load import LoadPlan, run_load, split
from deepinfer.bench.outcome import LoadResult
from deepinfer.errors import BenchError

READY = b"ready\n"
LOST = "a process of the benchmark ended"
LAST_WORDS = "its last words are above"
START_MARGIN_S = 0.05  # in which the word to start reaches every worker

T = TypeVar("T")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """On the fastest loop that there is."""
    try:
        import uvloop
    except ImportError:  # there is none for PyPy
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def run_shares(plan: LoadPlan, num_processes: int) -> list[LoadResult]:
    """Put the load on from here, or from so many processes. Raises BenchError if one is lost."""
    if num_processes == 1:
        return [run_async(run_load(plan, _start_now))]
    workers = [_spawn(share) for share in split(plan, num_processes)]
    try:
        for worker in workers:
            if _pipe(worker.stdout).readline() != READY:
                raise BenchError(f"{LOST} before it was ready", hint=LAST_WORDS)
        start_at = time.perf_counter() + START_MARGIN_S
        for worker in workers:
            _say(worker, msgspec.json.encode(start_at))
        return [_read_result(worker) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                _pipe(pipe).close()


async def _start_now() -> float:
    return time.perf_counter()


def _spawn(plan: LoadPlan) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deepinfer.bench.worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _say(worker, msgspec.json.encode(plan))
    return worker


def _say(worker: subprocess.Popen[bytes], line: bytes) -> None:
    pipe = _pipe(worker.stdin)
    pipe.write(line + b"\n")
    pipe.flush()


def _pipe(pipe: Any) -> Any:
    assert pipe is not None
    return pipe


def _read_result(worker: subprocess.Popen[bytes]) -> LoadResult:
    try:
        return msgspec.msgpack.decode(_pipe(worker.stdout).read(), type=LoadResult)
    except msgspec.DecodeError:
        raise BenchError(f"{LOST} before its load did", hint=LAST_WORDS) from None


async def _start_when_told() -> float:
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    line = await asyncio.to_thread(sys.stdin.buffer.readline)
    return msgspec.json.decode(line, type=float)


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=LoadPlan)
    result = run_async(run_load(plan, _start_when_told))
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))


if __name__ == "__main__":
    main()
