"""Requests that take too long, in the queue or in all: a true end, and a free slot after it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import openai
import pytest

from tests.server.serving import client_of, make_echo_engine, read_events, serving
from tests.server.test_bad_requests import assert_error

STEP_US = 5_000
ENDLESS = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000}  # 20 s at that rate
SHORT = {"prompt": "short"}


def assert_timeout(response: httpx.Response, words: str) -> None:
    assert_error(response, 504, "request_timeout", None)
    assert words in response.json()["detail"]
    assert response.headers["x-should-retry"] == "false"


def test_request_that_takes_too_long_in_all_is_ended(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", max_batch_size=1, step_us=STEP_US)
    with serving(tmp_path, "--request-timeout", "0.5") as server, client_of(server) as client:
        assert_timeout(client.post("/v1/completions", json=ENDLESS), "longer than 0.5 s")
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
            assert response.status_code == 200
            *chunks, last = read_events(response)
        assert chunks and json.loads(last)["error"]["code"] == "request_timeout"
        # The only slot is free again.
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_sdk_raises_for_a_stream_that_is_timed_out(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US)
    with (
        serving(tmp_path, "--request-timeout", "0.5") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as sdk,
    ):
        stream = sdk.completions.create(
            model="test/echo",
            prompt="a b c",
            max_tokens=4000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        with pytest.raises(openai.APIError, match=r"longer than 0\.5 s"):
            list(stream)


def test_request_that_waits_too_long_leaves_the_queue_and_the_running_one_goes_on(
    tmp_path: Path,
) -> None:
    make_echo_engine(tmp_path / "echo", max_batch_size=1, step_us=STEP_US)
    with serving(tmp_path, "--queue-timeout", "0.3") as server, client_of(server) as client:
        running = {**ENDLESS, "max_tokens": 300, "stream": True}
        with client.stream("POST", "/v1/completions", json=running) as response:
            events = read_events(response)
            next(events)
            assert_timeout(client.post("/v1/completions", json=SHORT), "waited 0.3 s")
            assert list(events)[-1] == "[DONE]"
        assert client.post("/v1/completions", json=SHORT).status_code == 200
