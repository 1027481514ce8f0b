"""What stands in the responses, byte by byte where it matters: shapes, headers, events."""

from __future__ import annotations

import json
import socket
import threading

import httpx
import openai
import pytest

import deepinfer
from tests.server.serving import (
    CONTEXT_LENGTH,
    DEADLINE_S,
    ENGINE_NAME,
    MAX_WAITING,
    MODEL_ID,
    ServerProcess,
    client_of,
    raw_request,
    read_events,
)
from tests.server.test_bad_requests import assert_error

PROMPT = {"prompt": "The capital"}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_health(http: httpx.Client) -> None:
    response = http.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"status", "model", "gpus", "nvidia_5090"}
    assert (body["status"], body["model"]) == ("healthy", MODEL_ID)
    assert isinstance(body["gpus"], int) and isinstance(body["nvidia_5090"], bool)


def test_liveness_and_readiness(http: httpx.Client) -> None:
    live = http.get("/health/live")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    ready = http.get("/health/ready")
    assert ready.status_code == 200
    engine = {"model": MODEL_ID, "engine": ENGINE_NAME, "phase": "ready", "percent": 100}
    assert ready.json() == {**http.get("/health").json(), "models": [engine]}


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": deepinfer.__version__}


def test_gpu_info_agrees_with_health(http: httpx.Client) -> None:
    response = http.get("/v1/gpu/info")
    assert response.status_code == 200
    assert len(response.json()["gpus"]) == http.get("/health").json()["gpus"]


def test_models(http: httpx.Client, sdk: openai.OpenAI) -> None:
    model = {
        "id": MODEL_ID,
        "object": "model",
        "created": 1767225600,  # the build's 2026-01-01
        "owned_by": "deepinfer",
        "root": MODEL_ID,
        "parent": None,
        "max_model_len": CONTEXT_LENGTH,
        "context_length": CONTEXT_LENGTH,
        "engine": ENGINE_NAME,
        "status": "ready",
    }
    assert http.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert http.get(f"/v1/models/{MODEL_ID}").json() == model
    assert http.get(f"/v1/models/{ENGINE_NAME}").json() == model
    assert [entry.id for entry in sdk.models.list()] == [MODEL_ID]
    assert sdk.models.retrieve(MODEL_ID).id == MODEL_ID


