"""From an exception to what the client sees: one body, one set of headers, one event in a stream.

The error tree says status, type and code; this is the only place of the server that catches its
root. Of an exception that nobody foresaw the client learns nothing but that it happened.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from deepinfer.errors import (
    AboveRateLimit,
    BodyTimeout,
    EngineLoading,
    EngineUnavailable,
    InternalError,
    InvalidApiKey,
    InvalidJson,
    InvalidValue,
    MethodNotAllowed,
    MissingParameter,
    NotFound,
    RequestAbandoned,
    RequestError,
    RequestTimeout,
    UnsupportedParameter,
)
from deepinfer.server.messages_api.errors import as_messages_error, speaks_messages
from deepinfer.server.record import record_of
from deepinfer.validation import describe_rule, show_value

logger = logging.getLogger(__name__)

NOT_INITIALIZED = "Engine not initialized"  # promised word for word by the API reference
MAX_RETRY_AFTER_S = 120  # above that the OpenAI SDK does not retry at all
DEFAULT_RETRY_AFTER_S = 5
MAX_SHOWN_PATH = 200
METHODS = ("DELETE", "GET", "HEAD", "POST")  # that any route here has
INTERNAL_MESSAGE = "The server failed to answer this request; its log says why"


class ClientDisconnected(Exception):
    """The client went away: there is nobody to answer, and nothing went wrong here."""


def error_object(error: RequestError) -> dict[str, str | None]:
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }


def error_body(error: RequestError) -> dict[str, Any]:
    """Both forms: the object for the OpenAI SDK, the string for the API reference."""
    is_down = isinstance(error, EngineLoading | EngineUnavailable)
    return {
        "error": error_object(error),
        "detail": NOT_INITIALIZED if is_down else error.message,
    }


def error_headers(error: RequestError) -> dict[str, str]:
    """What tells clients how to go on: when to retry, or not to."""
    headers: dict[str, str] = {}
    if isinstance(error, InvalidApiKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTimeout):
        # What is still to come of the body must not be waited for.
        headers["connection"] = "close"
    if error.status in (429, 503):
        seconds = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(min(max(seconds, 1), MAX_RETRY_AFTER_S))
    if isinstance(error, InternalError | RequestTimeout | RequestAbandoned | AboveRateLimit):
        headers["x-should-retry"] = "false"
    return headers


def error_response(
    error: RequestError, extra: dict[str, Any] | None = None, *, scope: Scope | None = None
) -> Response:
    """The whole response; `extra` adds fields beside `error` and `detail`.

    `scope` is of the request that failed, whose client may expect another shape.
    """
    body = {**error_body(error), **(extra or {})}
    if scope is not None and speaks_messages(scope):
        body = as_messages_error(body, error.status, record_of(scope).request_id)
    return Response(
        msgspec.json.encode(body),
        status_code=error.status,
        headers=error_headers(error),
        media_type="application/json",
    )


def as_request_error(error: Exception) -> RequestError:
    """What the client may know of any exception; an unforeseen one goes to the log whole."""
    if isinstance(error, RequestError):
        return error
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return InternalError(INTERNAL_MESSAGE)


def from_validation(error: ValidationError) -> RequestError:
    """The first thing that is wrong with a body, by its field, rule and value."""
    first = error.errors(include_url=False)[0]
    kind, location = first["type"], first["loc"]
    if kind == "json_invalid":
        return InvalidJson(f"The body is not valid JSON: {first['ctx']['error']}")
    if kind == "model_type" and not location:
        return InvalidJson(f"The body must be a JSON object; {show_value(first['input'])} was sent")
    at = first.get("ctx", {}).get("at", "")
    param = format_path((*location, at)) if at else format_path(location)
    if kind == "missing":
        return MissingParameter(f"`{param}` is required", param=param)
    if kind == "unsupported_parameter":
        return UnsupportedParameter(f"`{param}` {describe_rule(first)}", param=param)
    # A culprit inside of the field is named by its path; the field's whole value would not help.
    given = "" if at else f"; {show_value(first['input'])} was given"
    return InvalidValue(f"`{param}` {describe_rule(first)}{given}", param=param)


def format_path(location: tuple[int | str, ...]) -> str:
    """A place in a body as OpenAI writes it: `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path and not part.startswith("[") else part
    return path


async def handle_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _answer(request, error)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    """The framework's own: a route or a method that does not exist."""
    assert isinstance(error, HTTPException)
    where = f"`{request.method} {request.url.path[:MAX_SHOWN_PATH]}`"
    if error.status_code == 404:
        return _answer(request, NotFound(f"There is no route {where}"))
    if error.status_code == 405:
        allowed = ", ".join(_allowed_methods(request))
        response = _answer(request, MethodNotAllowed(f"There is no {where}; allowed: {allowed}"))
        response.headers["allow"] = allowed
        return response
    return _answer(request, as_request_error(error))


def _allowed_methods(request: Request) -> list[str]:
    """Of all routes of this path; the framework names those of the first that it finds."""
    return [
        method
        for method in METHODS
        for routed in ["GET" if method == "HEAD" else method]
        if any(
            route.matches({**request.scope, "method": routed})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def _answer(request: Request, error: RequestError) -> Response:
    record_of(request.scope).error_code = error.code
    return error_response(error, scope=request.scope)
