"""Several API processes share one port and the engines, and are one server to all clients."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deepinfer.manifest import write_manifest
from tests.server.serving import (
    DEADLINE_S,
    ServerProcess,
    client_of,
    make_echo_engine,
    read_events,
    serving,
    starting,
)
from tests.server.test_bad_requests import assert_error
from tests.server.test_metrics import Samples, parse, value

NUM_WORKERS = 2
WORKERS = ("--api-workers", str(NUM_WORKERS))
STEP_US = 2_000
ENDLESS = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000, "stream": True}
SHORT = {"prompt": "short", "max_tokens": 4}
PATH = "/v1/completions"
KEYS = """
anyone: key-of-anyone
five: key-of-five requests_per_minute=5
two: key-of-two concurrent_requests=2
"""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("workers")
    make_echo_engine(made / "engines" / "echo", step_us=STEP_US, counts=True)
    (made / "keys").write_text(KEYS)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    with serving(folder / "engines", *WORKERS, "--api-key-file", str(folder / "keys")) as process:
        yield process


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{name}"}


def workers_of(server: ServerProcess) -> set[int]:
    """The process ids of those that live."""
    started = re.findall(r"API process (\d+) started", server.log)
    ended = re.findall(r"API process (\d+) ended", server.log)
    return {int(pid) for pid in started} - {int(pid) for pid in ended}


def worker_behind(server: ServerProcess, client: httpx.Client) -> int:
    """Which worker has the connection of this client, from the line of a request that it makes."""
    request_id = f"probe-{next(_numbers)}"
    client.get("/v1/models", headers={"x-request-id": request_id}).raise_for_status()
    match = re.search(r" \[(\d+)\] ", server.wait_for_request(request_id))
    assert match is not None
    return int(match[1])


@contextmanager
def clients_of(server: ServerProcess, name: str = "anyone") -> Iterator[list[httpx.Client]]:
    """Clients with one connection each, one for each worker.

    The kernel chooses; that all of 64 connections go to the same one of two has odds of 2**-63.
    """
    with ExitStack() as stack:
        found: dict[int, httpx.Client] = {}
        for _ in range(64):
            only_one = httpx.Limits(max_connections=1)
            client = stack.enter_context(client_of(server, limits=only_one, headers=key(name)))
            found.setdefault(worker_behind(server, client), client)
            if len(found) == NUM_WORKERS:
                break
        assert found.keys() == workers_of(server)
        yield list(found.values())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def kill_worker(server: ServerProcess, pid: int) -> None:
    num_started = len(re.findall(r"API process \d+ started", server.log))
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(rf"API process {pid} ended with status -9")
    server.wait_for_log(r"API process \d+ started", count=num_started + 1)


def scrape(client: httpx.Client) -> Samples:
    return parse(client.get("/metrics").raise_for_status().text)


def refuses_all(server: ServerProcess) -> bool:
    """Whether eight new connections are told at once that the server ends."""
    statuses = set()
    for _ in range(8):
        with client_of(server) as client:
            try:
                statuses.add(client.get("/health", timeout=1).status_code)
            except httpx.TransportError:
                return False
    return statuses == {503}


def collect_text(events: Iterator[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk.get("choices"))


def stream_to_the_end(client: httpx.Client, body: dict[str, Any], begun: threading.Barrier) -> str:
    with client.stream("POST", PATH, json=body) as response:
        events = read_events(response)
        first = next(events)
        begun.wait(DEADLINE_S)
        return collect_text(itertools.chain((first,), events))


@contextmanager
def streams_of(
    clients: list[httpx.Client], body: dict[str, Any]
) -> Iterator[Callable[[], set[str]]]:
    """A stream at each client, which has begun; the texts are there when all have ended."""
    begun = threading.Barrier(len(clients) + 1)
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(stream_to_the_end, one, body, begun) for one in clients]
        begun.wait(DEADLINE_S)
        yield lambda: {stream.result(DEADLINE_S) for stream in running}


def test_connections_are_shared_out_and_no_key_is_on_a_command_line(
    server: ServerProcess,
) -> None:
    with clients_of(server) as clients:
        assert [client.post(PATH, json=SHORT).status_code for client in clients] == [200, 200]
        for client in clients:
            assert client.get("/health/ready").status_code == 200
    for process in (psutil.Process(server.pid), *psutil.Process(server.pid).children()):
        assert not any("key-of" in word for word in process.cmdline())
    assert server.log.count("Base URL") == 1


def test_limit_by_the_minute_holds_over_all(server: ServerProcess) -> None:
    with clients_of(server, "five") as clients:
        answers = [
            client.post(PATH, json={**SHORT, "max_tokens": 1})
            for _ in range(4)
            for client in clients
        ]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert left == [4, 3, 2, 1, 0, 0, 0, 0]


def test_running_requests_are_limited_over_all_and_forgotten_with_their_worker(
    server: ServerProcess,
) -> None:
    with clients_of(server, "two") as (first, second), client_of(server) as other:
        dying = worker_behind(server, first)
        with (
            first.stream("POST", PATH, json=ENDLESS) as broken,
            second.stream("POST", PATH, json={**ENDLESS, "max_tokens": 2000}) as whole,
        ):
            events, lost = read_events(whole), read_events(broken)
            next(events)
            next(lost)
            refused = other.post(PATH, json=SHORT, headers=key("two"))
            assert_error(refused, 429, "rate_limit_exceeded", None)
            kill_worker(server, dying)
            # Some of these wait in the backlog of the one that is gone.
            for _ in range(6):
                with client_of(server, headers=key("two")) as late:
                    assert late.post(PATH, json=SHORT).status_code == 200
            with pytest.raises(httpx.TransportError):
                list(lost)
            assert list(events)[-1] == "[DONE]"


def test_figures_are_those_of_all_and_never_fall(server: ServerProcess) -> None:
    name = "deepinfer_generation_tokens_total"
    with clients_of(server) as clients:
        until(lambda: value(scrape(clients[0]), name) == value(scrape(clients[1]), name))
        before = value(scrape(clients[0]), name) or 0
        for client in clients:
            client.post(PATH, json={**SHORT, "max_tokens": 7, "ignore_eos": True})
        expected = before + 14
        # What one has counted, the others know within a second.
        for client in clients:
            until(lambda client=client: value(scrape(client), name) == expected)
        dying = worker_behind(server, clients[0])
        with clients[0].stream("POST", PATH, json=ENDLESS) as response:
            events = read_events(response)
            next(events)
            told = [value(scrape(clients[1]), name) or 0]
            until(lambda: value(scrape(clients[1]), "deepinfer_open_streams", {}) == 1)
            kill_worker(server, dying)
        with clients_of(server) as survivors:
            for client in survivors:
                told.append(value(scrape(client), name) or 0)
                assert value(scrape(client), "deepinfer_open_streams", {}) == 0
                ready = value(scrape(client), "deepinfer_engine_ready")
                assert ready == 1
        assert told == sorted(told) and told[0] >= expected


def test_streams_of_all_outlive_the_engine(server: ServerProcess) -> None:
    body = {**ENDLESS, "max_tokens": 300}
    with clients_of(server) as clients:
        with streams_of(clients[:1], body) as ended:
            undisturbed = ended()
        with streams_of(clients, body) as ended:
            pid = re.findall(r"engine process (\d+) started", server.log)[-1]
            os.kill(int(pid), signal.SIGKILL)
            assert ended() == undisturbed
        for client in clients:
            until(lambda client=client: client.get("/health").status_code == 200)


def test_stored_response_is_found_by_all(server: ServerProcess) -> None:
    with clients_of(server) as (first, second):
        made = first.post("/v1/responses", json={"input": "hi", "max_output_tokens": 16}).json()
        path = f"/v1/responses/{made['id']}"
        assert second.get(path).json() == made
        assert second.get(path, headers=key("two")).status_code == 404
        body = {"input": "go on", "previous_response_id": made["id"], "max_output_tokens": 16}
        following = second.post("/v1/responses", json=body).json()
        items = first.get(f"/v1/responses/{following['id']}/input_items").json()["data"]
        assert [item["role"] for item in items] == ["user", "assistant", "user"]
        assert second.delete(path).json()["deleted"]
        assert first.get(path).status_code == 404


def test_new_keys_are_good_everywhere(server: ServerProcess, folder: Path) -> None:
    (folder / "keys").write_text(KEYS + "late: key-of-late\n")
    server.signal(signal.SIGHUP)
    server.wait_for_log("4 keys read again; new: `late`; gone: none")
    with clients_of(server) as clients:
        for client in clients:
            until(
                lambda client=client: (
                    client.get("/v1/models", headers=key("late")).status_code == 200
                )
            )


def test_port_of_another_server_is_refused(server: ServerProcess, folder: Path) -> None:
    port = str(server.address[1])
    for more in ((), WORKERS):
        with starting(folder / "engines", "--port", port, *more) as second:
            assert second.wait() == 1
            assert f"port {port} of 127.0.0.1 is already in use" in second.log


def test_all_streams_are_drained_and_a_second_signal_does_not_wait(folder: Path) -> None:
    with serving(folder / "engines", *WORKERS) as server, clients_of(server) as clients:
        by_worker = {worker_behind(server, client): client for client in clients}
        with client_of(server) as third:
            busy = worker_behind(server, third)
            (idle,) = by_worker.keys() - {busy}
            with streams_of([third], ENDLESS):
                with streams_of(clients, {**ENDLESS, "max_tokens": 300}) as ended:
                    server.signal()
                    server.wait_for_log("SIGTERM: running requests have 45 s to finish")
                    (text,) = ended()
                assert text
                psutil.Process(idle).wait(DEADLINE_S)
                until(lambda: refuses_all(server))
                server.signal()
                assert server.wait() == 0
    assert server.log.count("again: ending now") == 1


def test_all_end_with_the_front_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with serving(folder / "engines", *WORKERS, environment=environment) as server:
        others = psutil.Process(server.pid).children()
        assert len(others) == NUM_WORKERS + 1
        assert list(tmp_path.glob("*/shared.sqlite"))
        server.signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(others, DEADLINE_S)
        assert not alive
        assert not list(tmp_path.glob("*/shared.sqlite*"))


def test_engine_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    engine = make_echo_engine(tmp_path / "echo")
    record = engine.manifest.backend.model_copy(update={"name": "openvino"})
    write_manifest(tmp_path / "echo", engine.manifest.model_copy(update={"backend": record}))
    with starting(tmp_path, *WORKERS) as server:
        assert server.wait() == 1
        assert server.log.count("error:") == 1
