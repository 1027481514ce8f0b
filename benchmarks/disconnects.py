"""Clients that go away at random moments: what is left of them, and how soon their slots are free.

    .venv/bin/python benchmarks/disconnects.py --disconnects 1000

First the crowd: requests queued, read, generated, streamed or not, whose clients leave at any time,
also in the midst of sending. Afterwards nothing may run, wait or be kept. Then the time: an engine
with one slot runs a request while another waits; the client of the first leaves, and the second's
first token says when the slot was free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from served import Server, connect, find_leaks, wait_at_rest

sys.path.insert(0, str(Path(__file__).parents[1]))

NUM_CLIENTS = 40
MAX_STAY_S = 0.25
STEP_US = 2_000
NUM_TOKENS = 400
PATHS = {"/v1/completions": "prompt", "/v1/chat/completions": "messages"}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
OPTIONS = ("--max-waiting-requests", "24", "--log-level", "warning")


def make_request(rng: random.Random) -> bytes:
    path = rng.choice(list(PATHS))
    text = "a b c " * rng.choice([1, 1, 10, 40])
    asked = text if path == "/v1/completions" else [{"role": "user", "content": text}]
    fields = {
        PATHS[path]: asked,
        "max_tokens": rng.choice([1, 30, 60]),
        "n": rng.choice([1, 1, 3]),
        "stream": rng.random() < 0.5,
        "ignore_eos": True,
    }
    body = json.dumps(fields).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def leave_at_random(server: Server, rng: random.Random) -> None:
    url = httpx.URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    request = make_request(rng)
    is_whole = rng.random() < 0.9
    writer.write(request if is_whole else request[: rng.randrange(len(request))])
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(reader.read(rng.choice([1, 2**20])), rng.uniform(0, MAX_STAY_S))
    if rng.random() < 0.3:
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE
        )
    writer.close()


async def run_crowd(server: Server, num_disconnects: int, seed: int) -> dict[str, Any]:
    remaining = iter(range(num_disconnects))

    async def be_a_client(rng: random.Random) -> None:
        for _ in remaining:
            await leave_at_random(server, rng)

    async with connect(server) as http:
        before = await server.settle()
        await asyncio.gather(*(be_a_client(random.Random(seed + i)) for i in range(NUM_CLIENTS)))
        gauges = await wait_at_rest(http)
        after = await server.settle()
        metrics = (await http.get("/metrics")).text
        answer = await http.post("/v1/completions", json={"prompt": "next", "max_tokens": 4})
    faults = find_leaks(gauges, before, after)
    if answer.status_code != 200:
        faults.append(f"the next request got {answer.status_code}")
    found = re.findall(r"^deepinfer_requests_cancelled_total(?:\{.*\})? (\S+)$", metrics, re.M)
    return {
        "disconnects": num_disconnects,
        "cancelled": sum(map(float, found)),
        **gauges,
        "faults": faults,
    }


async def time_one(http: httpx.AsyncClient, *, is_stream: bool) -> float:
    """Milliseconds from the end of the running request's connection to the other's first token."""
    body = {"prompt": "a b c", "max_tokens": NUM_TOKENS, "ignore_eos": True}
    running = asyncio.create_task(_drain(http, {**body, "stream": is_stream}))
    await asyncio.sleep(0.03)
    first_token_at = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(
        _drain(http, {**body, "max_tokens": 1, "stream": True}, first_token_at)
    )
    await asyncio.sleep(0.03)
    left_at = time.monotonic()
    running.cancel()
    elapsed_ms = (await first_token_at - left_at) * 1e3
    await waiting
    return float(elapsed_ms)


async def _drain(
    http: httpx.AsyncClient, body: dict[str, Any], first_at: asyncio.Future[float] | None = None
) -> None:
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for _ in response.aiter_raw():
            if first_at is not None and not first_at.done():
                first_at.set_result(time.monotonic())


async def measure_times(server: Server, num_times: int) -> dict[str, Any]:
    async with connect(server) as http:
        times = sorted([await time_one(http, is_stream=i % 2 == 0) for i in range(num_times)])
    return {
        "measured": num_times,
        "step_ms": STEP_US / 1e3,
        "free_after_ms": {
            "p50": round(times[num_times // 2], 1),
            "p99": round(times[int(0.99 * (num_times - 1))], 1),
            "max": round(times[-1], 1),
        },
    }


def main() -> int:
    from tests.server.serving import make_echo_engine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--times", type=int, default=200, help="slots whose freeing is timed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine-dir", type=Path, help="default: one that repeats its prompt")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slots = {name: Path(folder) / name for name in ("few", "one")}
        make_echo_engine(slots["few"] / "echo", step_us=STEP_US, max_batch_size=4)
        make_echo_engine(slots["one"] / "echo", step_us=STEP_US, max_batch_size=1)
        server = Server(arguments.engine_dir or slots["few"], *OPTIONS)
        try:
            report = asyncio.run(run_crowd(server, arguments.disconnects, arguments.seed))
        finally:
            status = server.close()
        if arguments.times:
            server = Server(slots["one"])
            try:
                report |= asyncio.run(measure_times(server, arguments.times))
            finally:
                status |= server.close()
    if status:
        report["faults"].append(f"a server ended with status {status}")
    print(json.dumps(report, indent=2))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
