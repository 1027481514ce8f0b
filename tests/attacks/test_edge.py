"""The edge of HTTP: the name that is called, and what comes behind a request or a response."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.types import Message

from deepinfer.config import ServeConfig, ServerSection
from deepinfer.errors import BodyTimeout
from deepinfer.server import body
from deepinfer.server.keys import KeyRing, parse_keys
from deepinfer.server.protocol import LINGER_S, MAX_LINGER_BYTES
from deepinfer.server.token_bodies import TokenizeBody
from tests.server.serving import (
    DEADLINE_S,
    ServerProcess,
    client_of,
    make_echo_engine,
    raw_request,
    serving,
)
from tests.server.test_bad_requests import assert_error
from tests.server.watched import client_for, make_state

KEY = "a-key-of-this-test"
LARGE = 10**9
BUFFERED_BYTES = 8 * 2**20  # of a socket's two ends, at most
LONG_STREAM = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 3000, "stream": True}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    key_file = folder.parent / "keys-of-edge"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    options = ("--max-body-bytes", "1024", "--api-key-file", str(key_file))
    with serving(folder, *options) as process:
        yield process


def read_all(client: socket.socket) -> bytes:
    """What comes until the server says that no more will."""
    received = b""
    while piece := client.recv(65_536):
        received += piece
    return received


def head(line: str, *fields: str, key: str | None = KEY) -> bytes:
    named = [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([line, "Host: localhost", *named, *fields, "", ""]).encode()


# A response that does not wait for the body

POST = "POST /v1/completions HTTP/1.1"
UNENDING = f"Content-Length: {LARGE}"
EARLY = {
    "401": (head(POST, UNENDING, key=None), 401),
    "404": (head("POST /nowhere HTTP/1.1", UNENDING), 404),
    "413 by its length": (head(POST, UNENDING), 413),
    "413 by its chunks": (
        head(POST, "Transfer-Encoding: chunked") + b"800\r\n" + b" " * 2048 + b"\r\n",
        413,
    ),
    "GET with a body": (head("GET /v1/models HTTP/1.1", UNENDING), 200),
    "GET with chunks": (head("GET /health HTTP/1.1", "Transfer-Encoding: chunked"), 200),
    "HTTP/1.0": (head("POST /nowhere HTTP/1.0", UNENDING), 404),
}


@pytest.mark.parametrize(("request_head", "status"), EARLY.values(), ids=EARLY.keys())
def test_early_response_ends_the_connection_of_a_client_that_goes_on(
    server: ServerProcess, request_head: bytes, status: int
) -> None:
    with socket.create_connection(server.address, DEADLINE_S) as client:
        client.sendall(request_head)
        response = read_all(client)
        fields, _, content = response.partition(b"\r\n\r\n")
        assert fields.startswith(b"HTTP/1.1 %d " % status)
        assert fields.lower().count(b"connection: close") == 1
        assert json.loads(content)
        num_taken = 0
        with pytest.raises(OSError):  # it is closed, and soon
            while num_taken < MAX_LINGER_BYTES + BUFFERED_BYTES:
                num_taken += client.send(b" " * 65_536)
    assert num_taken < MAX_LINGER_BYTES + BUFFERED_BYTES


def test_silent_client_does_not_keep_the_connection_of_an_early_response(
    server: ServerProcess,
) -> None:
    with socket.create_connection(server.address, DEADLINE_S) as client:
        client.sendall(head("POST /nowhere HTTP/1.1", UNENDING))
        read_all(client)
        began_at = time.monotonic()
        with pytest.raises(OSError):
            while True:
                client.send(b" ")
                time.sleep(LINGER_S / 20)  # the client's pace is what is tested
    assert time.monotonic() - began_at < DEADLINE_S / 2


def test_connection_is_kept_when_the_body_came_in_time(server: ServerProcess) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with client_of(server, headers=headers) as client:
        for _ in range(2):
            response = client.post("/v1/completions", json={"prompt": "x"})
            assert response.status_code == 200 and "connection" not in response.headers


async def test_body_that_stalls_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_PAUSE_S", 0.05)
    pieces: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": []}, receive)
    limits = ServerSection(receive_timeout_s=DEADLINE_S)
    with pytest.raises(BodyTimeout, match=r"nothing of it came for 0\.05 s"):
        await asyncio.wait_for(body.read_json(request, TokenizeBody, limits=limits), DEADLINE_S)


async def test_slow_body_is_read_as_long_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all it may take the longer time: the pauses between its pieces are what is short."""
    monkeypatch.setattr(body, "MAX_PAUSE_S", 0.5)
    text = b'{"prompt": "x"}'
    pieces = [text[i : i + 1] for i in range(len(text))]

    async def receive() -> Message:
        await asyncio.sleep(0.05)  # the client's pace
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    request = Request({"type": "http", "headers": []}, receive)
    limits = ServerSection(receive_timeout_s=DEADLINE_S)
    assert (await body.read_json(request, TokenizeBody, limits=limits)).prompt == "x"


