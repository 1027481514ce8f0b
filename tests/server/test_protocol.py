"""Heads of requests, and bytes that are none: bounded in size and time, answered, and forgotten."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deepinfer.server.protocol import MAX_FIELDS, MAX_HEAD_BYTES
from tests.server.serving import (
    DEADLINE_S,
    ServerProcess,
    client_of,
    make_echo_engine,
    raw_request,
    serving,
)

TIMEOUT_S = 0.5
FIELDS = {"prompt": "The capital"}
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    with serving(folder, "--receive-timeout", str(TIMEOUT_S)) as process:
        yield process


def exchange(server: ServerProcess, *pieces: bytes) -> bytes:
    """What the server says to it until it closes the connection."""
    received = b""
    with socket.create_connection(server.address, DEADLINE_S) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            while piece := client.recv(65_536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closes before it has read what it does not want
    return received


def read_error(response: bytes) -> tuple[int, str]:
    """Status and code; the connection ends after it."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    content: dict[str, Any] = json.loads(body)
    assert content["detail"] == content["error"]["message"]
    return int(head.split()[1]), content["error"]["code"]


def assert_serves(server: ServerProcess) -> None:
    with client_of(server) as client:
        answer = client.post("/v1/completions", json=FIELDS)
    assert answer.json()["choices"][0]["text"] == "The capital"


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n", id="one field"),
        pytest.param(b"X" * MAX_HEAD_BYTES + b": x\r\n", id="one name"),
        pytest.param(b"".join(b"X-%d: x\r\n" % i for i in range(MAX_FIELDS)), id="many fields"),
    ],
)
def test_large_head_is_refused(server: ServerProcess, lines: bytes) -> None:
    assert read_error(exchange(server, HEAD + lines + b"\r\n")) == (431, "head_too_large")
    assert_serves(server)


@pytest.mark.parametrize("piece", [b"X" * 65_536, b"X: x\r\n" * 10_000])
def test_head_without_an_end_is_not_kept(server: ServerProcess, piece: bytes) -> None:
    response = exchange(server, HEAD, *[piece] * 16)
    # The reset that follows a close can overtake the response.
    assert not response or read_error(response) == (431, "head_too_large")
    assert_serves(server)


