"""Every route with the largest body that its schema allows, beside a stream and /health/live.

While one body is worked on, all others wait if it is done on the event loop. So the longest pause
of others is compared with that of the same server without the body.
"""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.server.serving import MODEL_ID, ServerProcess, client_of, make_echo_engine, serving

MAX_BODY_BYTES = 1 << 20  # of this server, so that a test takes seconds
MAX_TEXT = 40_000
MAX_ITEMS = 400
MAX_DEPTH = 6
STEP_US = 2_000  # of the engine: a stream without an end, as far as the test goes
# A body may keep others for this many quiet pauses, or for so long: what 1 MiB of JSON takes to be
# read with the lock of Python held, on a machine that does other things as well.
MAX_RATIO = 8.0
ALWAYS_ALLOWED_S = 0.5
LATE = re.compile(r"the event loop was late by .*")


def largest(schema: dict[str, Any], document: dict[str, Any], depth: int = 0) -> Any:
    """A value of `schema`, as long and as wide as it allows and the bounds here do."""
    if "$ref" in schema:
        path = schema["$ref"].removeprefix("#/").split("/")
        found: Any = document
        for part in path:
            found = found[part]
        return largest(found, document, depth)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][-1]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema and "properties" not in schema:
            options = [largest(one, document, depth + 1) for one in schema[keyword]]
            return max(options, key=lambda value: len(json.dumps(value)))
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "string":
        return "\N{GRINNING FACE} a" * (min(schema.get("maxLength", MAX_TEXT), MAX_TEXT) // 3)
    if kind == "array":
        count = min(schema.get("maxItems", MAX_ITEMS), MAX_ITEMS)
        item = largest(schema.get("items", {}), document, depth + 1) if depth < MAX_DEPTH else "a"
        size = max(len(json.dumps(item)), 1)
        return [item] * max(min(count, MAX_BODY_BYTES // 4 // size), schema.get("minItems", 0))
    if kind == "object":
        required = schema.get("required", [])
        return {
            name: largest(one, document, depth + 1)
            for name, one in schema.get("properties", {}).items()
            if name in required and depth < MAX_DEPTH
        }
    if kind in ("integer", "number"):
        return schema.get("maximum", schema.get("minimum", 1))
    return kind == "boolean"


def grammar_chain() -> str:
    rules = [f"r{i} ::= r{i + 1}" for i in range(1_990)]
    return "\n".join(["root ::= r0", *rules, 'r1990 ::= "a"'])


def bounded_integers(count: int) -> dict[str, Any]:
    properties = {
        f"p{i}": {"type": "integer", "minimum": -(10**14) - 12_345 * i, "maximum": 10**14 + i}
        for i in range(count)
    }
    return {"type": "object", "properties": properties}


def many_tools(count: int) -> list[dict[str, Any]]:
    names = [f"parameter_{i}" for i in range(count)]
    schema = {"type": "object", "properties": {n: {"type": "string"} for n in names}}
    schema["required"] = names
    return [
        {"type": "function", "function": {"name": f"t{k}", "parameters": schema}}
        for k in range(128)
    ]


USER = [{"role": "user", "content": "hi"}]
EMOJI = [{"role": "user", "content": "\N{GRINNING FACE}" + "x" * 80}] * 8_000
# What attackers found that no schema leads to.
FOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "chain of rules": ("/v1/completions", {"prompt": "x", "guided_grammar": grammar_chain()}),
    "bounded integers": ("/v1/completions", {"prompt": "x", "guided_json": bounded_integers(300)}),
    "turns of one role": ("/v1/messages/count_tokens", {"model": MODEL_ID, "messages": EMOJI}),
    "log probabilities": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x" * 250}],
            **{"n": 64, "logprobs": True, "top_logprobs": 20, "max_tokens": 250},
        },
    ),
    "forced tools": (
        "/v1/chat/completions",
        {"messages": USER, "tools": many_tools(60), "tool_choice": "required"},
    ),
}


class Victims:
    """A stream and a health check, each with the longest pause that it has seen."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = server.url
        self._is_over = threading.Event()
        self._pauses: list[float] = []
        self._threads = [threading.Thread(target=run) for run in (self._stream, self._live)]
        self._has_begun = threading.Semaphore(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            assert self._has_begun.acquire(timeout=30)
        self._pauses.clear()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in self._threads:
                thread.join()

    @property
    def longest_pause_s(self) -> float:
        return max(self._pauses)

    def _stream(self) -> None:
        body = {"prompt": "a" * 3_900, "max_tokens": 180, "stream": True, "ignore_eos": True}
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._is_over.is_set():
                with client.stream("POST", "/v1/completions", json=body) as response:
                    last_at = time.monotonic()
                    for _ in response.iter_lines():
                        now = time.monotonic()
                        self._pauses.append(now - last_at)
                        last_at = now
                        self._has_begun.release()
                        if self._is_over.is_set():
                            return

    def _live(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._is_over.is_set():
                started_at = time.monotonic()
                assert client.get("/health/live").status_code == 200
                self._pauses.append(time.monotonic() - started_at)
                self._has_begun.release()
                self._is_over.wait(0.005)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", max_batch_size=128, step_us=STEP_US)
    options = ("--max-body-bytes", str(MAX_BODY_BYTES), "--max-waiting-requests", "1024")
    with serving(folder, *options) as server:
        yield server


@pytest.fixture(scope="module")
def quiet_pause_s(attacked: ServerProcess) -> float:
    """The median of the longest pauses of some quiet seconds."""
    longest = []
    for _ in range(3):
        victims = Victims(attacked)
        with victims.watching():
            time.sleep(0.7)  # measured, and nothing waits for it
        longest.append(victims.longest_pause_s)
    return statistics.median(longest)


def check(server: ServerProcess, quiet_pause_s: float, path: str, body: Any) -> int:
    """Send the body beside the victims. Returns its status."""
    victims, before = Victims(server), len(server.log)
    with victims.watching(), client_of(server) as client:
        status = client.post(path, json=body, timeout=60).status_code
    late = LATE.findall(server.log[before:])
    allowed_s = max(quiet_pause_s * MAX_RATIO, ALWAYS_ALLOWED_S)
    assert victims.longest_pause_s <= allowed_s, late or "no call was seen"
    return status


@pytest.mark.parametrize(("path", "body"), FOUND.values(), ids=FOUND.keys())
def test_body_that_once_stopped_the_server_stops_nobody(
    attacked: ServerProcess, quiet_pause_s: float, path: str, body: dict[str, Any]
) -> None:
    assert check(attacked, quiet_pause_s, path, body) in (200, 400, 413)


def test_largest_body_of_each_route_stops_nobody(
    attacked: ServerProcess, quiet_pause_s: float
) -> None:
    with client_of(attacked) as client:
        document = client.get("/openapi.json").json()
    num_bodies = 0
    for path, item in document["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema is None:
            continue
        # The fields that are required, and the largest of all.
        while "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        least = largest(schema, document)
        values = {name: largest(field, document) for name, field in schema["properties"].items()}
        name = max(values, key=lambda one: len(json.dumps(values[one])))
        path = re.sub(r"\{[^}]*\}", "x", path)
        assert check(attacked, quiet_pause_s, path, {**least, name: values[name]}) < 500
        num_bodies += 1
    assert num_bodies >= 8
