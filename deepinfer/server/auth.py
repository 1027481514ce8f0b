"""The key check: every route but those of /health needs one when any is set.

Keys are compared by their digests, all of them each time, so that the time taken tells nothing
about how near a guess came. A key is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepinfer.errors import InvalidApiKey
from deepinfer.server.errors import error_response
from deepinfer.server.record import record_of

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})


class KeyCheck:
    """ASGI middleware. Without keys it lets everyone in."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and scope["path"] not in OPEN_PATHS:
            error = self._check(Headers(scope=scope).get("authorization"))
            if error is not None:
                record_of(scope).error_code = error.code
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, header: str | None) -> InvalidApiKey | None:
        if header is None:
            return InvalidApiKey("An API key is required: send `Authorization: Bearer <key>`")
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer" or not self._is_known(key.strip().encode("latin-1")):
            return InvalidApiKey("The API key is not valid")
        return None

    def _is_known(self, key: bytes) -> bool:
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
