"""The key check: every route but /health and, by choice, /metrics needs one when any is set.

It knows where a request carries its key and notes whose it is. A key is never logged.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepinfer.errors import InvalidApiKey
from deepinfer.server.errors import error_response
from deepinfer.server.keys import KeyRing
from deepinfer.server.record import record_of

KEY_HEADER = "x-api-key"
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
METRICS_PATH = "/metrics"


class KeyCheck:
    """ASGI middleware. Without keys it lets everyone in."""

    def __init__(
        self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str] = HEALTH_PATHS
    ) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in self._open_paths:
            record = record_of(scope)
            try:
                record.key_name = self._find_name(Headers(scope=scope))
            except InvalidApiKey as error:
                record.error_code = error.code
                await error_response(error, scope=scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find_name(self, headers: Headers) -> str:
        """The name of the key that a request comes with. Raises InvalidApiKey."""
        if KEY_HEADER not in headers and "authorization" not in headers:
            raise InvalidApiKey(
                "An API key is required: send `Authorization: Bearer <key>` or `x-api-key: <key>`"
            )
        # Some clients send both, and a placeholder in one of them.
        found = [self._keys.find(key) for key in _read_keys(headers)]
        name = next((key.name for key in found if key is not None), None)
        if name is None:
            raise InvalidApiKey("The API key is not valid")
        return name


def _read_keys(headers: Headers) -> list[bytes]:
    """The keys that a request offers, in the one header or the other."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    offered = [headers.get(KEY_HEADER), token if scheme.lower() == "bearer" else None]
    return [key.strip().encode("latin-1") for key in offered if key is not None]
