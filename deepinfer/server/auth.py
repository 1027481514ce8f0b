"""The key check: every route but /health and, by choice, /metrics needs one when any is set.

Keys are compared by their digests, all of them each time, so that the time taken tells nothing
about how near a guess came. A key is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepinfer.errors import InvalidApiKey
from deepinfer.server.errors import error_response
from deepinfer.server.record import record_of

KEY_HEADER = "x-api-key"
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
METRICS_PATH = "/metrics"


class KeyCheck:
    """ASGI middleware. Without keys it lets everyone in."""

    def __init__(
        self, app: ASGIApp, keys: Sequence[str], open_paths: Collection[str] = HEALTH_PATHS
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in self._open_paths:
            error = self._check(Headers(scope=scope))
            if error is not None:
                record_of(scope).error_code = error.code
                await error_response(error, scope=scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> InvalidApiKey | None:
        if KEY_HEADER not in headers and "authorization" not in headers:
            return InvalidApiKey(
                "An API key is required: send `Authorization: Bearer <key>` or `x-api-key: <key>`"
            )
        # Some clients send both, and a placeholder in one of them.
        if not any([self._is_known(key) for key in _read_keys(headers)]):
            return InvalidApiKey("The API key is not valid")
        return None

    def _is_known(self, key: bytes) -> bool:
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _read_keys(headers: Headers) -> list[bytes]:
    """The keys that a request offers, in the one header or the other."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    offered = [headers.get(KEY_HEADER), token if scheme.lower() == "bearer" else None]
    return [key.strip().encode("latin-1") for key in offered if key is not None]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
