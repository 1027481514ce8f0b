"""A server without file descriptors at the moment when its engine has to be started again."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server.serving import client_of, make_echo_engine, read_events, serving

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="limits of others are set by prlimit"
)

NUM_SPARE = 12  # descriptors that the server has beyond those that it uses when it is idle
STREAM = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 600, "stream": True}


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def exhaust(address: tuple[str, int], pid: int, limit: int, held: ExitStack) -> None:
    """Connect and say nothing until the server has no descriptor left."""
    for _ in range(1_000):
        if num_descriptors(pid) >= limit:
            return
        held.enter_context(socket.create_connection(address, timeout=5))
    pytest.fail(f"{num_descriptors(pid)} descriptors of {limit}")


def test_engine_is_started_again_when_there_are_descriptors_again(tmp_path: Path) -> None:
    import resource

    make_echo_engine(tmp_path / "echo", step_us=10_000, counts=True)
    with serving(tmp_path) as server, client_of(server) as client:
        engine = int(server.wait_for_log(r"engine process (\d+) started")[1])
        limit = num_descriptors(server.pid) + NUM_SPARE
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        with ExitStack() as held, client.stream("POST", "/v1/completions", json=STREAM) as response:
            events: Iterator[str] = (
                line for line in read_events_and_pings(response) if not line.startswith(":")
            )
            next(events)
            exhaust(server.address, server.pid, limit, held)
            os.kill(engine, signal.SIGKILL)
            server.wait_for_log(r"cannot be started: .*Too many open files")
            held.close()
            rest = list(events)
        assert rest[-1] == "data: [DONE]"
        assert server.log.count("started") >= 2
        answer = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        assert answer.status_code == 200


def read_events_and_pings(response: object) -> Iterator[str]:
    for line in response.iter_lines():  # type: ignore[attr-defined]
        if line:
            yield line


def test_stream_ends_with_an_error_when_the_engine_cannot_be_started_for_long(
    tmp_path: Path,
) -> None:
    import resource

    make_echo_engine(tmp_path / "echo", step_us=10_000, counts=True)
    options = ("--resume-attempts", "2")
    with serving(tmp_path, *options) as server, client_of(server) as client:
        engine = int(server.wait_for_log(r"engine process (\d+) started")[1])
        limit = num_descriptors(server.pid) + NUM_SPARE
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
        with ExitStack() as held, client.stream("POST", "/v1/completions", json=STREAM) as response:
            events = read_events(response)
            next(events)
            exhaust(server.address, server.pid, limit, held)
            os.kill(engine, signal.SIGKILL)
            assert "engine_unavailable" in list(events)[-1]
