"""What serving over HTTP costs: DeepInfer against the bare pipeline, side by side in one run.

    .venv/bin/python benchmarks/http_overhead.py --output /tmp/http-overhead

Both load the same engine (494M random parameters, int8) with the same settings and get the same
prompts at the same moment: `concurrency` streams at once, each of so many tokens in and out. The
two take turns within each repetition, so that whatever else the machine does meets both. Reported
are medians, and the median of the ratios within a repetition.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from bare import BarePipeline
from random_model import make_random_checkpoint

from deepinfer.device import read_machine

PROMPT_IDS = range(300, 100_000)
LOAD_DEADLINE_S = 120.0


class Server:
    """`deepinfer serve` on a free port, and a client as light as can be."""

    def __init__(self, engine: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(engine)]
            + ["--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait_ready()

    def run(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Seconds until each prompt, all sent at once, has its `max_tokens`; streaming."""
        return asyncio.run(self._run(prompts, max_tokens))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    async def _run(self, prompts: list[list[int]], max_tokens: int) -> float:
        started_at = time.perf_counter()
        counts = await asyncio.gather(*(self._stream(prompt, max_tokens) for prompt in prompts))
        elapsed_s = time.perf_counter() - started_at
        assert counts == [max_tokens] * len(prompts), counts
        return elapsed_s

    async def _stream(self, prompt: list[int], max_tokens: int) -> int:
        """One streamed completion; the number of tokens that its usage chunk reports."""
        body = json.dumps(
            {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        usage = b"{}"
        async for line in reader:
            if line.startswith(b"data: {") and b'"completion_tokens"' in line:
                usage = line[len(b"data: ") :]
        writer.close()
        return int(json.loads(usage)["usage"]["completion_tokens"])

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + LOAD_DEADLINE_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        raise SystemExit("the server did not become ready")


@contextmanager
def both(engine: Path) -> Iterator[tuple[BarePipeline, Server]]:
    bare, server = BarePipeline(engine), Server(engine)
    try:
        yield bare, server
    finally:
        bare.close()
        server.close()


def build(folder: Path, precision: str) -> Path:
    make_random_checkpoint(folder / "checkpoint")
    subprocess.run(
        [sys.executable, "-m", "deepinfer", "build", "--model", str(folder / "checkpoint")]
        + ["--output", str(folder), "--name", precision, "--precision", precision]
        + ["--max-seq-len", "1024", "--max-batch-size", "32"],
        check=True,
    )
    return folder / precision


def measure(arguments: argparse.Namespace, engine: Path) -> dict[int, list[tuple[float, float]]]:
    """(bare, over HTTP) in output tokens per second, by concurrency, one pair a repetition."""
    rng = random.Random(0)
    rates: dict[int, list[tuple[float, float]]] = {n: [] for n in arguments.concurrency}
    with both(engine) as (bare, server):
        for repetition in range(arguments.repetitions + 1):
            for concurrency in arguments.concurrency:
                # New prompts each time: the prefix cache must not answer for either.
                prompts = [rng.choices(PROMPT_IDS, k=arguments.tokens) for _ in range(concurrency)]
                runs = [bare.run, server.run]
                if repetition % 2:
                    runs.reverse()
                num_tokens = concurrency * arguments.tokens
                found = {run: num_tokens / run(prompts, arguments.tokens) for run in runs}
                if repetition:  # the first one warms up
                    rates[concurrency].append((found[bare.run], found[server.run]))
                print(
                    f"{repetition}: {concurrency:3} {found[bare.run]:8.1f} {found[server.run]:8.1f}"
                )
    return rates


def report(arguments: argparse.Namespace, rates: dict[int, list[tuple[float, float]]]) -> None:
    machine = read_machine()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("openvino-genai", "uvicorn"))
    print(f"\n{machine.cpu.name}, {machine.cpu.num_threads} CPUs")
    print(f"Python {platform.python_version()}, {libraries}")
    print(f"{arguments.precision}, {arguments.tokens} tokens in and out")
    print(f"median of {arguments.repetitions}\n")
    print("| streams | ratio | DeepInfer over HTTP, tokens/s | bare pipeline, tokens/s |")
    print("|---|---|---|---|")
    for concurrency, pairs in rates.items():
        ratio = statistics.median(http / bare for bare, http in pairs)
        bare_rate = statistics.median(bare for bare, _ in pairs)
        http_rate = statistics.median(http for _, http in pairs)
        print(f"| {concurrency} | {ratio:.3f} | {http_rate:.1f} | {bare_rate:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--tokens", type=int, default=64, help="in and out, each")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 32])
    arguments = parser.parse_args()
    engine = build(arguments.output, arguments.precision)
    report(arguments, measure(arguments, engine))


if __name__ == "__main__":
    main()