# What follows a request


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"nonsense\r\n\r\n", id="garbage"),
        pytest.param(b"\x16\x03\x01" * 40_000, id="much garbage"),
        pytest.param(b"GET /v1/models HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", id="wrong length"),
    ],
)
def test_garbage_behind_a_request_does_not_end_its_stream(engines: Path, garbage: bytes) -> None:
    request = raw_request(LONG_STREAM, "before-garbage")
    with serving(engines) as server:
        with client_of(server) as http:
            fields = {**LONG_STREAM, "stream": False}
            whole = http.post("/v1/completions", json=fields).json()["choices"][0]["text"]
        with socket.create_connection(server.address, DEADLINE_S) as client:
            client.sendall(request)
            client.sendall(garbage)
            response = read_all(client)
    stream, end, rest = response.partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert end
    events = [line for line in stream.split(b"\n") if line.startswith(b"data: ")]
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole
    assert rest.startswith(b"HTTP/1.1 400 ") and b"connection: close" in rest


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param((), id="none"),
        pytest.param(("localhost", "localhost"), id="two"),
        pytest.param(("localhost", "evil.example"), id="two names"),
        pytest.param(("local host",), id="a space"),
        pytest.param(("a/b",), id="a path"),
        pytest.param(("user@localhost",), id="a user"),
        pytest.param(("localhost, evil.example:80",), id="a list"),
        pytest.param(("localhost:port",), id="no port"),
    ],
)
def test_request_has_one_host(server: ServerProcess, hosts: tuple[str, ...]) -> None:
    fields = [f"Host: {host}" for host in hosts]
    request = "\r\n".join(["GET /health HTTP/1.1", *fields, "", ""]).encode()
    with socket.create_connection(server.address, DEADLINE_S) as client:
        client.sendall(request)
        response = read_all(client)
    fields_, _, content = response.partition(b"\r\n\r\n")
    assert fields_.startswith(b"HTTP/1.1 400 ")
    assert json.loads(content)["error"]["code"] == "invalid_http"


# The name that the server is called by

OURS = [
    *("localhost", "LOCALHOST:8000", "localhost.:1", "app.localhost", "127.0.0.1", "[::1]:8000"),
    *("10.0.3.4:8000", "[fe80::1]", socket.gethostname()),
]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"]
OTHERS += ["evillocalhost", "", "example.com"]


@pytest.mark.parametrize("host", OURS)
async def test_server_without_a_key_answers_to_its_own_names(
    tmp_path_factory: pytest.TempPathFactory, host: str
) -> None:
    state, _ = make_state(tmp_path_factory.mktemp("e") / "echo")
    async with client_for(state) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/health", "/openapi.json"])
@pytest.mark.parametrize("host", OTHERS)
async def test_page_that_points_its_name_at_the_server_gets_nothing(
    tmp_path_factory: pytest.TempPathFactory, host: str, path: str
) -> None:
    state, _ = make_state(tmp_path_factory.mktemp("e") / "echo")
    async with client_for(state) as client:
        response = await client.get(path, headers={"host": host})
    assert_error(response, 403, "host_not_allowed", None)
    assert "--allowed-host" in response.json()["detail"]


@pytest.mark.parametrize(
    ("allowed", "host", "status"),
    [
        ("deepinfer", "deepinfer:8000", 200),  # a service of Compose
        ("*.svc.cluster.local", "deepinfer.ai.svc.cluster.local", 200),  # of Kubernetes
        ("*.example.com", "example.com", 403),
        ("*.example.com", "evilexample.com", 403),
        ("*", "anything.example", 200),
        ("a.example,b.example", "B.example", 200),
    ],
)
async def test_server_answers_to_the_names_that_it_is_given(
    tmp_path_factory: pytest.TempPathFactory, allowed: str, host: str, status: int
) -> None:
    config = ServeConfig.model_validate({"server": {"allowed_hosts": allowed}})
    state, _ = make_state(tmp_path_factory.mktemp("e") / "echo", config=config)
    async with client_for(state) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status


async def test_server_with_a_key_answers_to_every_name(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = ServeConfig()
    keys = KeyRing(parse_keys(KEY, "x", "x", config.limits))
    state, _ = make_state(tmp_path_factory.mktemp("e") / "echo", config=config, keys=keys)
    headers = {"host": "anything.example", "authorization": f"Bearer {KEY}"}
    async with client_for(state) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nowhere", "/v1/responses/resp_1", "/"])
async def test_without_a_valid_key_every_answer_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    config = ServeConfig()
    keys = KeyRing(parse_keys(KEY, "x", "x", config.limits))
    state, _ = make_state(tmp_path_factory.mktemp("e") / "echo", config=config, keys=keys)
    attempts = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic wrong"},
        {"authorization": ""},
        {"x-api-key": KEY[:-1]},
    ]
    async with client_for(state) as client:
        bodies = {(await client.get(path, headers=headers)).content for headers in attempts}
        reference = (await client.get("/v1/models")).content
    assert bodies == {reference}


# Grammars that nest

DEEP_GRAMMARS = {
    "optional": 'root ::= "a"' + "?" * 1_000,
    "repeated": 'root ::= "a"' + "*" * 5_000,
    "counted": 'root ::= "a"' + "{1}" * 1_000,
    "groups": "root ::= " + "(" * 1_000 + '"a"' + ")" * 1_000,
    "counted groups": "root ::= " + "(" * 60 + '"a"' + ")????" * 60,
}


@pytest.mark.parametrize("grammar", DEEP_GRAMMARS.values(), ids=DEEP_GRAMMARS.keys())
async def test_grammar_that_nests_deep_is_answered(tmp_path: Path, grammar: str) -> None:
    state, _ = make_state(tmp_path / "echo")
    async with client_for(state) as client:
        fields = {"prompt": "x", "guided_grammar": grammar}
        response = await client.post("/v1/completions", json=fields)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"] == "guided_grammar"
