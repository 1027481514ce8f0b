"""Around every request: its id, its record and log line, and the last resort when something fails.

It knows no route. What stands in the record is written by whoever handles the request.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepinfer.logs import current_request_id
from deepinfer.server.auth import OPEN_PATHS
from deepinfer.server.errors import ClientDisconnected, as_request_error, error_response
from deepinfer.server.ids import choose_request_id
from deepinfer.server.record import RECORD_KEY, RequestRecord
from deepinfer.server.state import ServerState

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # as nginx logs it; nobody is there to receive it
MAX_LOGGED_PATH = 200


class RequestContext:
    """ASGI middleware, the outermost of ours."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(choose_request_id(Headers(scope=scope).get("x-request-id")))
        scope[RECORD_KEY] = record
        current_request_id.set(record.request_id)

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(record)]
            elif not message.get("more_body", False):
                record.is_complete = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except ClientDisconnected:
            record.is_disconnected = True
        except Exception as error:
            failure = as_request_error(error)
            record.error_code = failure.code
            if record.status is None:
                await error_response(failure)(scope, receive, send_and_record)
        finally:
            _log(scope, record)

    def _headers(self, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", record.request_id.encode())]
        if self._state.is_draining:
            headers.append((b"connection", b"close"))
        return headers


def _log(scope: Scope, record: RequestRecord) -> None:
    """One line a request; probes, which come every second, are worth it only when debugging."""
    level = logging.DEBUG if scope["path"] in OPEN_PATHS else logging.INFO
    if logger.isEnabledFor(level):
        path = scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "backslashreplace")
        logger.log(level, "%s %s %s", scope["method"], path, " ".join(_describe(record)))


def _describe(record: RequestRecord) -> list[str]:
    parts = [str(record.status or CLIENT_CLOSED_REQUEST)]
    if record.error_code is not None:
        parts.append(f"error={record.error_code}")
    if record.is_disconnected:
        parts.append("disconnected")
    if record.usage is not None:
        parts.append(f"prompt_tokens={record.usage.prompt_tokens}")
        parts.append(f"completion_tokens={record.usage.completion_tokens}")
    if record.finish_reasons:
        parts.append("finish=" + ",".join(sorted(set(record.finish_reasons))))
    if record.time_to_first_token_s is not None:
        parts.append(f"ttft_ms={record.time_to_first_token_s * 1e3:.1f}")
    parts.append(f"elapsed_ms={record.elapsed_s * 1e3:.1f}")
    return parts
