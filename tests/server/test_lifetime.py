"""From the first moment to the last: loading, disconnects, a dead engine, the drain, the exit."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
from pathlib import Path

import httpx

from deepinfer.manifest import Target, write_manifest
from deepinfer.server import lifetime
from tests.server.serving import (
    LOAD_MS,
    client_of,
    make_echo_engine,
    raw_request,
    read_events,
    serving,
    starting,
)
from tests.server.test_bad_requests import assert_error

STEP_US = 2_000
ENDLESS = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000}  # 8 s at that rate
SHORT = {"prompt": "short"}


def assert_not_ready(response: httpx.Response, code: str) -> None:
    assert response.status_code == 503
    body = response.json()
    assert body.keys() == {"error", "detail", "phase", "percent"}
    assert body["error"]["code"] == code
    assert int(response.headers["retry-after"]) >= 1


def test_health_says_the_phase_while_the_engine_loads(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", load_ms=LOAD_MS)
    with starting(tmp_path) as server, client_of(server) as client:
        health = client.get("/health")
        assert_not_ready(health, "engine_loading")
        assert health.json()["detail"] == "Engine not initialized"
        early = client.post("/v1/completions", json=SHORT)
        if early.status_code != 200:
            assert_error(early, 503, "engine_loading", None)
            assert early.json()["detail"] == "Engine not initialized"
        server.wait_ready()
        assert client.get("/health").status_code == 200
        server.signal()
        assert server.wait() == 0


def test_disconnect_frees_the_slot_wherever_the_request_stands(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", max_batch_size=1, step_us=STEP_US)
    with serving(tmp_path) as server, client_of(server) as client:
        streaming = {**ENDLESS, "stream": True}
        headers = {"x-request-id": "streaming"}
        with client.stream("POST", "/v1/completions", json=streaming, headers=headers) as response:
            next(read_events(response))
            # The only slot is taken: this one waits.
            with socket.create_connection(server.address) as queued:
                queued.sendall(raw_request(ENDLESS, "queued"))
            assert "499 disconnected" in server.wait_for_request("queued")
            assert "completion_tokens=0" in server.wait_for_request("queued")
        assert "200 disconnected" in server.wait_for_request("streaming")
        with socket.create_connection(server.address) as running:
            running.sendall(raw_request(ENDLESS, "running"))
        assert "499 disconnected" in server.wait_for_request("running")
        # Were a slot still held, this would take longer than the client waits.
        assert client.post("/v1/completions", json=SHORT, timeout=3).status_code == 200


def test_stream_outlives_its_engine(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US, counts=True, fault_token_id=200)
    with serving(tmp_path) as server, client_of(server) as client:
        body = {**ENDLESS, "max_tokens": 300}
        undisturbed = client.post("/v1/completions", json=body).json()
        pid = int(server.wait_for_log(r"engine process (\d+) started")[1])
        streaming = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/completions", json=streaming) as response:
            events = read_events(response)
            seen = [next(events)]
            os.kill(pid, signal.SIGKILL)
            seen += events
        *chunks, usage = [json.loads(event) for event in seen if event != "[DONE]"]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert text == undisturbed["choices"][0]["text"]
        assert usage["usage"] == undisturbed["usage"]
        fatal = client.post("/v1/completions", json={"prompt": [200]})
        assert_error(fatal, 503, "engine_unavailable", None)
        assert fatal.headers["x-should-retry"] == "false"
        server.wait_for_log(r"engine `echo.simulated` loaded", count=4)
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_without_resuming_a_dead_engine_ends_streams_with_an_error(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US, fault_token_id=200)
    with serving(tmp_path, "--resume-attempts", "0") as server, client_of(server) as client:
        pid = int(server.wait_for_log(r"engine process (\d+) started")[1])
        body = {**ENDLESS, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            events = read_events(response)
            next(events)
            os.kill(pid, signal.SIGKILL)
            last = list(events)[-1]
        assert json.loads(last).keys() == {"error"}
        assert json.loads(last)["error"]["code"] == "engine_unavailable"
        assert_not_ready(client.get("/health"), "engine_unavailable")
        refused = client.post("/v1/completions", json=SHORT)
        assert_error(refused, 503, "engine_unavailable", None)
        server.wait_for_log(r"engine `echo.simulated` loaded", count=2)
        assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json=SHORT).status_code == 200
        fatal = client.post("/v1/completions", json={"prompt": [200]})
        assert_error(fatal, 503, "engine_unavailable", None)
        server.wait_for_log(r"engine `echo.simulated` loaded", count=3)
        assert client.post("/v1/completions", json=SHORT).status_code == 200


def test_sigterm_lets_a_stream_finish_and_takes_no_more_work(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US)
    with serving(tmp_path) as server, client_of(server) as client:
        body = {**ENDLESS, "max_tokens": 300, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            events = read_events(response)
            next(events)
            server.signal()
            server.wait_for_log("SIGTERM")
            late = client.post("/v1/completions", json=SHORT)
            assert_error(late, 503, "shutting_down", None)
            assert late.headers["connection"] == "close"
            assert int(late.headers["retry-after"]) >= 1
            assert_not_ready(client.get("/health"), "shutting_down")
            assert client.get("/health/ready").status_code == 503
            assert client.get("/health/live").status_code == 200
            rest = list(events)
        assert rest[-1] == "[DONE]"
        assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


def test_stream_that_outlasts_the_drain_ends_with_an_error(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US)
    with serving(tmp_path, "--shutdown-timeout", "0.1") as server, client_of(server) as client:
        body = {**ENDLESS, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            events = read_events(response)
            next(events)
            server.signal()
            last = list(events)[-1]
        assert json.loads(last)["error"]["code"] == "shutting_down"
        assert server.wait() == 0


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US)
    with serving(tmp_path) as server, client_of(server) as client:
        body = {**ENDLESS, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            events = read_events(response)
            next(events)
            server.signal(signal.SIGINT)
            server.wait_for_log("SIGINT: running")
            server.signal(signal.SIGINT)
            assert "error" in json.loads(list(events)[-1])
        assert server.wait() == 0


def test_killed_server_leaves_no_engine_process(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=STEP_US)
    with serving(tmp_path) as server, client_of(server) as client:
        engine = os.pidfd_open(int(server.wait_for_log(r"engine process (\d+) started")[1]))
        with client.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as response:
            next(read_events(response))
            server.signal(signal.SIGKILL)
            # The descriptor can be read once the process has ended.
            assert select.select([engine], [], [], 1)[0] == [engine]
    os.close(engine)


def test_port_in_use_is_one_line(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with starting(tmp_path, "--port", port) as server:
            assert server.wait() == 1
    assert f"error: port {port} of 127.0.0.1 is already in use\nhint: " in server.log
    assert "Traceback" not in server.log


def test_engine_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    engine = make_echo_engine(tmp_path / "echo")
    record = engine.manifest.backend.model_copy(update={"name": "tensorrt-llm"})
    target = Target(kind="gpu", name="any", capability="sm_120")
    changed = engine.manifest.model_copy(update={"backend": record, "target": target})
    write_manifest(engine.path, changed)
    with starting(tmp_path) as server:
        assert server.wait() == 1
    assert "error: engine `echo.simulated` was built for sm_120; this machine has no" in server.log
    assert "hint: " in server.log
    assert "Traceback" not in server.log


def test_collections_pass_over_what_a_server_is_made_of() -> None:
    before = gc.get_freeze_count()
    kept = [[number] for number in range(1_000)]
    lifetime.keep_for_good()
    try:
        assert gc.get_freeze_count() > before + len(kept)
        assert not any(one is kept[0] for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_one_engine_of_many_is_served_when_it_is_named(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "one", name="one", model_id="test/one")
    make_echo_engine(tmp_path / "two", name="two", model_id="test/two", chat_template=None)
    with serving(tmp_path, "--model", "two") as server, client_of(server) as client:
        assert client.get("/health").json()["model"] == "test/two"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["test/two"]
        # This one has no chat template: the route says so, and the snippets show the other one.
        body = {"messages": [{"role": "user", "content": "hi"}]}
        response = client.post("/v1/chat/completions", json=body)
        message = assert_error(response, 400, "invalid_value", "messages")
        assert "no chat template" in message
        assert "/v1/completions" in server.log.split("Base URL")[1]


def test_public_address_without_a_key_warns(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with starting(tmp_path, "--host", "0.0.0.0") as server:
        assert "localhost" in server.wait_ready()
        assert "WARNING" in server.wait_for_log(".*ANYONE who can reach.*")[0]
        server.signal(signal.SIGINT)
        assert server.wait() == 0
