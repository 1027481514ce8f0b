"""Clients that take a stream and do not read it: bounded in memory, and then let go."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import psutil
import pytest

from tests.server.serving import client_of, make_echo_engine, raw_request, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the timeout is Linux's")

NUM_READERS = 4
LONG = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000, "stream": True}
# A megabyte and more, however many tokens an event holds: more than the sockets between keep.
LARGE = {**LONG, "n": 16, "logprobs": 5}
MAX_GROWTH_BYTES = 40 * 2**20


def open_and_leave_unread(
    address: tuple[str, int], fields: dict[str, object], name: str
) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(address)
    client.sendall(raw_request(fields, name))
    return client


def test_unread_streams_are_bounded_and_then_cancelled(tmp_path: Path) -> None:
    # At a rate, since what an engine has made by the time that a client is let go is kept.
    make_echo_engine(tmp_path / "echo", max_batch_size=32, step_us=2_000)
    with serving(tmp_path, "--stalled-client-timeout", "1") as server, client_of(server) as client:
        process = psutil.Process(server.pid)
        assert client.post("/v1/completions", json={"prompt": "warm"}).status_code == 200
        before = process.memory_info().rss
        clients = [
            open_and_leave_unread(server.address, LARGE, f"slow-{i}") for i in range(NUM_READERS)
        ]
        for i in range(NUM_READERS):
            assert "disconnected" in server.wait_for_request(f"slow-{i}")
        assert process.memory_info().rss - before < MAX_GROWTH_BYTES
        for slow in clients:
            slow.close()
        assert client.post("/v1/completions", json={"prompt": "next"}).status_code == 200


def test_client_that_reads_slowly_gets_everything(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with serving(tmp_path, "--stalled-client-timeout", "2") as server:
        client = open_and_leave_unread(server.address, LONG, "steady")
        client.settimeout(20)
        received = b""
        while b"[DONE]" not in received:
            received += client.recv(16_384)
        client.close()
        events = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
        text = "".join(
            json.loads(event.removeprefix(b"data: "))["choices"][0]["text"] for event in events
        )
        with client_of(server) as http:
            whole = http.post("/v1/completions", json={**LONG, "stream": False}).json()
        assert text == whole["choices"][0]["text"]
