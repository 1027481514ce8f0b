"""A real `deepinfer serve` for the scripts that break things: start it, ask it, read its gauges."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

DEADLINE_S = 60.0
AT_REST = (
    "trtllm_num_requests_running",
    "trtllm_num_requests_waiting",
    "trtllm_kv_cache_utilization",
)
COUNTERS = ("deepinfer_requests_resumed_total", "deepinfer_engine_restarts_total")


class Server:
    """The server in a process of its own; `options` are those of the command."""

    def __init__(self, engine_dir: Path, *options: str) -> None:
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        command = [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(engine_dir)]
        self._process = subprocess.Popen(
            [*command, "--port", "0", *options], stdout=subprocess.DEVNULL, stderr=self._log
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

    async def settle(self) -> tuple[float, int]:
        """Memory in MiB and file descriptors of the API process, once its clients have gone."""
        deadline = time.monotonic() + 5
        while self._has_clients and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return round(self.process.memory_info().rss / 2**20, 1), self.process.num_fds()

    @property
    def _has_clients(self) -> bool:
        connections = self.process.net_connections("tcp")
        return any(each.status == psutil.CONN_ESTABLISHED for each in connections)

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            found = re.search(pattern, self.log)
            if found is not None:
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"the server did not come up:\n{self.log}")

    def close(self) -> int:
        """The exit status after SIGTERM."""
        self._process.terminate()
        try:
            return self._process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def connect(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=DEADLINE_S, limits=limits)


@dataclass(frozen=True)
class Answer:
    """What a client has of a stream once it has ended."""

    text: str
    finish_reason: str
    completion_tokens: int


async def stream(http: httpx.AsyncClient, **fields: Any) -> tuple[Answer, float]:
    """One greedy streamed completion, and the longest time between two of its events.

    Raises what a client would: httpx's errors, or RuntimeError for an error in the stream.
    """
    body = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}} | fields
    text, reason, tokens, is_done = "", "", 0, False
    last_at, longest_s = time.monotonic(), 0.0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line or line.startswith(":"):  # comments keep a silent connection alive
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
    return Answer(text, reason, tokens), longest_s


async def wait_ready(http: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (await http.get("/health/ready")).status_code != 200:
        if time.monotonic() > deadline:
            raise SystemExit("the engine did not come back")
        await asyncio.sleep(0.02)


async def read_gauges(http: httpx.AsyncClient) -> dict[str, float]:
    """What runs, waits and is kept now, and how often the engine has been started again."""
    text = (await http.get("/metrics")).text
    return {
        name: sum(float(value) for value in re.findall(rf"^{name}\{{.*\}} (\S+)$", text, re.M))
        for name in (*AT_REST, *COUNTERS)
    }


async def wait_at_rest(http: httpx.AsyncClient) -> dict[str, float]:
    """The gauges once nothing runs; as they are after some seconds if that never comes."""
    deadline = time.monotonic() + 5
    gauges = await read_gauges(http)
    while any(gauges[name] for name in AT_REST) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        gauges = await read_gauges(http)
    return gauges


def find_leaks(
    gauges: dict[str, float], before: tuple[float, int], after: tuple[float, int]
) -> list[str]:
    """What is left of requests that have ended, in words."""
    leaks = [f"{name}: {gauges[name]}" for name in AT_REST if gauges[name]]
    if after[0] > before[0] + 20:
        leaks.append(f"memory grew from {before[0]} to {after[0]} MiB")
    if after[1] > before[1] + 4:
        leaks.append(f"file descriptors grew from {before[1]} to {after[1]}")
    return leaks


def run_and_report(
    run: Callable[[Server], Coroutine[None, None, dict[str, Any]]],
    options: Sequence[str],
    engine_dir: Path | None,
) -> int:
    """Serve, let `run` do its worst and print its report as JSON; 1 if that has faults.

    The engine is the sample where none is given.
    """
    with tempfile.TemporaryDirectory() as folder:
        server = Server(engine_dir or build_sample(Path(folder)), *options)
        try:
            report = asyncio.run(run(server))
        finally:
            status = server.close()
    if status:
        report["faults"].append(f"the server ended with status {status}")
    print(json.dumps(report, indent=2))
    return 1 if report["faults"] else 0


def describe_rest(
    gauges: dict[str, float], before: tuple[float, int], after: tuple[float, int]
) -> dict[str, Any]:
    """What a server holds and has counted when all is over, next to what it held before."""
    return {
        "api_mib_before_after": [before[0], after[0]],
        "api_fds_before_after": [before[1], after[1]],
        **gauges,
    }


def build_sample(folder: Path) -> Path:
    """The sample at fp32, where greedy text is exact."""
    command = [sys.executable, "-m", "deepinfer", "build", "--model", "sample"]
    subprocess.run([*command, "--precision", "fp32", "--output", str(folder)], check=True)
    return folder
