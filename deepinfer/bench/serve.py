"""A benchmark over HTTP from its options to its report: start a server, probe it, measure it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from deepinfer import __version__
from deepinfer.bench.client import (
    PATHS,
    BenchClient,
    ConnectionClosed,
    Prompt,
    Route,
    Target,
    parse_url,
    read_error_message,
    read_usage,
)
from deepinfer.bench.load import ArrivalKind, LoadPlan, run_async, run_shares
from deepinfer.bench.prompts import Lengths, PromptPlan, read_words
from deepinfer.bench.report import Document, Load, Objective, Run, summarize
from deepinfer.device import read_machine
from deepinfer.errors import BenchError, ConfigError

MIN_REQUESTS = 64  # of a run without a number of requests and without a duration
REQUESTS_PER_STREAM = 4

PROBE_WORDS = 512
PROBE_TIMEOUT_S = 120.0
PROBE_TOKENS = 4
ASSUMED_TOKENS_PER_WORD = 1.3  # of English text, where the server does not count prompt tokens

LOAD_TIMEOUT_S = 600.0  # until a server that was started here is ready
TERMINATE_TIMEOUT_S = 30.0
POLL_S = 0.1
MAX_LOG_LINES = 50
LISTENING = re.compile(r"listening on (http://\S+)")

SweepKind = Literal["concurrency", "rate"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The options of `deepinfer bench serve`, without the server. Lengths are in tokens."""

    concurrency: int | None
    rate_per_s: float | None
    arrivals: ArrivalKind = "poisson"
    num_requests: int | None = None
    duration_s: float | None = None
    num_warm_up: int = 0
    input_lengths: Lengths | None = None
    output_lengths: Lengths | None = None
    dataset: Path | None = None
    prompts: Literal["text", "ids"] = "text"
    prefix_tokens: int = 0
    num_prefixes: int = 1
    seed: int = 0
    timeout_s: float = 600.0
    num_processes: int = 1
    objective: Objective | None = None

    def with_level(self, kind: SweepKind, level: float) -> ServeOptions:
        """A copy for one level of a sweep. Raises ConfigError for a fractional concurrency."""
        if kind == "rate":
            return dataclasses.replace(self, concurrency=None, rate_per_s=level)
        if level != int(level):
            raise ConfigError(
                f"concurrency `{level:g}` is not a whole number",
                hint="`--sweep-over rate` accepts fractions",
            )
        return dataclasses.replace(self, concurrency=int(level), rate_per_s=None)


def parse_levels(text: str) -> list[float]:
    """`1,4,16`. Raises ConfigError."""
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1e6 for level in levels):
        raise ConfigError(
            f"`{text}` is not a list of levels", hint="give numbers such as `1,4,16,32`"
        )
    return levels


def check_options(options: ServeOptions, route: Route) -> None:
    """Raises ConfigError for options that exclude each other."""
    if route == "chat" and options.prompts == "ids":
        raise ConfigError(
            "`--prompts ids` cannot be sent in a chat, whose messages are text",
            hint="omit `--prompts`, or use `--route completions`",
        )
    if options.dataset is not None and options.prompts == "ids":
        raise ConfigError(
            "`--prompts ids` cannot be made from a data set of texts",
            hint="omit `--prompts` or `--dataset`",
        )
    if options.concurrency is not None and options.concurrency < options.num_processes:
        raise ConfigError(
            f"{options.num_processes} processes cannot share concurrency {options.concurrency}",
            hint="set `--processes` to at most `--concurrency`",
        )


def run_serve(
    target: Target,
    levels: Sequence[ServeOptions],
    report: Callable[[str], None] = lambda _: None,
) -> Document:
    """Measure each of `levels`, in order. Raises a CommandError.

    `report` receives progress messages.
    """
    for options in levels:
        check_options(options, target.route)
    server = run_async(probe_server(target, needs_ids=levels[0].prompts == "ids"))
    for note in server.notes:
        report(note)
    runs = []
    for number, options in enumerate(levels):
        level = f"concurrency {options.concurrency}"
        if options.rate_per_s is not None:
            level = f"{options.rate_per_s:g} requests/s ({options.arrivals})"
        report(f"measuring {server.target.model} at {level}")
        runs.append(_run_level(server, options, number))
    cpu = read_machine().cpu
    return Document(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        deepinfer_version=__version__,
        url=server.target.url,
        model=server.target.model,
        machine=f"{cpu.name}, {cpu.num_threads} CPUs",
        notes=server.notes,
        runs=tuple(runs),
    )


