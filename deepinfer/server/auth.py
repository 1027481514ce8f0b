"""Who is let in: by a key when any is set, and else by the name that the server was called.

Every route but /health and, by choice, /metrics needs a key. A server without one answers to names
that nobody else can point at it, so that a page of another site cannot make the visitor's browser
use it (DNS rebinding). It knows where a request carries its key and notes whose it is. A key is
never logged.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deepinfer.config import ServerSection
from deepinfer.errors import HostNotAllowed, InvalidApiKey, RequestError
from deepinfer.server.errors import error_response
from deepinfer.server.keys import KeyRing
from deepinfer.server.record import record_of
from deepinfer.validation import show_value

KEY_HEADER = "x-api-key"
HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
METRICS_PATH = "/metrics"
LOCALHOST = "localhost"


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
            try:
                record_of(scope).key_name = self._find_name(Headers(scope=scope))
            except InvalidApiKey as error:
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find_name(self, headers: Headers) -> str:
        """The name of the key that a request comes with. Raises InvalidApiKey."""
        # Some clients send both, and a placeholder in one of them.
        found = [self._keys.find(key) for key in _read_keys(headers)]
        name = next((key.name for key in found if key is not None), None)
        if name is None:
            # The same for a missing key and a wrong one: nothing is learnt by trying.
            raise InvalidApiKey(
                "A valid API key is required: send `Authorization: Bearer <key>` or "
                "`x-api-key: <key>`"
            )
        return name


class HostCheck:
    """ASGI middleware. With keys it lets every name pass: a page has no key to send."""

    def __init__(self, app: ASGIApp, keys: KeyRing, settings: ServerSection) -> None:
        self._app = app
        self._keys = keys
        names = {LOCALHOST, f"*.{LOCALHOST}", socket.gethostname().lower(), settings.host.lower()}
        self._names = frozenset(names.union(settings.allowed_hosts or ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._keys:
            # A client of HTTP/1.0 need not say it; a browser always does.
            value = Headers(scope=scope).get("host")
            if value is not None and not self._allows(value):
                error = HostNotAllowed(
                    "Without an API key this server answers to localhost, to addresses and to the "
                    f"names of `--allowed-host`; the `Host` field is {show_value(value)}"
                )
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _allows(self, value: str) -> bool:
        name = _host_of(value)
        if "*" in self._names or name in self._names or _is_address(name):
            return True
        parents = name.split(".")[1:]
        return any("*." + ".".join(parents[i:]) in self._names for i in range(len(parents)))


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    record_of(scope).error_code = error.code
    await error_response(error, scope=scope)(scope, receive, send)


def _host_of(value: str) -> str:
    """The name or address in a `Host` field, without its port."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _read_keys(headers: Headers) -> list[bytes]:
    """The keys that a request offers, in the one header or the other."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    offered = [headers.get(KEY_HEADER), token if scheme.lower() == "bearer" else None]
    return [key.strip().encode("latin-1") for key in offered if key is not None]
