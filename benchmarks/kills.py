"""Kill the engine again and again under load, and see whether any client notices.

    .venv/bin/python benchmarks/kills.py --kills 200

A real server with a real engine (the sample at fp32, where greedy text is exact) gets requests of
many kinds without a pause. At random moments, while it loads too, the engine process is killed,
stopped or crashed. Every request must end with the answer and the usage that it has on a server
that nobody touches, none may be refused, and afterwards nothing may run, wait or be kept. The exit
status is 0 if all of it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from served import (
    Server,
    connect,
    describe_rest,
    find_leaks,
    run_and_report,
    wait_at_rest,
    wait_ready,
)

SIGNALS = {
    "killed": signal.SIGKILL,
    "stopped": signal.SIGSTOP,
    "crashed": signal.SIGSEGV,
    "aborted": signal.SIGABRT,
}
NUM_CLIENTS = 8
MAX_PAUSE_S = 1.5  # between the engine's being ready and the next kill, drawn evenly
# Now and then the engine lives as long as a grammar needs before its request starts: a process that
# tries grammars is started with each engine, and takes seconds on a busy machine.
SHARE_OF_LONG_PAUSES, MAX_LONG_PAUSE_S = 0.2, 12.0
READ_TIMEOUT_S = 300.0  # an answer that is no stream says nothing until it is whole
SHARE_WHILE_LOADING = 0.2  # of the kills
MAX_LOADING_S = 1.0  # into which they come
OPTIONS = ("--hang-timeout", "1")

STORY = "Once upon a time there was a little fox who lived in the woods. "
TURN = {"messages": [{"role": "user", "content": "Tell me a story about a small robot."}]}
GREEDY = {"temperature": 0}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fox", "bird", "robot"]},
        "is_small": {"type": "boolean"},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "is_small", "number"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "remember", "parameters": SCHEMA, "strict": True},
}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Name, route and body; a path in place of the route's values is filled in by `kinds_of`.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (COMPLETIONS, {"prompt": "The little fox was", "max_tokens": 100}),
    "stream": (
        COMPLETIONS,
        {"prompt": STORY, "max_tokens": 120, "ignore_eos": True, **USAGE},
    ),
    "n": (COMPLETIONS, {"prompt": "One day, a bird", "max_tokens": 60, "n": 4, **USAGE}),
    "logprobs": (
        COMPLETIONS,
        {"prompt": "The sun was warm and", "max_tokens": 40, "logprobs": 2, **USAGE},
    ),
    "echo": (
        COMPLETIONS,
        {"prompt": STORY, "max_tokens": 30, "echo": True, "logprobs": 1},
    ),
    "grammar": (
        COMPLETIONS,
        {"prompt": "Lily and", "max_tokens": 80, "guided_regex": "[A-Z][a-z ]{30,60}[.]", **USAGE},
    ),
    "schema": (
        CHAT,
        {
            **TURN,
            "max_tokens": 80,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True},
            },
        },
    ),
    "tools": (CHAT, {**TURN, "max_tokens": 120, "tools": [TOOL], "tool_choice": "required"}),
    "reasoning": (CHAT, {**TURN, "max_tokens": 60, "reasoning_effort": "low", **USAGE}),
    "responses": (
        "/v1/responses",
        {"input": "What is 3 + 4?", "max_output_tokens": 60, "stream": True},
    ),
    "messages": ("/v1/messages", {**TURN, "max_tokens": 60, "stream": True}),
    "batch": (
        COMPLETIONS,
        {"prompt": ["There was", "A tree", "In the sea", "Tom and Sue"], "max_tokens": 50},
    ),
    "model": (COMPLETIONS, {"prompt": "The robot", "max_tokens": 60, **USAGE}),
    "stop": (COMPLETIONS, {"prompt": STORY, "max_tokens": 120, "stop": [". The", "!"], **USAGE}),
    "min_tokens": (
        COMPLETIONS,
        {"prompt": "The end.", "min_tokens": 50, "max_tokens": 70, **USAGE},
    ),
    "long": (COMPLETIONS, {"prompt": STORY * 20, "max_tokens": 30, **USAGE}),
    "penalties": (
        COMPLETIONS,
        {"prompt": "Lily had a", "max_tokens": 60, "frequency_penalty": 0.5, **USAGE},
    ),
}
# What no two answers have alike, and numbers that depend upon what has run beside.
VOLATILE = {
    *("id", "created", "created_at", "completed_at", "call_id", "item_id", "system_fingerprint"),
    *("prompt_tokens_details", "input_tokens_details", "cache_read_input_tokens"),
    *("token_logprobs", "top_logprobs", "logprob", "bytes"),
}


@dataclass
class Outcome:
    """What the clients saw."""

    num_answers: Counter[str] = field(default_factory=Counter)
    num_wrong: Counter[str] = field(default_factory=Counter)
    num_refused: Counter[str] = field(default_factory=Counter)
    pauses_s: list[float] = field(default_factory=list)  # the longest of each answer
    failures: list[str] = field(default_factory=list)


async def kinds_of(http: httpx.AsyncClient) -> dict[str, tuple[str, dict[str, Any]]]:
    """The requests, that of "model" to an adapter where the engine has one."""
    models = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
    kinds = {name: (path, {**body, **GREEDY}) for name, (path, body) in KINDS.items()}
    kinds["model"][1]["model"] = models[-1]
    return kinds


async def ask(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[Any, float]:
    """What an answer comes to, and the longest time between two of its events.

    Raises what a client would: httpx's errors, or RuntimeError for an error in a stream.
    """
    last_at, longest_s, events = time.monotonic(), 0.0, []
    async with http.stream("POST", path, json=body) as response:
        if response.is_error:
            await response.aread()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        if not body.get("stream"):
            return scrub(json.loads(await response.aread())), time.monotonic() - last_at
        async for line in response.aiter_lines():
            if not line.startswith("data: "):  # comments keep a silent connection alive
                continue
            now = time.monotonic()
            longest_s, last_at = max(longest_s, now - last_at), now
            events.append(line.removeprefix("data: "))
    return join(path, events), longest_s


def join(path: str, lines: list[str]) -> Any:
    """What a stream comes to, however it was cut into events."""
    if path in (COMPLETIONS, CHAT) and lines[-1:] != ["[DONE]"]:
        raise RuntimeError(f"the stream ended without [DONE]: {lines[-1:]}")
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    for event in events:
        if event.get("error") or event.get("type") in ("error", "response.failed"):
            raise RuntimeError(json.dumps(event)[:300])
    if path == "/v1/responses":
        if "response" not in events[-1]:
            raise RuntimeError(f"the stream ended with {events[-1]['type']}")
        return scrub(events[-1]["response"])
    joined: dict[str, Any] = {}
    for event in events:
        if event.get("type") != "message_start":  # which says how many tokens there were by then
            add(joined, scrub(event))
    return joined


def add(joined: dict[str, Any], event: dict[str, Any], at: str = "") -> None:
    """Put text together by its place in the events, and keep the last of all other values."""
    for name, value in event.items():
        place = f"{at}.{name}"
        if isinstance(value, dict):
            add(joined, value, place)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                add(joined, item, f"{place}[{item.get('index', 0)}]")
        elif name in ("text", "content", "reasoning_content", "partial_json"):
            joined[place] = joined.get(place, "") + (value or "")
        elif name == "tokens":
            joined[place] = [*joined.get(place, []), *value]
        elif value is not None and name not in ("text_offset", "type"):
            joined[place] = value


def scrub(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: scrub(each) for name, each in value.items() if name not in VOLATILE}
    return [scrub(each) for each in value] if isinstance(value, list) else value


async def keep_asking(
    http: httpx.AsyncClient,
    kinds: dict[str, tuple[str, dict[str, Any]]],
    expected: dict[str, Any],
    outcome: Outcome,
    rng: random.Random,
    is_over: asyncio.Event,
) -> None:
    while not is_over.is_set():
        name = rng.choice(list(kinds))
        try:
            answer, pause_s = await ask(http, *kinds[name])
        except httpx.HTTPStatusError as error:
            if error.response.status_code == 503:
                outcome.num_refused[name] += 1
                outcome.failures.append(f"{name}: refused: {error.response.text[:200]}")
                await asyncio.sleep(0.1)
            else:
                outcome.failures.append(f"{name}: {error.response.text[:300]}")
        except (httpx.HTTPError, RuntimeError) as error:
            outcome.failures.append(f"{name}: {error!r}")
        else:
            outcome.num_answers[name] += 1
            if answer != expected[name]:
                outcome.num_wrong[name] += 1
                outcome.failures.append(f"{name}: {answer} is not {expected[name]}"[:1000])
            outcome.pauses_s.append(pause_s)


async def kill_again_and_again(
    server: Server, http: httpx.AsyncClient, num_kills: int, rng: random.Random
) -> tuple[dict[str, int], list[float]]:
    """How many times each thing was done, and how long the engine was away each time."""
    counts = dict.fromkeys(SIGNALS, 0)
    counts["while loading"] = 0
    away_s: list[float] = []
    died_at: float | None = None
    while sum(counts.values()) - counts["while loading"] < num_kills:
        if died_at is None:
            is_long = rng.random() < SHARE_OF_LONG_PAUSES
            await asyncio.sleep(rng.uniform(0, MAX_LONG_PAUSE_S if is_long else MAX_PAUSE_S))
        name, pid = rng.choice(list(SIGNALS)), server.engine_pid
        if pid is None:
            continue
        died_at = died_at or time.monotonic()
        os.kill(pid, SIGNALS[name])
        counts[name] += 1
        while server.engine_pid in (pid, None):
            await asyncio.sleep(0.02)
        # One that is stopped while it loads is waited for longer than any client would.
        if rng.random() < SHARE_WHILE_LOADING:
            await asyncio.sleep(rng.uniform(0, MAX_LOADING_S))
            loading = server.engine_pid
            if loading is not None and (await http.get("/health/ready")).status_code != 200:
                os.kill(loading, signal.SIGKILL)
                counts["killed"] += 1
                counts["while loading"] += 1
                while server.engine_pid in (loading, None):
                    await asyncio.sleep(0.02)
        await wait_ready(http)
        away_s.append(time.monotonic() - died_at)
        died_at = None
    return counts, away_s


async def run(server: Server, num_kills: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    expected, left_out = {}, {}
    async with connect(server) as http:
        kinds = await kinds_of(http)
        for name, request in list(kinds.items()):
            try:
                expected[name], _ = await ask(http, *request)
            except httpx.HTTPStatusError as error:  # it has no chat template, for instance
                left_out[name] = str(error)[:200]
                del kinds[name]
    before = await server.settle()
    async with connect(server) as http:
        http.timeout = httpx.Timeout(READ_TIMEOUT_S)
        outcome, is_over = Outcome(), asyncio.Event()
        asking = [
            asyncio.create_task(keep_asking(http, kinds, expected, outcome, rng, is_over))
            for _ in range(NUM_CLIENTS)
        ]
        counts, away_s = await kill_again_and_again(server, http, num_kills, rng)
        is_over.set()
        await asyncio.gather(*asking)
        gauges = await wait_at_rest(http)
    after = await server.settle()
    return {
        "kills": counts,
        "left_out": left_out,
        "answers": outcome.num_answers.total(),
        "answers_by_kind": dict(outcome.num_answers),
        "wrong": dict(outcome.num_wrong),
        "refused": outcome.num_refused.total(),
        "away_s_median": round(statistics.median(away_s), 2),
        "longest_pause_s": round(max(outcome.pauses_s, default=0.0), 2),
        **describe_rest(gauges, before, after),
        "faults": [*find_errors(outcome), *find_leaks(gauges, before, after)],
    }


def find_errors(outcome: Outcome) -> list[str]:
    errors = [f"failed: {failure}" for failure in outcome.failures]
    if not outcome.num_answers.total():
        errors.append("no request was answered at all")
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
