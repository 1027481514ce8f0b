"""Around every request: its id, its record and log line, and the last resort when something fails.

It knows no route. What stands in the record is written by whoever handles the request.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepinfer.logs import current_request_id, with_fields
from deepinfer.server.auth import HEALTH_PATHS, METRICS_PATH
from deepinfer.server.errors import ClientDisconnected, as_request_error, error_response
from deepinfer.server.ids import choose_request_id
from deepinfer.server.messages_api.errors import speaks_messages
from deepinfer.server.meter import CLIENT_CLOSED_REQUEST
from deepinfer.server.record import DIRECT_SEND_KEY, RECORD_KEY, RequestRecord
from deepinfer.server.state import ServerState

logger = logging.getLogger(__name__)

PROBES = HEALTH_PATHS | {METRICS_PATH}  # that programs read every few seconds
MAX_LOGGED_PATH = 200
EVENT_STREAM = b"text/event-stream"
# Answers are one client's own, and are what their type says whatever a browser makes of them.
PRIVATE_HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
UNMATCHED = "unmatched"  # in place of a route, for a path that is none


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
        scope[DIRECT_SEND_KEY] = send
        current_request_id.set(record.request_id)

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._begin_response(scope, record, message)
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
                await error_response(failure, scope=scope)(scope, receive, send_and_record)
        finally:
            self._end(scope, record)

    def _begin_response(self, scope: Scope, record: RequestRecord, message: Message) -> None:
        record.status = message["status"]
        headers = message.get("headers", ())
        record.is_stream = any(value.startswith(EVENT_STREAM) for _, value in headers)
        self._state.meter.num_open_streams += record.is_stream
        given = {name for name, _ in headers}
        plain = [header for header in PRIVATE_HEADERS if header[0] not in given]
        message["headers"] = [*headers, *plain, *self._headers(scope, record)]

    def _end(self, scope: Scope, record: RequestRecord) -> None:
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._state.meter.num_open_streams -= record.is_stream
        self._state.meter.end(record, route)
        _log(scope, record)
        if self._state.tracer is not None and scope["path"] not in PROBES:
            self._state.tracer.export(scope, record, route)

    def _headers(self, scope: Scope, record: RequestRecord) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", record.request_id.encode())]
        if speaks_messages(scope):
            headers.append((b"request-id", record.request_id.encode()))
        if self._state.is_draining:
            headers.append((b"connection", b"close"))
        return headers


def _log(scope: Scope, record: RequestRecord) -> None:
    """One line a request; probes, which come every second, are worth it only when debugging."""
    level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
    if logger.isEnabledFor(level):
        head = {
            "method": scope["method"],
            "path": scope["raw_path"][:MAX_LOGGED_PATH].decode("ascii", "backslashreplace"),
            "status": record.status or CLIENT_CLOSED_REQUEST,
        }
        fields = _describe(record)
        words = (*head.values(), *map(_as_word, fields.items()))
        logger.log(level, "%s", " ".join(map(str, words)), extra=with_fields({**head, **fields}))


def _as_word(field: tuple[str, object]) -> str:
    name, value = field
    return name if value is True else f"{name}={value}"


def _describe(record: RequestRecord) -> dict[str, object]:
    """What is worth saying of a request, by the names that its line has for it."""
    fields: dict[str, object] = {}
    if record.error_code is not None:
        fields["error"] = record.error_code
    if record.is_disconnected:
        fields["disconnected"] = True
    if record.key_name:
        fields["key"] = record.key_name
    if record.model is not None:
        fields["model"] = record.model
    if record.usage is not None:
        fields["prompt_tokens"] = record.usage.prompt_tokens
        fields["completion_tokens"] = record.usage.completion_tokens
    if record.finish_reasons:
        fields["finish"] = ",".join(sorted(set(record.finish_reasons)))
    if record.queue_s is not None:
        fields["queue_ms"] = round(record.queue_s * 1e3, 1)
    if record.time_to_first_token_s is not None:
        fields["ttft_ms"] = round(record.time_to_first_token_s * 1e3, 1)
    fields["elapsed_ms"] = round(record.elapsed_s * 1e3, 1)
    return fields