def _run_level(server: ServerInfo, options: ServeOptions, number: int) -> Run:
    plan = make_plan(server, options, number)
    results = run_shares(plan, options.num_processes)
    requests = [request for result in results for request in result.requests]
    elapsed_s = max(result.ended_at for result in results) - min(r.started_at for r in results)
    return Run(
        load=_describe_load(plan, options),
        summary=summarize(requests, elapsed_s, options.objective),
        client_cpu_share=max(result.cpu_share for result in results),
        client_max_lag_s=max(result.max_lag_s for result in results),
    )


def make_plan(server: ServerInfo, options: ServeOptions, number: int) -> LoadPlan:
    num_requests = options.num_requests
    if num_requests is None and options.duration_s is None:
        num_requests = max(MIN_REQUESTS, REQUESTS_PER_STREAM * (options.concurrency or 1))
    return LoadPlan(
        target=server.target,
        prompts=PromptPlan(
            input_lengths=options.input_lengths,
            output_lengths=options.output_lengths,
            dataset=None if options.dataset is None else str(options.dataset),
            token_ids=server.token_ids,
            tokens_per_word=server.tokens_per_word,
            prefix_tokens=options.prefix_tokens,
            num_prefixes=options.num_prefixes,
            seed=options.seed,
            run=number,
        ),
        concurrency=options.concurrency,
        rate_per_s=options.rate_per_s,
        arrivals=options.arrivals,
        num_requests=num_requests,
        duration_s=options.duration_s,
        num_warm_up=options.num_warm_up,
        timeout_s=options.timeout_s,
    )


def _describe_load(plan: LoadPlan, options: ServeOptions) -> Load:
    return Load(
        route=plan.target.route,
        is_streaming=plan.target.is_streaming,
        concurrency=plan.concurrency,
        rate_per_s=plan.rate_per_s,
        arrivals=None if plan.rate_per_s is None else plan.arrivals,
        num_requests=plan.num_requests,
        duration_s=plan.duration_s,
        num_warm_up=plan.num_warm_up,
        input_lengths=str(options.input_lengths) if options.input_lengths else None,
        output_lengths=str(options.output_lengths) if options.output_lengths else None,
        dataset=plan.prompts.dataset,
        prompts=options.prompts,
        prefix_tokens=options.prefix_tokens,
        num_prefixes=options.num_prefixes,
        ignores_eos=plan.target.ignores_eos,
        seed=options.seed,
        num_processes=options.num_processes,
    )


@dataclass(frozen=True)
class ServerInfo:
    """What a probe found out about a server; `target` is adapted to it, `notes` say how."""

    target: Target
    tokens_per_word: float
    token_ids: tuple[int, ...]  # of the packaged texts; empty without `needs_ids`
    notes: tuple[str, ...]


