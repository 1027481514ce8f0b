"""Kill the engine again and again under load, and see whether any client notices.

    .venv/bin/python benchmarks/kills.py --kills 200

A real server with a real engine (the sample at fp32, where greedy text is exact) gets streams
without a pause. At random moments the engine process is killed, stopped or crashed. Every stream
must end with the text and the usage that it has on a server that nobody touches, and afterwards
nothing may run, wait or be kept. The exit status is 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from served import (
    Answer,
    Server,
    connect,
    describe_rest,
    find_leaks,
    run_and_report,
    stream,
    wait_at_rest,
    wait_ready,
)

SIGNALS = {
    "killed": signal.SIGKILL,
    "stopped": signal.SIGSTOP,
    "crashed": signal.SIGSEGV,
    "aborted": signal.SIGABRT,
}
PROMPTS = (
    "Once upon a time",
    "Tell me a story about a small robot.",
    "The little fox was",
    "What is 3 + 4?",
    "Lily and Tom went to",
    "One day, a bird",
    "There was a big tree",
    "The sun was warm and",
)
NUM_TOKENS = 120
NUM_CLIENTS = 8
MAX_PAUSE_S = 1.5  # between the engine's being ready and the next kill, drawn evenly
OPTIONS = ("--hang-timeout", "1", "--resume-attempts", "100")


@dataclass
class Outcome:
    """What the clients saw."""

    num_streams: int = 0
    num_wrong: int = 0
    num_refused: int = 0  # between two lives of the engine; a client tries again
    pauses_s: list[float] = field(default_factory=list)  # the longest of each stream
    failures: list[str] = field(default_factory=list)


async def ask(http: httpx.AsyncClient, prompt: str) -> tuple[Answer, float]:
    return await stream(http, prompt=prompt, max_tokens=NUM_TOKENS, ignore_eos=True)


async def keep_asking(
    http: httpx.AsyncClient,
    expected: dict[str, Answer],
    outcome: Outcome,
    rng: random.Random,
    is_over: asyncio.Event,
) -> None:
    while not is_over.is_set():
        prompt = rng.choice(PROMPTS)
        try:
            answer, pause_s = await ask(http, prompt)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 503:
                outcome.num_refused += 1
                await asyncio.sleep(0.1)
            else:
                outcome.failures.append(f"status {error.response.status_code}")
        except (httpx.HTTPError, RuntimeError) as error:
            outcome.failures.append(str(error))
        else:
            outcome.num_streams += 1
            outcome.num_wrong += answer != expected[prompt]
            outcome.pauses_s.append(pause_s)


async def kill_again_and_again(
    server: Server, http: httpx.AsyncClient, num_kills: int, rng: random.Random
) -> tuple[dict[str, int], list[float]]:
    """How many times each thing was done, and how long the engine was away each time."""
    counts = dict.fromkeys(SIGNALS, 0)
    away_s: list[float] = []
    while sum(counts.values()) < num_kills:
        await asyncio.sleep(rng.uniform(0, MAX_PAUSE_S))
        name, pid = rng.choice(list(SIGNALS)), server.engine_pid
        if pid is None:
            continue
        os.kill(pid, SIGNALS[name])
        counts[name] += 1
        started_at = time.monotonic()
        while server.engine_pid == pid:
            await asyncio.sleep(0.02)
        await wait_ready(http)
        away_s.append(time.monotonic() - started_at)
    return counts, away_s


async def run(server: Server, num_kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    async with connect(server) as http:
        answers = await asyncio.gather(*(ask(http, prompt) for prompt in PROMPTS))
        expected = {prompt: answer for prompt, (answer, _) in zip(PROMPTS, answers, strict=True)}
    before = await server.settle()
    async with connect(server) as http:
        outcome, is_over = Outcome(), asyncio.Event()
        asking = [
            asyncio.create_task(keep_asking(http, expected, outcome, rng, is_over))
            for _ in range(NUM_CLIENTS)
        ]
        counts, away_s = await kill_again_and_again(server, http, num_kills, rng)
        is_over.set()
        await asyncio.gather(*asking)
        gauges = await wait_at_rest(http)
    after = await server.settle()
    return {
        "kills": counts,
        "streams": outcome.num_streams,
        "refused_and_tried_again": outcome.num_refused,
        "away_s_median": round(statistics.median(away_s), 2),
        "longest_pause_s": round(max(outcome.pauses_s, default=0.0), 2),
        **describe_rest(gauges, before, after),
        "faults": [*find_errors(outcome), *find_leaks(gauges, before, after)],
    }


def find_errors(outcome: Outcome) -> list[str]:
    errors = [f"failed: {failure}" for failure in outcome.failures]
    if outcome.num_wrong:
        errors.append(f"{outcome.num_wrong} streams with a wrong text, finish reason or usage")
    if not outcome.num_streams:
        errors.append("no stream ended at all")
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine-dir", type=Path, help="default: the sample, built at fp32")
    arguments = parser.parse_args()
    return run_and_report(
        lambda server: run(server, arguments.kills, arguments.seed), OPTIONS, arguments.engine_dir
    )


if __name__ == "__main__":
    sys.exit(main())
