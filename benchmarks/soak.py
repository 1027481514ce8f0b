"""Everything at once for a long time: traffic of all kinds, bad requests, disconnects and kills.

    .venv/bin/python benchmarks/soak.py --minutes 60

Afterwards nothing may run, wait or be kept, memory and file descriptors must be where they were,
and every answer that was given must be the right one. The exit status is 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
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

PROMPTS = ("Once upon a time", "The little fox was", "What is 3 + 4?", "One day, a bird")
NUM_TOKENS = 48
NUM_CLIENTS = 12
KILL_EVERY_S = 10.0
MAX_STAY_S = 0.3  # of a client that leaves
WARM_UP_S = 12.0
OPTIONS = ("--hang-timeout", "1", "--resume-attempts", "100", "--max-waiting-requests", "32")
# Each with the only status that it may be answered with.
BAD_BODIES: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b'{"prompt": ""}', 400),
    (b'{"prompt": "a", "temperature": -1}', 400),
    (b'{"prompt": "a", "max_tokens": 1e999}', 400),
    (b'{"prompt": [999999999]}', 400),
    (b'{"prompt": "a", "model": "nobody"}', 404),
    (b'{"prompt": "a", "guided_regex": "("}', 400),
    (b'{"prompt": "' + b"a " * 30_000 + b'"}', 400),
    (b"[" * 100_000, 400),
)


class Soak:
    """One client's acts, and what has been seen of all of them."""

    def __init__(self, http: httpx.AsyncClient, expected: dict[str, Answer], seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._http = http
        self._expected = expected
        self._rng = random.Random(seed)
        acts: dict[Callable[[], Awaitable[None]], int] = {
            self.read_stream: 5,
            self.read_whole: 3,
            self.leave: 3,
            self.ask_nonsense: 3,
            self.chat: 2,
            self.ask_about: 1,
        }
        self._acts, self._weights = list(acts), list(acts.values())

    async def run_until(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            [act] = self._rng.choices(self._acts, self._weights)
            try:
                await act()
            except httpx.HTTPStatusError as error:
                self._note_refusal(error.response)
                await asyncio.sleep(0.1)
            except (httpx.HTTPError, RuntimeError) as error:
                self.faults[f"{act.__name__}: {type(error).__name__}: {error}"] += 1

    def _note_refusal(self, response: httpx.Response) -> None:
        """Between two lives of the engine, and when the queue is full, a client tries again."""
        if response.status_code in (429, 503) and "retry-after" in response.headers:
            self.counts[f"refused with {response.status_code}"] += 1
        else:
            self.faults[f"status {response.status_code} for a good request"] += 1

    async def read_stream(self) -> None:
        prompt = self._rng.choice(PROMPTS)
        answer, _ = await stream(self._http, prompt=prompt, max_tokens=NUM_TOKENS, ignore_eos=True)
        self._compare("streams", answer, prompt)

    async def read_whole(self) -> None:
        prompt = self._rng.choice(PROMPTS)
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0}
        response = await self._http.post("/v1/completions", json=body)
        response.raise_for_status()
        choice, usage = response.json()["choices"][0], response.json()["usage"]
        answer = Answer(choice["text"], choice["finish_reason"], usage["completion_tokens"])
        self._compare("whole answers", answer, prompt)

    async def leave(self) -> None:
        """Go away at a random moment."""
        body = {
            "prompt": self._rng.choice(PROMPTS),
            "max_tokens": 400,
            "ignore_eos": True,
            "stream": self._rng.random() < 0.5,
        }
        post = self._http.post("/v1/completions", json=body)
        try:
            await asyncio.wait_for(post, self._rng.uniform(0, MAX_STAY_S))
        except TimeoutError:
            self.counts["disconnects"] += 1

    async def ask_nonsense(self) -> None:
        body, status = self._rng.choice(BAD_BODIES)
        headers = {"content-type": "application/json"}
        response = await self._http.post("/v1/completions", content=body, headers=headers)
        if response.status_code in (429, 503):
            response.raise_for_status()
        self.counts["bad requests"] += 1
        if response.status_code != status or "error" not in response.json():
            self.faults[f"{response.status_code} for {body[:40]!r}"] += 1

    async def chat(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self._rng.choice(PROMPTS)}],
            "max_tokens": NUM_TOKENS,
            "n": self._rng.randint(1, 3),
        }
        response = await self._http.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        self.counts["chats"] += 1

    async def ask_about(self) -> None:
        for path in ("/health/live", "/metrics", "/v1/models"):
            response = await self._http.get(path)
            if response.status_code != 200:
                self.faults[f"status {response.status_code} of {path}"] += 1
        self.counts["looks at health, metrics and models"] += 1

    def _compare(self, what: str, answer: Answer, prompt: str) -> None:
        self.counts[what] += 1
        if answer != self._expected[prompt]:
            self.faults["wrong text, finish reason or usage"] += 1


async def kill_until(server: Server, http: httpx.AsyncClient, deadline: float, seed: int) -> int:
    rng = random.Random(seed)
    num_kills = 0
    while time.monotonic() + KILL_EVERY_S < deadline:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * KILL_EVERY_S)
        pid = server.engine_pid
        if pid is not None and time.monotonic() < deadline:
            os.kill(pid, rng.choice([signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV]))
            num_kills += 1
            while server.engine_pid == pid:
                await asyncio.sleep(0.02)
            await wait_ready(http)
    return num_kills


async def ask_all(http: httpx.AsyncClient) -> dict[str, Answer]:
    asked = [
        stream(http, prompt=prompt, max_tokens=NUM_TOKENS, ignore_eos=True) for prompt in PROMPTS
    ]
    answers = await asyncio.gather(*asked)
    return {prompt: answer for prompt, (answer, _) in zip(PROMPTS, answers, strict=True)}


async def run(server: Server, duration_s: float, seed: int) -> dict[str, Any]:
    # What is allocated for the first crowd is no leak, so there is one before the counting begins.
    async with connect(server) as http:
        expected = await ask_all(http)
        warming = Soak(http, expected, seed)
        deadline = time.monotonic() + min(WARM_UP_S, duration_s)
        await asyncio.gather(*(warming.run_until(deadline) for _ in range(NUM_CLIENTS)))
    before = await server.settle()
    async with connect(server) as http:
        soak = Soak(http, expected, seed)
        deadline = time.monotonic() + duration_s
        killing = asyncio.create_task(kill_until(server, http, deadline, seed))
        await asyncio.gather(*(soak.run_until(deadline) for _ in range(NUM_CLIENTS)))
        num_kills = await killing
        await wait_ready(http)
        gauges = await wait_at_rest(http)
    after = await server.settle()
    return {
        "seconds": duration_s,
        "kills": num_kills,
        **dict(sorted(soak.counts.items())),
        **describe_rest(gauges, before, after),
        "faults": [
            *(f"{count} times: {fault}" for fault, count in soak.faults.items()),
            *find_leaks(gauges, before, after),
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine-dir", type=Path, help="default: the sample, built at fp32")
    arguments = parser.parse_args()
    duration_s = arguments.minutes * 60
    return run_and_report(
        lambda server: run(server, duration_s, arguments.seed), OPTIONS, arguments.engine_dir
    )


if __name__ == "__main__":
    sys.exit(main())
