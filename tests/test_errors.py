"""The exception tree: what it promises to the terminal, to HTTP clients and to its own drawing."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from deepinfer import errors
from deepinfer.errors import (
    CommandError,
    DeepInferError,
    InternalError,
    InvalidRequest,
    InvalidValue,
    ModelNotFound,
    QueueFull,
    RequestError,
    request_error_by_code,
)

# The type that the OpenAI SDK's error classes and OpenAI's own answers go with, by status.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}


def descendants(root: type[DeepInferError]) -> Iterator[type[DeepInferError]]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


# What a client is told not to send again is the same error to it otherwise.
FINAL = {errors.AboveRateLimit, errors.RequestAbandoned}
REQUEST_ERRORS = [
    kind
    for kind in descendants(RequestError)
    if issubclass(kind, RequestError) and kind is not InvalidRequest and kind not in FINAL
]


def test_drawing_shows_every_class_under_its_parent() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"( {4,})([A-Z]\w+)\b", line):
            depth = len(match[1]) // 2 - 2
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[-2] if depth else ""
    actual = {kind.__name__: kind.__mro__[1].__name__ for kind in descendants(DeepInferError)}
    # InvalidRequest only gathers what clients' mistakes share; the drawing leaves it out.
    del actual["InvalidRequest"]
    shown = {
        name: "RequestError" if parent == "InvalidRequest" else parent
        for name, parent in actual.items()
    }
    assert drawn == {"DeepInferError": "", **shown}


@pytest.mark.parametrize("kind", REQUEST_ERRORS, ids=lambda kind: kind.__name__)
def test_drawing_shows_status_and_code(kind: type[RequestError]) -> None:
    assert re.search(rf"{kind.__name__} +{kind.status} {kind.code}\n", errors.__doc__ or "")


@pytest.mark.parametrize("kind", sorted(FINAL, key=str), ids=lambda kind: kind.__name__)
def test_error_that_is_final_differs_from_its_parent_in_that_only(kind: type[RequestError]) -> None:
    parent = kind.__mro__[1]
    assert (kind.status, kind.type, kind.code) == (parent.status, parent.type, parent.code)
    line = rf"{kind.__name__} +{kind.status} {kind.code}, not to be sent again\n"
    assert re.search(line, errors.__doc__ or "")


@pytest.mark.parametrize("kind", REQUEST_ERRORS, ids=lambda kind: kind.__name__)
def test_type_goes_with_the_status(kind: type[RequestError]) -> None:
    assert kind.type == TYPES[kind.status]


@pytest.mark.parametrize("kind", REQUEST_ERRORS, ids=lambda kind: kind.__name__)
def test_error_is_found_again_by_its_code(kind: type[RequestError]) -> None:
    assert request_error_by_code(kind.code) is kind


def test_unknown_code_is_our_own_fault() -> None:
    assert request_error_by_code("from_the_future") is InternalError


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in REQUEST_ERRORS]
    assert len(codes) == len(set(codes))


def test_command_error_keeps_message_and_hint_apart() -> None:
    error = CommandError("no such thing", hint="make one")
    assert (str(error), error.message, error.hint) == ("no such thing", "no such thing", "make one")
    assert CommandError("no such thing").hint is None


def test_request_error_carries_the_parameter_and_when_to_retry() -> None:
    assert InvalidValue("too hot", param="temperature").param == "temperature"
    assert QueueFull("full", retry_after_s=2).retry_after_s == 2
    assert ModelNotFound("gone").param is None
