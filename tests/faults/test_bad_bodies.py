"""Bodies made to hurt: each is answered at once, or refused at once, while others are served."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.server.serving import ServerProcess, client_of, make_echo_engine, serving
from tests.server.test_bad_requests import assert_error

JSON = {"content-type": "application/json"}
NUM_ROUNDS = 4
NUM_CLIENTS = 6
MAX_GROWTH_BYTES = 32 * 2**20
REFUSED: dict[str, tuple[bytes, str]] = {
    "number of 10,000 digits": (b'{"prompt":"a","max_tokens":' + b"9" * 10_000 + b"}", "invalid"),
    "float of 10,000 digits": (
        b'{"prompt":"a","temperature":' + b"9" * 10_000 + b".0}",
        "invalid",
    ),
    "exponent": (b'{"prompt":"a","temperature":1e-99999999999,"top_p":1e99999}', "invalid_value"),
    "NaN in an unknown field": (b'{"prompt":"a","x":NaN}', ""),
    "lone surrogate in a key": (b'{"prompt":"a","\\ud800":1}', "invalid_json"),
    "open strings": (b'{"prompt":"' + b"\\u" * 100_000, "invalid_json"),
    "many keys": (b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}", "missing"),
    "many errors": (json.dumps({"prompt": "a", "stop": [[]] * 100_000}).encode(), "invalid_value"),
    "many biases": (
        json.dumps({"prompt": "a", "logit_bias": {str(i): 1 for i in range(100_000)}}).encode(),
        "invalid_value",
    ),
    "many sequences": (b'{"prompt":["a","b","c"],"n":128,"best_of":20}', "in"),
    "huge n": (b'{"prompt":"a","n":999999999999}', "invalid_value"),
    "n times prompts": (json.dumps({"prompt": ["a"] * 1024, "n": 128}).encode(), "invalid_value"),
    "token id beyond 64 bits": (b'{"prompt":[99999999999999999999]}', "invalid_value"),
    "negative token id": (b'{"prompt":[-1]}', "invalid_value"),
    "long prompt": (json.dumps({"prompt": "a " * 30_000}).encode(), "context_length_exceeded"),
    "brackets": (b"[" * 1_000_000, "invalid_json"),
    "objects": (b'{"a":' * 200_000, "invalid_json"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    with serving(folder) as process:
        yield process


def post(http: httpx.Client, body: bytes) -> httpx.Response:
    return http.post("/v1/completions", content=body, headers=JSON)


@pytest.mark.parametrize("name", REFUSED)
def test_body_is_refused_and_the_next_one_served(server: ServerProcess, name: str) -> None:
    body, code = REFUSED[name]
    with client_of(server) as http:
        response = post(http, body)
        if code:
            assert response.status_code == 400
            assert response.json()["error"]["code"].startswith(code)
            assert len(response.content) < 2000
        assert post(http, b'{"prompt":"next"}').json()["choices"][0]["text"] == "next"


@pytest.mark.parametrize("text", ["a\x00b", "\ufeff", "\u202e", "a\r\n\x1b[31m", "\U0010ffff"])
def test_odd_characters_come_back_as_they_were(server: ServerProcess, text: str) -> None:
    with client_of(server) as http:
        answer = http.post("/v1/completions", json={"prompt": text})
    assert answer.json()["choices"][0]["text"] == text


def test_last_of_two_equal_keys_counts(server: ServerProcess) -> None:
    with client_of(server) as http:
        answer = post(http, b'{"prompt":"first","max_tokens":0,"prompt":"last","max_tokens":9}')
    assert answer.json()["choices"][0]["text"].startswith("last")


def test_memory_does_not_grow_with_bad_bodies(server: ServerProcess) -> None:
    """The first rounds fill what the C library keeps for each thread that parses or tokenises."""

    def send_all() -> None:
        with client_of(server) as http:
            for body, _ in REFUSED.values():
                post(http, body)

    def run_round() -> int:
        threads = [threading.Thread(target=send_all) for _ in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return int(psutil.Process(server.pid).memory_info().rss)

    before = max(run_round() for _ in range(NUM_ROUNDS))
    after = min(run_round() for _ in range(NUM_ROUNDS))
    assert after - before < MAX_GROWTH_BYTES


def test_a_stream_goes_on_beside_large_bodies(tmp_path_factory: pytest.TempPathFactory) -> None:
    """benchmarks/large_bodies.py says how much it is delayed; here, that it is whole."""
    folder = tmp_path_factory.mktemp("slow")
    make_echo_engine(folder / "echo", step_us=1000)
    body: dict[str, Any] = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 400}
    large = json.dumps({"prompt": "a " * 500_000}).encode()
    with serving(folder) as server, client_of(server) as http:
        whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        refusals: list[httpx.Response] = []
        sender = threading.Thread(
            target=lambda: refusals.extend(post(http, large) for _ in range(2))
        )
        sender.start()
        with client_of(server) as other:
            beside = other.post("/v1/completions", json=body).json()["choices"][0]["text"]
        sender.join()
    assert beside == whole
    for refusal in refusals:
        assert_error(refusal, 400, "context_length_exceeded", "prompt")
