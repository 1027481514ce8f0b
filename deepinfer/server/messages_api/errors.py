"""Errors as clients of the Messages API read them, and which requests come from such clients.

The envelope adds to the one of the other routes and changes the names of types only.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

PATH = "/v1/messages"
VERSION_HEADER = "anthropic-version"

# By status; 529 is what Anthropic calls overloaded, and proxies do not know that number.
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OTHER_TYPE = "invalid_request_error"
# By our code and parameter, the `error_code` that Anthropic's SDKs look for. After this one their
# tool runners, which ask for a conversation that the server holds, go on by sending the whole one.
SDK_ERROR_CODES = {("unsupported_parameter", "thread"): "thread_unsupported_request"}


def speaks_messages(scope: Scope) -> bool:
    """Whether the client of this request expects Anthropic's shapes where routes have two."""
    path = scope["path"]
    is_own_route = path == PATH or path.startswith(f"{PATH}/")
    return is_own_route or VERSION_HEADER in Headers(scope=scope)


def as_messages_error(body: dict[str, Any], status: int, request_id: str) -> dict[str, Any]:
    """`body` is an error in the shape of the other routes."""
    error = body["error"]
    error_code = SDK_ERROR_CODES.get((error["code"], error["param"]), error["code"])
    own = {
        **error,
        "type": TYPES.get(status, OTHER_TYPE),
        "details": {"error_code": error_code},
    }
    return {"type": "error", **body, "error": own, "request_id": request_id}