async def probe_server(target: Target, *, needs_ids: bool) -> ServerInfo:
    """Find out the model and the tokens per word, and which fields the server accepts.

    Raises BenchError if the server cannot be measured with this target.
    """
    client = BenchClient(target, timeout_s=PROBE_TIMEOUT_S)
    target = msgspec.structs.replace(target, model=target.model or await _find_model(client))
    client.target = target
    target, notes = await _adapt(client)
    client.target = target
    words = read_words()
    passage = " ".join(words[:: len(words) // PROBE_WORDS][:PROBE_WORDS])
    ids = await _tokenize(client, " ".join(words) if needs_ids else passage)
    if needs_ids and not ids:
        raise BenchError(
            "`--prompts ids` needs a server with a `/tokenize` route; this server has none",
            hint="omit `--prompts`: prompts are then text",
        )
    if needs_ids:
        return ServerInfo(target, len(ids) / len(words), ids, notes)
    num_tokens = len(ids) or await _count_by_usage(client, passage)
    if num_tokens:
        return ServerInfo(target, num_tokens / PROBE_WORDS, (), notes)
    assumption = f"assuming {ASSUMED_TOKENS_PER_WORD} tokens per word"
    notes = (*notes, f"the server does not count prompt tokens: {assumption}")
    return ServerInfo(target, ASSUMED_TOKENS_PER_WORD, (), notes)


async def _fetch(
    client: BenchClient, method: str, path: str, fields: dict[str, object] | None = None
) -> tuple[int, bytes]:
    """As BenchClient.fetch; raises BenchError for a failed connection."""
    try:
        return await client.fetch(method, path, fields)
    except (OSError, TimeoutError, ConnectionClosed) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no response in time"
        raise BenchError(
            f"cannot reach {client.target.url}: {reason}",
            hint="start the server, or let `--engine-dir` start one",
        ) from error


async def _find_model(client: BenchClient) -> str:
    status, body = await _fetch(client, "GET", "/v1/models")
    if status == 401:
        raise BenchError(
            "the server requires an API key", hint="set OPENAI_API_KEY or `--api-key-file`"
        )
    try:
        return str(msgspec.json.decode(body)["data"][0]["id"])
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise BenchError(
            f"{client.target.url}/v1/models lists no model (HTTP {status})",
            hint="name one with `--model`",
        ) from None


async def _adapt(client: BenchClient) -> tuple[Target, tuple[str, ...]]:
    """The target without the fields that the server rejects, and notes about them."""
    target = client.target
    status, body = await _send_probe(client, target)
    if status == 400 and target.is_streaming and b"stream_options" in body:
        target = msgspec.structs.replace(target, with_usage=False)
        status, body = await _send_probe(client, target)
        if status == 200:
            return target, (
                "the server does not accept `stream_options`: tokens are counted by events",
            )
    if status != 200:
        hint = None
        if target.ignores_eos and b"ignore_eos" in body:
            hint = "omit `--ignore-eos`; the report counts answers that end early"
        raise BenchError(
            f"the server rejects the benchmark's request (HTTP {status}): "
            f"{read_error_message(body)}",
            hint=hint,
        )
    return target, ()


async def _send_probe(client: BenchClient, target: Target) -> tuple[int, bytes]:
    fields = target.body(Prompt("Once upon a time", PROBE_TOKENS))
    return await _fetch(client, "POST", PATHS[target.route], fields)


async def _tokenize(client: BenchClient, text: str) -> tuple[int, ...]:
    """Empty if the server has no such route, or another response format."""
    fields: dict[str, object] = {"model": client.target.model, "prompt": text}
    status, body = await _fetch(client, "POST", "/tokenize", fields)
    try:
        tokens = msgspec.json.decode(body)["tokens"] if status == 200 else ()
        return msgspec.convert(tokens, tuple[int, ...])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return ()


async def _count_by_usage(client: BenchClient, text: str) -> int:
    """The prompt tokens of a request with this text; 0 if the response has no usage."""
    target = msgspec.structs.replace(client.target, is_streaming=False)
    status, body = await _fetch(client, "POST", PATHS[target.route], target.body(Prompt(text, 1)))
    usage = read_usage(body) if status == 200 else None
    return (usage or {}).get("prompt_tokens", 0)


@contextmanager
def start_server(engine_dir: Path, engine: str | None, options: tuple[str, ...]) -> Iterator[str]:
    """The URL of a new `deepinfer serve` on a free port, once it is ready.

    Raises BenchError if it does not become ready. Stops it on exit.
    """
    model = ["--model", engine] if engine else []
    process = subprocess.Popen(
        [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(engine_dir)]
        + ["--port", "0", "--log-format", "json", *model, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = _ServerLog(process)
    try:
        yield _wait_ready(process, log)
    finally:
        _stop(process)
        log.close()


class _ServerLog:
    """Reads the log of a server, so that its pipe never fills up, and keeps the last lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.url: str | None = None
        self.lines: deque[str] = deque(maxlen=MAX_LOG_LINES)
        assert process.stderr is not None
        self._pipe = process.stderr
        self._has_url = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_url(self) -> str | None:
        """None if the server ended first."""
        self._has_url.wait(LOAD_TIMEOUT_S)
        return self.url

    def close(self) -> None:
        self._thread.join()
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            try:
                message = str(json.loads(line)["message"])
            except (ValueError, KeyError, TypeError):
                message = line.strip()  # the final error of a process is text and not JSON
            self.lines.append(message)
            if found := LISTENING.search(message):
                self.url = found[1]
                self._has_url.set()
        self._has_url.set()


def _wait_ready(process: subprocess.Popen[str], log: _ServerLog) -> str:
    url = log.wait_url()
    end_at = time.monotonic() + LOAD_TIMEOUT_S
    while url is not None and process.poll() is None and time.monotonic() < end_at:
        try:
            status, _ = asyncio.run(
                BenchClient(parse_url(url), timeout_s=10).fetch("GET", "/health")
            )
        except (OSError, TimeoutError, ConnectionClosed):
            status = 0
        if status == 200:
            return url
        time.sleep(POLL_S)
    _stop(process)
    log.close()
    lines = [line for line in log.lines if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    reason = errors[-1] if errors else lines[-1] if lines else "it wrote nothing"
    raise BenchError(
        f"the server did not become ready: {reason}", hint=hints[-1] if hints else None
    )


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(TERMINATE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
