"""What clients send without meaning much by it, and HEAD: taken, in every dialect that has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.serving import MODEL_ID, client_of, make_echo_engine, read_events, serving
from tests.server.test_bad_requests import assert_error

TURN = [{"role": "user", "content": "hi"}]
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": TURN},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": TURN, "max_tokens": 9},
}
GET_PATHS = (
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/version",
    "/v1/models",
    f"/v1/models/{MODEL_ID}",
    "/v1/gpu/info",
    "/openapi.json",
)


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_the_body(http: httpx.Client, path: str) -> None:
    head, whole = http.head(path), http.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    same = {"content-type", "content-length", "cache-control"}
    if path == "/metrics":  # it counts requests
        same.remove("content-length")
    assert {name: head.headers[name] for name in same} == {n: whole.headers[n] for n in same}
    assert int(head.headers["content-length"]) > 0


def test_head_of_a_stored_response(http: httpx.Client) -> None:
    stored = http.post("/v1/responses", json={"input": "hi"}).json()["id"]
    for path in (f"/v1/responses/{stored}", f"/v1/responses/{stored}/input_items"):
        assert http.head(path).headers["content-length"] == http.get(path).headers["content-length"]


def test_head_keeps_the_connection_and_its_own_name_in_the_log(http: httpx.Client) -> None:
    for _ in range(3):
        assert "connection" not in http.head("/v1/models").headers
    assert http.head("/nowhere").status_code == 404
    refused = http.head("/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert http.post("/v1/models").headers["allow"] == "GET, HEAD"
    assert 'route="/v1/models",status="200"' in http.get("/metrics").text


def test_head_asks_for_a_key_where_get_does(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "engines" / "echo")
    (tmp_path / "keys").write_text("me: secret\n")
    with (
        serving(tmp_path / "engines", "--api-key-file", str(tmp_path / "keys")) as server,
        client_of(server) as client,
    ):
        assert client.head("/v1/models").status_code == 401
        assert client.head("/health").status_code == 200
        assert client.head("/v1/models", headers={"x-api-key": "secret"}).status_code == 200


@pytest.mark.parametrize(("path", "body"), DIALECTS.items(), ids=DIALECTS)
def test_model_without_a_name_is_the_default_one(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = http.post(path, json={**body, "model": ""})
    assert (answer.status_code, answer.json()["model"]) == (200, MODEL_ID)


def test_compaction_needs_no_name_either(http: httpx.Client) -> None:
    for name in ("", None):  # the SDKs send both; null where a stored response is compacted
        answer = http.post("/v1/responses/compact", json={"model": name, "input": "hi"})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_counting_tokens_needs_no_name_either(http: httpx.Client, path: str) -> None:
    assert http.post(path, json={"messages": TURN, "model": ""}).status_code == 200


NOTHING: list[Any] = [None, [], [""], ["", ""]]


def stop_cases() -> Iterator[Any]:
    for path, body in DIALECTS.items():
        name = "stop_sequences" if path == "/v1/messages" else "stop"
        for nothing in [*NOTHING, *([""] if name == "stop" else [])]:
            yield pytest.param(path, body, name, nothing, id=f"{path} {nothing!r}")


@pytest.mark.parametrize(("path", "body", "name", "nothing"), [*stop_cases()])
def test_stop_that_stops_nothing(
    http: httpx.Client, path: str, body: dict[str, Any], name: str, nothing: object
) -> None:
    """An empty string would stop before the first character."""
    answer = http.post(path, json={**body, name: nothing})
    assert answer.status_code == 200 and "hi" in answer.text


@pytest.mark.parametrize("path", DIALECTS)
def test_any_of_64_stop_strings_stops(http: httpx.Client, path: str) -> None:
    text = "one two three"
    name = "stop_sequences" if path == "/v1/messages" else "stop"
    body = {"prompt": text, "messages": [{"role": "user", "content": text}], "input": text}
    fields = {key: body[key] for key in DIALECTS[path] if key in body}
    stop = [*(f"word {i}" for i in range(61)), "", "three", " two"]
    whole = {**DIALECTS[path], **fields, name: stop, "max_tokens": 99}
    if path == "/v1/responses":
        del whole["max_tokens"]
    answer = http.post(path, json=whole)
    assert answer.status_code == 200, answer.text
    assert "one" in answer.text and "three" not in answer.text


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
@pytest.mark.parametrize("verbosity", ["low", "medium", "high", None])
def test_effort_and_verbosity_are_handed_to_the_template(
    hinted: httpx.Client, effort: str, verbosity: str | None
) -> None:
    body = {"messages": TURN, "reasoning_effort": effort, "verbosity": verbosity}
    text = hinted.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    shown = "high" if effort in ("xhigh", "max") else effort
    assert text == f"effort {shown}, verbosity {verbosity or 'unset'}"


@pytest.mark.parametrize("verbosity", ["low", "medium", "high", None])
def test_verbosity_of_a_response_is_handed_to_the_template(
    hinted: httpx.Client, verbosity: str | None
) -> None:
    fields = {} if verbosity is None else {"text": {"verbosity": verbosity}}
    answer = hinted.post("/v1/responses", json={"input": "hi", **fields}).json()
    text = answer["output"][0]["content"][0]["text"]
    assert text.endswith(f"verbosity {verbosity or 'unset'}")


@pytest.fixture(scope="module")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engines")
    template = "effort {{ reasoning_effort }}, verbosity {{ verbosity or 'unset' }}"
    make_echo_engine(folder / "echo", chat_template=template)
    with serving(folder) as server, client_of(server) as client:
        yield client


def test_what_asks_for_nothing_here_is_taken(http: httpx.Client) -> None:
    prediction = {"type": "content", "content": "user: hi"}
    options = {"include_usage": True, "include_obfuscation": True, "something_new": 1}
    for path in ("/v1/completions", "/v1/chat/completions"):
        body = {**DIALECTS[path], "prediction": prediction}
        assert http.post(path, json=body).status_code == 200
        streamed = {**body, "stream": True, "stream_options": options}
        with http.stream("POST", path, json=streamed) as response:
            assert response.status_code == 200
            assert list(read_events(response))[-1] == "[DONE]"


def test_verbosity_that_there_is_not_is_refused(http: httpx.Client) -> None:
    body = {"messages": TURN, "verbosity": "loud"}
    message = assert_error(
        http.post("/v1/chat/completions", json=body), 400, "invalid_value", "verbosity"
    )
    assert "low" in message
