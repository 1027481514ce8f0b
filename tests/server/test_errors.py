"""How errors look from outside, for each leaf of the tree."""

from __future__ import annotations

import json
import logging

import pytest

from deepinfer import errors
from deepinfer.errors import RequestError
from deepinfer.server.errors import as_request_error, error_response, format_path

LEAVES = [
    (errors.InvalidHttp, 400, "invalid_request_error", {}),
    (errors.InvalidJson, 400, "invalid_request_error", {}),
    (errors.MissingParameter, 400, "invalid_request_error", {}),
    (errors.InvalidValue, 400, "invalid_request_error", {}),
    (errors.ContextLengthExceeded, 400, "invalid_request_error", {}),
    (errors.UnsupportedParameter, 400, "invalid_request_error", {}),
    (errors.InvalidApiKey, 401, "authentication_error", {"www-authenticate": "Bearer"}),
    (errors.HostNotAllowed, 403, "invalid_request_error", {}),
    (errors.NotFound, 404, "invalid_request_error", {}),
    (errors.ModelNotFound, 404, "invalid_request_error", {}),
    (errors.MethodNotAllowed, 405, "invalid_request_error", {}),
    (errors.BodyTimeout, 408, "invalid_request_error", {}),
    (errors.ContentTooLarge, 413, "invalid_request_error", {}),
    (errors.UnsupportedMediaType, 415, "invalid_request_error", {}),
    (errors.QueueFull, 429, "rate_limit_error", {"retry-after": "5"}),
    (errors.HeadTooLarge, 431, "invalid_request_error", {}),
    (errors.InternalError, 500, "server_error", {"x-should-retry": "false"}),
    (errors.EngineLoading, 503, "server_error", {"retry-after": "5"}),
    (errors.ShuttingDown, 503, "server_error", {"retry-after": "5"}),
    (errors.EngineUnavailable, 503, "server_error", {"retry-after": "5"}),
    (errors.RequestTimeout, 504, "server_error", {"x-should-retry": "false"}),
]
TELLING = {"www-authenticate", "retry-after", "x-should-retry"}


@pytest.mark.parametrize(
    ("kind", "status", "type_", "headers"), LEAVES, ids=[leaf[0].__name__ for leaf in LEAVES]
)
def test_error_has_both_forms_and_its_headers(
    kind: type[RequestError], status: int, type_: str, headers: dict[str, str]
) -> None:
    response = error_response(kind("What happened", param="n"))
    assert response.status_code == status
    body = json.loads(bytes(response.body))
    assert body["error"] == {
        "message": "What happened",
        "type": type_,
        "param": "n",
        "code": kind.code,
    }
    assert isinstance(body["detail"], str)
    found = {name: value for name, value in response.headers.items() if name in TELLING}
    assert found == headers


@pytest.mark.parametrize(("asked", "sent"), [(0, "1"), (7, "7"), (500, "120")])
def test_retry_after_is_bounded(asked: int, sent: str) -> None:
    response = error_response(errors.QueueFull("full", retry_after_s=asked))
    assert response.headers["retry-after"] == sent


def test_detail_is_the_promised_text_while_there_is_no_engine() -> None:
    body = json.loads(bytes(error_response(errors.EngineLoading("loading, 5%")).body))
    assert body["detail"] == "Engine not initialized"
    assert body["error"]["message"] == "loading, 5%"


def test_unforeseen_exception_tells_the_client_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        error = as_request_error(ValueError("/secret/path"))
    assert isinstance(error, errors.InternalError)
    assert "secret" not in error.message
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ((), ""),
        (("n",), "n"),
        (("messages", 0, "content"), "messages[0].content"),
        (("messages", 0, "content", "[1].type"), "messages[0].content[1].type"),
        (("stop", "[2]"), "stop[2]"),
        (("stream_options", "x"), "stream_options.x"),
    ],
    ids=str,
)
def test_place_in_a_body_is_written_as_openai_does(
    location: tuple[int | str, ...], path: str
) -> None:
    assert format_path(location) == path
