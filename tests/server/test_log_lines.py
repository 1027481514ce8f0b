"""The line that a server logs for each request, as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.server.serving import make_echo_engine, starting
from tests.server.watched import client_for, make_state

BODY = {"prompt": "something private"}
HEADERS = {"x-request-id": "mine"}


async def test_line_of_a_request_says_what_became_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deepinfer")
    state, _ = make_state(tmp_path / "echo")
    async with client_for(state) as client:
        await client.post("/v1/completions?x=1", json=BODY)
        await client.post("/v1/completions", json={**BODY, "temperature": 9})
        await client.get("/health")
        await client.get("/metrics")
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("context")]
    answered, refused = ([word.split("=")[0] for word in line.split()] for line in lines)
    assert answered == [
        *("POST", "/v1/completions", "200", "model", "prompt_tokens", "completion_tokens"),
        *("finish", "queue_ms", "ttft_ms", "elapsed_ms"),
    ]
    assert refused == ["POST", "/v1/completions", "400", "error", "elapsed_ms"]
    assert "error=invalid_value" in lines[1]


def test_json_log_has_the_words_of_a_line_as_keys_and_no_other_lines(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with starting(tmp_path, "--log-format", "json") as server:
        url = json.loads(server.wait_for_log(r".*listening on .*\n")[0])["message"].split()[-1]
        server.wait_for_log("ready after")
        assert httpx.post(f"{url}/v1/completions", json=BODY, headers=HEADERS).status_code == 200
        server.signal()
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    (line,) = (one for one in lines if one.get("request_id") == "mine")
    assert line["level"] == "info"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/completions", 200)
    assert (line["model"], line["finish"]) == ("test/echo", "stop")
    assert line["prompt_tokens"] > 1 and line["completion_tokens"] > 1
    assert 0 < line["ttft_ms"] <= line["elapsed_ms"]
    assert 0 <= line["queue_ms"] <= line["ttft_ms"]
    assert "private" not in server.log


def test_engine_process_logs_in_the_format_of_its_server(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", fault_token_id=200)
    with starting(tmp_path, "--log-format", "json") as server:
        url = json.loads(server.wait_for_log(r".*listening on .*\n")[0])["message"].split()[-1]
        server.wait_for_log("ready after")
        assert httpx.post(f"{url}/v1/completions", json={"prompt": [200]}).status_code == 503
        failure = json.loads(server.wait_for_log(r".*the engine failed.*\n")[0])
    assert (failure["logger"], failure["level"]) == ("deepinfer.runtime.engine_process", "error")
    assert failure["exception"].startswith("Traceback")
