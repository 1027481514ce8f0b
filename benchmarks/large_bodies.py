"""How long a large request keeps the streams of others waiting.

    .venv/bin/python benchmarks/large_bodies.py --seconds 5

One client reads a stream whose engine has a token every few milliseconds; another process sends
bodies of about a megabyte, one after the other. Reported are the waits between two events of the
stream: what the engine's pace and this machine make of them alone, and beside each kind of body.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from served import Server

sys.path.insert(0, str(Path(__file__).parents[1]))

STEP_US = 4_000
MEBIBYTE = 2**20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
WORDS = "the quick brown fox jumps over the lazy dog "
Body = tuple[str, dict[str, Any]]


def say(content: Any, **fields: Any) -> Body:
    return CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 1, **fields}


def complete(prompt: Any, **fields: Any) -> Body:
    return COMPLETIONS, {"prompt": prompt, "max_tokens": 1, **fields}


def make_tool(number: int) -> dict[str, Any]:
    properties = {f"p{i}": {"type": "string", "description": "d" * 40} for i in range(100)}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}


def make_many_messages(num_messages: int) -> Body:
    text = WORDS * (MEBIBYTE // len(WORDS) // num_messages)
    return CHAT, {"messages": [{"role": "user", "content": text}] * num_messages, "max_tokens": 1}


KINDS: dict[str, Callable[[], Body]] = {
    "a prompt of text": lambda: complete(WORDS * (MEBIBYTE // len(WORDS))),
    "a prompt of token ids": lambda: complete(random.Random(1).choices(range(300), k=220_000)),
    "a chat of one message": lambda: say(WORDS * (MEBIBYTE // len(WORDS))),
    "a chat of 1,000 messages": lambda: make_many_messages(1000),
    "a chat with 100 tools": lambda: say("hi", tools=[make_tool(i) for i in range(100)]),
    "140,000 prompts (refused)": lambda: complete([[1]] * 140_000),
    "100,000 unknown objects": lambda: say("hi", x=[{"a": 1}] * 100_000),
}


def send_until(url: str, path: str, data: bytes, deadline: float, counts: Any) -> None:
    headers = {"content-type": "application/json"}
    with httpx.Client(base_url=url, timeout=60) as http:
        while time.monotonic() < deadline:
            status = http.post(path, content=data, headers=headers).status_code
            counts.put(status)


def read_waits(url: str, deadline: float) -> list[float]:
    """Milliseconds between the events of streams, one stream after the other."""
    waits: list[float] = []
    body = {"prompt": "a b c", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=url, timeout=60) as http:
        while time.monotonic() < deadline:
            with http.stream("POST", COMPLETIONS, json=body) as response:
                lines = (line for line in response.iter_lines() if line)
                next(lines)
                last_at = time.monotonic()
                for _ in lines:
                    now = time.monotonic()
                    waits.append((now - last_at) * 1e3)
                    last_at = now
                    if now > deadline:
                        return waits
    return waits


def measure(url: str, kind: str | None, duration_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + duration_s
    counts: Any = multiprocessing.Queue()
    sender = None
    size = 0
    if kind is not None:
        path, fields = KINDS[kind]()
        data = json.dumps(fields, separators=(",", ":")).encode()
        size = len(data)
        sender = multiprocessing.Process(
            target=send_until, args=(url, path, data, deadline, counts)
        )
        sender.start()
    waits = sorted(read_waits(url, deadline))
    statuses = []
    if sender is not None:
        sender.join()
        while not counts.empty():
            statuses.append(counts.get())
    at = lambda share: round(waits[int(share * (len(waits) - 1))], 1)  # noqa: E731
    return {
        "beside": kind or "nothing",
        "mebibytes": round(size / MEBIBYTE, 2),
        "sent": len(statuses),
        "statuses": sorted(set(statuses)),
        "events": len(waits),
        "wait_ms": {"p50": at(0.5), "p99": at(0.99), "max": at(1)},
    }


def main() -> int:
    from tests.server.serving import make_echo_engine

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each kind of body")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_echo_engine(Path(folder) / "echo", step_us=STEP_US)
        server = Server(Path(folder))
        try:
            for kind in (None, *KINDS):
                print(json.dumps(measure(server.url, kind, arguments.seconds)), flush=True)
        finally:
            status = server.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