def test_head_within_the_bounds_is_taken(server: ServerProcess) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 600) for i in range(MAX_FIELDS - 2))
    response = exchange(server, HEAD + lines + b"Connection: close\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\nnonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FROB / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://[x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_as_an_error(server: ServerProcess, data: bytes) -> None:
    assert read_error(exchange(server, data)) == (400, "invalid_http")
    assert_serves(server)


def test_broken_chunks_of_a_body_are_refused(server: ServerProcess) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert read_error(exchange(server, head, b"5\r\nab\r\nzz")) == (400, "invalid_http")
    assert_serves(server)


@pytest.mark.parametrize("sent", [b"", b"G", HEAD, HEAD + b"X: "], ids=repr)
def test_slow_head_is_let_go(server: ServerProcess, sent: bytes) -> None:
    began_at = time.monotonic()
    assert exchange(server, sent) == b""
    assert TIMEOUT_S * 0.9 < time.monotonic() - began_at


def test_head_that_comes_byte_by_byte_has_no_longer_time(server: ServerProcess) -> None:
    def drip() -> Iterator[bytes]:
        while True:
            yield b"X"
            time.sleep(TIMEOUT_S / 20)  # the client's pace is what is tested

    with pytest.raises(OSError), socket.create_connection(server.address, DEADLINE_S) as client:
        client.sendall(HEAD)
        for byte in drip():
            client.sendall(byte)


def test_second_head_of_a_connection_has_a_limit_too(server: ServerProcess) -> None:
    response = exchange(server, HEAD + b"\r\n" + HEAD)
    assert response.count(b"HTTP/1.1 200 OK") == 1


def test_slow_body_is_let_go(server: ServerProcess) -> None:
    response = exchange(server, raw_request(FIELDS, "slow-body")[:-3])
    assert read_error(response) == (408, "body_timeout")
    assert "error=body_timeout" in server.wait_for_request("slow-body")


def test_body_in_chunks_of_one_byte_is_read(server: ServerProcess) -> None:
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = json.dumps({"prompt": "x" * 3000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    response = exchange(server, head, chunks, b"0\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ") and b"xxx" in response


def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    closing = HEAD + b"Connection: close\r\n\r\n"
    requests = b"".join(raw_request({"prompt": f"number {i}"}, f"pipe-{i}") for i in range(20))
    response = exchange(server, requests + closing)
    places = [response.index(b'number %d"' % i) for i in range(20)]
    assert places == sorted(places)
    assert response.count(b"HTTP/1.1 200 OK") == 21


def test_nonsense_after_a_request_is_no_part_of_its_answer(server: ServerProcess) -> None:
    long = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 3000, "stream": True}
    response = exchange(server, raw_request(long, "nonsense"), b"nonsense\r\n\r\n")
    answer, end, rest = response.partition(b"\r\n0\r\n\r\n")
    assert end and b"HTTP/1.1 400" not in answer
    assert read_error(rest) == (400, "invalid_http")
    assert_serves(server)


UPGRADES = {
    "JDK": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
    "WebSocket": b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
    "two": b"upgrade: foo/2\r\nUpgrade: h2c\r\nconnection: upgrade\r\n",
}
BODY = json.dumps({"prompt": "kept whole"}).encode()
FRAMED = {
    "length": (b"Content-Length: %d\r\n" % len(BODY), BODY),
    "chunks": (
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\n" + BODY[:5] + b"\r\n%x\r\n" % (len(BODY) - 5) + BODY[5:] + b"\r\n0\r\n\r\n",
    ),
}


def split_head(request: bytes) -> list[bytes]:
    head, end, body = request.partition(b"\r\n\r\n")
    return [head + end, body]


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())
@pytest.mark.parametrize(("framing", "body"), FRAMED.values(), ids=FRAMED.keys())
@pytest.mark.parametrize(
    "split",
    [
        pytest.param(lambda request: [request], id="one packet"),
        pytest.param(split_head, id="body after the head"),
        pytest.param(lambda request: [bytes([byte]) for byte in request], id="byte by byte"),
    ],
)
def test_request_that_offers_another_protocol_is_served_in_this_one(
    server: ServerProcess,
    upgrade: bytes,
    framing: bytes,
    body: bytes,
    split: Callable[[bytes], list[bytes]],
) -> None:
    """And the connection is kept: the second request offers it again, the third does not."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    offering = head + upgrade + framing + b"\r\n" + body
    last = HEAD + b"Connection: close\r\n\r\n"
    response = exchange(server, *split(offering), *split(offering), last)
    assert response.count(b"HTTP/1.1 200 OK") == 3
    assert response.count(b"kept whole") == 2
    assert_serves(server)


def test_many_offers_in_one_packet_are_all_answered(server: ServerProcess) -> None:
    offering = HEAD + UPGRADES["JDK"] + b"\r\n"
    response = exchange(server, offering * 50 + HEAD + b"Connection: close\r\n\r\n")
    assert response.count(b"HTTP/1.1 200 OK") == 51


def test_head_that_offers_another_protocol_has_the_same_bounds(server: ServerProcess) -> None:
    fields = b"".join(b"X-%d: x\r\n" % i for i in range(MAX_FIELDS))
    response = exchange(server, HEAD + UPGRADES["JDK"] + fields + b"\r\n")
    assert read_error(response) == (431, "head_too_large")
    assert exchange(server, HEAD + UPGRADES["JDK"]) == b"", "a slow head has no longer time"


def test_connection_to_elsewhere_is_not_opened(server: ServerProcess) -> None:
    response = exchange(server, b"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert read_error(response) == (400, "invalid_http")
    assert_serves(server)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_client_of_http_1_0_gets_no_chunks(server: ServerProcess, stream: bool) -> None:
    request = raw_request({**FIELDS, "stream": stream}, "old").replace(b"HTTP/1.1", b"HTTP/1.0")
    head, _, body = exchange(server, request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in head.lower() and b"transfer-encoding" not in head.lower()
    if stream:
        events = body.decode().split("\n\n")
        assert all(event.startswith("data: ") for event in events[:-1])
        assert events[-2:] == ["data: [DONE]", ""] and "content-length" not in head.decode().lower()
    else:
        assert json.loads(body)["choices"][0]["text"] == "The capital"


def test_long_stream_of_a_client_of_http_1_0_is_whole(server: ServerProcess) -> None:
    fields = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 3000}
    with client_of(server) as client:
        whole = client.post("/v1/completions", json=fields).json()["choices"][0]["text"]
    request = raw_request({**fields, "stream": True}, "old-long")
    response = exchange(server, request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    events = response.partition(b"\r\n\r\n")[2].decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
