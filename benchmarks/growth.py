"""What more of everything costs: streams, context, waiting requests, engines, open connections.

    .venv/bin/python benchmarks/growth.py --output /tmp/growth --engine engines/sample.int8.cpu
    .venv/bin/python benchmarks/growth.py --output /tmp/growth --only queue --waiting 10 1000

Each part serves for itself, with the simulated engine unless it says otherwise, so that the cost is
that of everything around the model. Memory is resident memory; that of the API process is without
the engines. The client is another process on the same cores. Every figure is the median of several
runs, each with servers of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from growth_held import Held, send_many, wait_for, warm
from growth_report import Row, Table, merge, write
from growth_server import MAX_CONTEXT, MeteredServer, serving, serving_simulated
from served import Server, connect

from deepinfer.bench.client import BenchClient
from deepinfer.bench.lengths import parse_lengths
from deepinfer.bench.outcome import Outcome
from deepinfer.bench.serve import ServeOptions, run_serve
from deepinfer.bench.summary import Summary, summarize
from deepinfer.bench.target import Prompt, parse_url
from deepinfer.bench.worker import run_async
from deepinfer.device import read_machine
from deepinfer.manifest import EngineManifest, read_engine

MIB, KB = 2**20, 1000
DEADLINE_S = 120.0
RUNNING, WAITING = "trtllm_num_requests_running", "trtllm_num_requests_waiting"
CONTEXT_OUTPUT = 32  # tokens
ENGINE_STREAMS = 64  # of all engines together


# Concurrency and context: closed loops of the load generator


def put_load(server: Server, concurrency: int, num_requests: int, prompt: int, out: int) -> Summary:
    options = ServeOptions(
        concurrency=concurrency,
        rate_per_s=None,
        num_requests=num_requests,
        input_lengths=parse_lengths(str(prompt)),
        output_lengths=parse_lengths(str(out)),
        seed=random.getrandbits(31),  # the prefix cache shall not know the prompts
    )
    target = msgspec.structs.replace(parse_url(server.url), ignores_eos=True)
    (run,) = run_serve(target, [options]).runs
    if run.summary.errors:
        raise SystemExit(f"requests failed: {run.summary.errors}")
    return run.summary


def measure_concurrency(server: MeteredServer, engine: str, levels: Sequence[int]) -> list[Row]:
    put_load(server, levels[0], 2 * levels[0], prompt=64, out=16)
    rows: list[Row] = []
    for level in levels:
        before = server.read_usage()
        summary = put_load(server, level, max(2 * level, 8), prompt=64, out=128)
        after = server.read_usage()
        num_tokens = summary.num_output_tokens or 0
        api_cpu_s = after.api_cpu_s - before.api_cpu_s
        assert summary.itl_s is not None
        rows.append(
            {
                "engine": engine,
                "streams": level,
                "output tokens/s": summary.output_tokens_per_s or 0.0,
                "gap p50, ms": summary.itl_s.p50 * 1e3,
                "gap p99, ms": summary.itl_s.p99 * 1e3,
                "API CPU, us a token": api_cpu_s / num_tokens * 1e6,
                "API CPU, cores": api_cpu_s / summary.elapsed_s,
                "API memory, MiB": after.api_bytes / MIB,
            }
        )
    return rows


def measure_context(server: MeteredServer, engine: str, levels: Sequence[int]) -> list[Row]:
    put_load(server, 1, 2, prompt=levels[0], out=CONTEXT_OUTPUT)
    rows: list[Row] = []
    for level in levels:
        before = server.read_usage()
        summary = put_load(server, 1, 8, prompt=level, out=CONTEXT_OUTPUT)
        after = server.read_usage()
        assert summary.prompt_tokens and summary.ttft_s and summary.itl_s
        rows.append(
            {
                "engine": engine,
                "prompt tokens": round(summary.prompt_tokens.mean),
                "time to first token p50, ms": summary.ttft_s.p50 * 1e3,
                "decode, tokens/s": 1 / summary.itl_s.mean,
                "API CPU, ms a request": (after.api_cpu_s - before.api_cpu_s) / 8 * 1e3,
                "API memory, MiB": after.api_bytes / MIB,
                "engine memory, MiB": after.engine_bytes / MIB,
            }
        )
    return rows


def fits(manifest: EngineManifest, level: int) -> bool:
    """Prompts of text come near their length only."""
    return level * 1.1 + CONTEXT_OUTPUT < manifest.limits.max_seq_len


def run_concurrency(arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for engine, step_us in (("simulated, 20 ms a step", 20_000), ("simulated, no pause", 0)):
        with serving_simulated(step_us=step_us) as server:
            rows += measure_concurrency(server, engine, arguments.concurrency)
    if arguments.engine is not None:
        manifest = read_engine(arguments.engine).manifest
        levels = [n for n in arguments.concurrency if n <= manifest.limits.max_batch_size]
        with serving(arguments.engine.parent, "--model", manifest.name) as server:
            rows += measure_concurrency(server, manifest.name, levels)
    return rows


def run_context(arguments: argparse.Namespace) -> list[Row]:
    with serving_simulated(step_us=2_000) as server:
        rows = measure_context(server, "simulated, 2 ms a step", arguments.context)
    if arguments.engine is not None:
        manifest = read_engine(arguments.engine).manifest
        levels = [level for level in arguments.context if fits(manifest, level)]
        with serving(arguments.engine.parent, "--model", manifest.name) as server:
            rows += measure_context(server, manifest.name, levels)
    return rows


# Waiting requests and open streams: connections that are held


async def measure_queue(server: MeteredServer, count: int) -> Row:
    """One request has the only slot while `count` wait; half of them leave, the rest are served."""
    async with connect(server) as http:
        # Not a stream, which the server would end because nobody reads it.
        holder = await Held.send(server.url, MAX_CONTEXT - 100, is_stream=False)
        await wait_for(http, RUNNING, 1)
        before, started_at = server.read_usage(), time.perf_counter()
        waiting = await send_many(server.url, count, max_tokens=1)
        await wait_for(http, WAITING, count)
        submitted, submitted_at = server.read_usage(), time.perf_counter()
        random.Random(1).shuffle(waiting)
        num_leaving = count // 2
        for held in waiting[:num_leaving]:
            held.leave()
        await wait_for(http, WAITING, count - num_leaving)
        left, left_at = server.read_usage(), time.perf_counter()
        holder.leave()
        await asyncio.gather(*(held.read_end() for held in waiting[num_leaving:]))
        ended, ended_at = server.read_usage(), time.perf_counter()
    num_served = count - num_leaving
    return {
        "waiting": count,
        "submission, us each": (submitted_at - started_at) / count * 1e6,
        "API CPU of it, us": (submitted.api_cpu_s - before.api_cpu_s) / count * 1e6,
        "API memory, kB each": (submitted.api_bytes - before.api_bytes) / count / KB,
        "engine memory, kB each": (submitted.engine_bytes - before.engine_bytes) / count / KB,
        "cancel, us each": (left_at - submitted_at) / num_leaving * 1e6,
        "API CPU of a cancel, us": (left.api_cpu_s - submitted.api_cpu_s) / num_leaving * 1e6,
        "to the end of all, us each": (ended_at - left_at) / num_served * 1e6,
        "API CPU to the end, us": (ended.api_cpu_s - left.api_cpu_s) / num_served * 1e6,
    }


def run_queue(arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for count in arguments.waiting:
        # Steps of a millisecond: the request that runs shall not take a core from the others.
        options = ("--max-waiting-requests", str(count + 1))
        with serving_simulated(*options, slots=1, step_us=1_000) as server:
            asyncio.run(warm(server))
            rows.append(asyncio.run(measure_queue(server, count)))
    return rows


async def measure_open(server: MeteredServer, count: int) -> Row:
    before = server.read_usage()
    streams = await send_many(server.url, count, max_tokens=1_000)
    await asyncio.gather(*(stream.read_start() for stream in streams))
    after = server.read_usage()
    for stream in streams:
        stream.leave()
    settled_mib, _ = await server.settle()
    return {
        "open streams": count,
        "API memory, kB each": (after.api_bytes - before.api_bytes) / count / KB,
        "engine memory, kB each": (after.engine_bytes - before.engine_bytes) / count / KB,
        "API memory before, MiB": before.api_bytes / MIB,
        "with all open, MiB": after.api_bytes / MIB,
        "after all have left, MiB": settled_mib,
    }


def run_open(arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for count in arguments.open:
        with serving_simulated(slots=count, step_us=200_000) as server:
            asyncio.run(warm(server))
            rows.append(asyncio.run(measure_open(server, count)))
    return rows


# Several engines


async def ask_all(url: str, num_engines: int, rounds: int) -> Summary:
    """The same number of streams in all, shared out between the engines."""
    targets = [
        msgspec.structs.replace(parse_url(url), model=f"echo{number}", ignores_eos=True)
        for number in range(num_engines)
    ]
    clients = [BenchClient(target, timeout_s=DEADLINE_S) for target in targets]
    outcomes: list[Outcome] = []

    async def keep_asking(client: BenchClient) -> None:
        for _ in range(rounds):
            outcomes.append(await client.ask(Prompt("once upon a time", 128)))

    started_at = time.perf_counter()
    await asyncio.gather(*(keep_asking(clients[i % num_engines]) for i in range(ENGINE_STREAMS)))
    elapsed_s = time.perf_counter() - started_at
    for client in clients:
        client.close()
    return summarize(outcomes, elapsed_s)


def measure_engines(server: MeteredServer, count: int) -> Row:
    run_async(ask_all(server.url, count, rounds=1))
    before = server.read_usage()
    summary = run_async(ask_all(server.url, count, rounds=8))
    after = server.read_usage()
    if summary.errors:
        raise SystemExit(f"requests failed: {summary.errors}")
    assert summary.num_output_tokens and summary.itl_s
    api_cpu_s = after.api_cpu_s - before.api_cpu_s
    return {
        "engines": count,
        "output tokens/s": summary.output_tokens_per_s or 0.0,
        "gap p99, ms": summary.itl_s.p99 * 1e3,
        "API CPU, us a token": api_cpu_s / summary.num_output_tokens * 1e6,
        "API memory, MiB": after.api_bytes / MIB,
        "memory of all engines, MiB": after.engine_bytes / MIB,
    }


def run_engines(arguments: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for count in arguments.engines:
        with serving_simulated(num_engines=count, slots=ENGINE_STREAMS, step_us=10_000) as server:
            rows.append(measure_engines(server, count))
    return rows


@dataclass(frozen=True)
class Part:
    title: str
    over: str
    run: Callable[[argparse.Namespace], list[Row]]
    series: str | None = None


PARTS = {
    "concurrency": Part("Streams at once", "streams", run_concurrency, "engine"),
    "context": Part("Length of the prompt", "prompt tokens", run_context, "engine"),
    "queue": Part("Waiting requests", "waiting", run_queue),
    "engines": Part("Engines of one server", "engines", run_engines),
    "open": Part("Open streams", "open streams", run_open),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for JSON and plots")
    parser.add_argument("--engine", type=Path, help="folder of a real engine, measured as well")
    parser.add_argument("--runs", type=int, default=5, help="of which the medians are shown")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    many = {"type": int, "nargs": "+"}
    parser.add_argument("--concurrency", **many, default=[1, 4, 16, 64, 128, 256])
    parser.add_argument("--context", **many, default=[128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--waiting", **many, default=[10, 100, 1_000, 10_000])
    parser.add_argument("--engines", **many, default=[1, 2, 3, 4])
    parser.add_argument("--open", **many, default=[256, 1024])
    arguments = parser.parse_args()
    cpu = read_machine().cpu
    machine = f"{cpu.name}, {cpu.num_threads} CPUs"
    print(machine + "\n")
    tables: list[Table] = []
    for name in arguments.only:
        part = PARTS[name]
        rows = merge([part.run(arguments) for _ in range(arguments.runs)])
        table = Table(name, part.title, part.over, rows, part.series)
        print(table.as_markdown(), flush=True)
        tables.append(table)
        write(arguments.output, machine, tables)


if __name__ == "__main__":
    main()