def test_completion_shape(http: httpx.Client) -> None:
    body = http.post("/v1/completions", json=PROMPT).json()
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert (body["object"], body["model"]) == ("text_completion", MODEL_ID)
    assert body["choices"] == [
        {"text": "The capital", "index": 0, "logprobs": None, "finish_reason": "stop"}
    ]
    assert list(body["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]


def test_chat_completion_shape(http: httpx.Client) -> None:
    body = http.post("/v1/chat/completions", json=CHAT).json()
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert body["object"] == "chat.completion"
    message = {"role": "assistant", "content": "user: hi\nassistant:", "refusal": None}
    assert body["choices"] == [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    ]


def test_chat_stream_is_what_the_reference_shows(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        events = list(read_events(response))
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(list(c) == ["id", "object", "created", "model", "choices"] for c in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0] == {"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}
    assert choices[1].keys() == {"index", "delta", "finish_reason"}
    assert choices[1]["delta"].keys() == {"content"}
    assert choices[-1] == {"index": 0, "delta": {}, "finish_reason": "stop"}


def test_usage_chunk_is_the_last_of_a_chat_stream(http: httpx.Client) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        events = list(read_events(response))
    chunks = [json.loads(event) for event in events[:-1]]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"].keys() == {"prompt_tokens", "completion_tokens", "total_tokens"}


@pytest.mark.parametrize(
    "nothing",
    [
        {"stop": None, "seed": None, "max_tokens": None, "temperature": None, "n": None},
        {"stream": False, "stream_options": None, "logit_bias": {}, "response_format": None},
        {"tools": None, "tool_choice": None, "logprobs": None, "best_of": None, "echo": False},
        {"stop": [], "top_k": 0, "user": "someone", "metadata": {"a": "b"}, "store": True},
        {"a_field_that_nobody_knows": [1, 2], "frequency_penalty": -2, "presence_penalty": 2},
    ],
    ids=lambda fields: ", ".join(fields),
)
def test_fields_that_ask_for_nothing_are_taken(
    http: httpx.Client, nothing: dict[str, object]
) -> None:
    response = http.post("/v1/completions", json={**PROMPT, **nothing})
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["text"] == "The capital"


def test_request_id_is_kept_or_made(http: httpx.Client, server: ServerProcess) -> None:
    given = http.get("/v1/models", headers={"x-request-id": "my-id:1"})
    assert given.headers["x-request-id"] == "my-id:1"
    assert "/v1/models 200" in server.wait_for_request("my-id:1")
    made = [http.get("/v1/models").headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_request_id_is_bounded_and_cannot_forge_a_log_line(http: httpx.Client) -> None:
    long = http.get("/v1/models", headers={"x-request-id": "x" * 5000})
    assert long.headers["x-request-id"] == "x" * 128
    odd = http.get("/v1/models", headers={"x-request-id": 'a b"c\td\xe9'.encode("latin-1")})
    assert odd.headers["x-request-id"] == "abcd"


def test_log_line_of_a_request_has_figures_and_no_prompt(
    http: httpx.Client, server: ServerProcess
) -> None:
    secret = "something private"
    http.post("/v1/completions", json={"prompt": secret}, headers={"x-request-id": "logged"})
    line = server.wait_for_request("logged")
    assert "POST /v1/completions 200" in line
    assert "finish=stop" in line and "ttft_ms=" in line and "prompt_tokens=" in line
    assert secret not in server.log


def test_unexpected_path_characters_stay_on_one_log_line(
    http: httpx.Client, server: ServerProcess
) -> None:
    http.get("/%0aforged%20line", headers={"x-request-id": "forged"})
    assert server.wait_for_request("forged").count("/%0aforged%20line 404") == 1


def test_connection_is_kept_for_the_next_request(http: httpx.Client) -> None:
    for _ in range(2):
        response = http.post("/v1/completions", json=PROMPT)
        assert "connection" not in response.headers


def test_full_queue_is_429_before_any_event(http: httpx.Client) -> None:
    for stream in (False, True):
        body = {**PROMPT, "n": MAX_WAITING + 1, "stream": stream}
        response = http.post("/v1/completions", json=body)
        assert_error(response, 429, "queue_full", None)
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(response.headers["retry-after"]) <= 120
    assert http.post("/v1/completions", json={**PROMPT, "n": 2}).status_code == 200


def test_disconnect_in_the_middle_of_a_body(http: httpx.Client, server: ServerProcess) -> None:
    with socket.create_connection(server.address) as half:
        half.sendall(raw_request(PROMPT, "half")[:-3])
    assert "499 disconnected" in server.wait_for_request("half")
    assert http.post("/v1/completions", json=PROMPT).status_code == 200


def test_printed_snippet_works(server: ServerProcess) -> None:
    server.wait_for_log(r"print\(answer.*\n")
    snippet = server.log[server.log.index("from openai import") :].split("\n\n20")[0]
    lines: list[str] = []
    exec(compile(snippet, "snippet", "exec"), {"print": lines.append})
    assert lines == ["user: Tell me a story\nassistant:"]


def test_many_clients_at_once_get_their_own_answers(server: ServerProcess) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        body = {"prompt": f"client number {number}", "stream": number % 2 == 0}
        with (
            client_of(server) as client,
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            if number % 2:
                answers[number] = json.loads(response.read())["choices"][0]["text"]
            else:
                chunks = [json.loads(event) for event in list(read_events(response))[:-1]]
                answers[number] = "".join(chunk["choices"][0]["text"] for chunk in chunks)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert answers == {number: f"client number {number}" for number in range(12)}
