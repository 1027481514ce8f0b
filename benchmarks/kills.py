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
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

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
HANG_TIMEOUT_S = 1.0
DEADLINE_S = 60.0


@dataclass
class Outcome:
    """What the clients saw."""

    num_streams: int = 0
    num_wrong: int = 0
    num_failed: int = 0
    num_refused: int = 0  # between two lives of the engine; a client tries again
    longest_pauses_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Text:
    text: str
    finish_reason: str
    completion_tokens: int


class Server:
    """`deepinfer serve` in a process of its own."""

    def __init__(self, engine_dir: Path) -> None:
        options = ["--port", "0", "--hang-timeout", str(HANG_TIMEOUT_S), "--resume-attempts", "100"]
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(engine_dir), *options],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
        )
        self.process = psutil.Process(self._process.pid)
        self.url = self._wait_for(r"Base URL +(http://\S+)/v1")

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def engine_pid(self) -> int | None:
        pids = [int(pid) for pid in re.findall(r"engine process (\d+) started", self.log)]
        return pids[-1] if pids and psutil.pid_exists(pids[-1]) else None

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            found = re.search(pattern, self.log)
            if found is not None:
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"the server did not come up:\n{self.log}")

    def close(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


async def stream(http: httpx.AsyncClient, prompt: str, outcome: Outcome | None = None) -> Text:
    """One greedy streamed completion. Raises what a client would."""
    body = {
        "prompt": prompt,
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, reason, tokens, is_done = "", "", 0, False
    last_at, longest_s = time.monotonic(), 0.0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line:
                continue
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                is_done = True
                break
            chunk = json.loads(data)
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            now = time.monotonic()
            longest_s, last_at = max(longest_s, now - last_at), now
            for choice in chunk["choices"]:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    if not is_done:
        raise RuntimeError("the stream ended without [DONE]")
    if outcome is not None:
        outcome.longest_pauses_s.append(longest_s)
    return Text(text, reason, tokens)


async def keep_asking(
    http: httpx.AsyncClient,
    expected: dict[str, Text],
    outcome: Outcome,
    rng: random.Random,
    is_over: asyncio.Event,
) -> None:
    while not is_over.is_set():
        prompt = rng.choice(PROMPTS)
        try:
            answer = await stream(http, prompt, outcome)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 503:
                outcome.num_failed += 1
                outcome.failures.append(f"status {error.response.status_code}")
                continue
            outcome.num_refused += 1
            await asyncio.sleep(0.1)
            continue
        except (httpx.HTTPError, RuntimeError) as error:
            outcome.num_failed += 1
            outcome.failures.append(str(error))
            continue
        outcome.num_streams += 1
        outcome.num_wrong += answer != expected[prompt]


async def wait_ready(http: httpx.AsyncClient) -> float:
    started_at = time.monotonic()
    while (await http.get("/health/ready")).status_code != 200:
        if time.monotonic() - started_at > DEADLINE_S:
            raise SystemExit("the engine did not come back")
        await asyncio.sleep(0.02)
    return time.monotonic() - started_at


async def kill_again_and_again(
    server: Server, http: httpx.AsyncClient, num_kills: int, rng: random.Random
) -> tuple[dict[str, int], list[float]]:
    """How many times each thing was done, and how long the engine was away each time."""
    counts = dict.fromkeys(SIGNALS, 0)
    away_s: list[float] = []
    while sum(counts.values()) < num_kills:
        await asyncio.sleep(rng.uniform(0, MAX_PAUSE_S))
        name = rng.choice(list(SIGNALS))
        pid = server.engine_pid
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


async def read_gauges(http: httpx.AsyncClient) -> dict[str, float]:
    names = ("trtllm_num_requests_running", "trtllm_num_requests_waiting",
             "trtllm_kv_cache_utilization", "deepinfer_requests_resumed_total",
             "deepinfer_engine_restarts_total")  # fmt: skip
    text = (await http.get("/metrics")).text
    return {
        name: sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.M))
        for name in names
    }


async def run(server: Server, num_kills: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=DEADLINE_S, limits=limits) as http:
        expected = dict(zip(PROMPTS, await asyncio.gather(*(stream(http, p) for p in PROMPTS)),
                            strict=True))  # fmt: skip
        before = (server.process.memory_info().rss, server.process.num_fds())
        outcome, is_over = Outcome(), asyncio.Event()
        asking = [
            asyncio.create_task(keep_asking(http, expected, outcome, rng, is_over))
            for _ in range(NUM_CLIENTS)
        ]
        counts, away_s = await kill_again_and_again(server, http, num_kills, rng)
        is_over.set()
        await asyncio.gather(*asking)
        await asyncio.sleep(0.5)  # the last step's figures
        gauges = await read_gauges(http)
        after = (server.process.memory_info().rss, server.process.num_fds())
    return {
        "kills": counts,
        "streams": outcome.num_streams,
        "wrong": outcome.num_wrong,
        "failed": outcome.num_failed,
        "refused_and_tried_again": outcome.num_refused,
        "failures": sorted(set(outcome.failures)),
        "away_s_median": round(statistics.median(away_s), 2),
        "longest_pause_s": round(max(outcome.longest_pauses_s, default=0.0), 2),
        "api_rss_mb": [round(rss / 2**20, 1) for rss in (before[0], after[0])],
        "api_fds": [before[1], after[1]],
        **gauges,
    }


def find_faults(report: dict[str, object]) -> list[str]:
    """What of the promise did not hold."""
    at_rest = ("trtllm_num_requests_running", "trtllm_num_requests_waiting",
               "trtllm_kv_cache_utilization")  # fmt: skip
    faults = [f"{name}: {report[name]}" for name in ("wrong", "failed", *at_rest) if report[name]]
    rss, fds = report["api_rss_mb"], report["api_fds"]
    assert isinstance(rss, list) and isinstance(fds, list)
    if rss[1] > rss[0] + 20:
        faults.append(f"memory grew from {rss[0]} to {rss[1]} MB")
    if fds[1] > fds[0] + 4:
        faults.append(f"file descriptors grew from {fds[0]} to {fds[1]}")
    if not report["streams"]:
        faults.append("no stream ended at all")
    return faults


def build_sample(folder: Path) -> Path:
    command = [sys.executable, "-m", "deepinfer", "build", "--model", "sample"]
    subprocess.run([*command, "--precision", "fp32", "--output", str(folder)], check=True)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine-dir", type=Path, help="default: the sample, built at fp32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine_dir = arguments.engine_dir or build_sample(Path(folder))
        server = Server(engine_dir)
        try:
            report = asyncio.run(run(server, arguments.kills, arguments.seed))
        finally:
            status = server.close()
    faults = find_faults(report)
    if status:
        faults.append(f"the server ended with status {status}")
    print(json.dumps({**report, "faults": faults}, indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
