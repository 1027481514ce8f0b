"""The limits of keys at the door of routes that cost something, and the headers that tell of them.

Requests are counted before their body is read, so a flood of bad ones ends here as well. Tokens are
reserved where they are known, by the generation, from the allowance that is left in the record.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepinfer.config import LimitsSection
from deepinfer.errors import RateLimitExceeded
from deepinfer.server.errors import error_response
from deepinfer.server.keys import KeyRing
from deepinfer.server.limits import RateLimiter
from deepinfer.server.record import record_of

LIMITED_PATHS = frozenset(
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/messages"),
        *("/v1/responses", "/v1/responses/compact"),
        # These generate nothing, so they use up no tokens of a key.
        *("/tokenize", "/detokenize", "/v1/messages/count_tokens", "/v1/responses/input_tokens"),
    }
)
UNLIMITED = LimitsSection()


class LimitCheck:
    """ASGI middleware, inside of KeyCheck."""

    def __init__(self, app: ASGIApp, keys: KeyRing, limiter: RateLimiter) -> None:
        self._app = app
        self._keys = keys
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_limited = scope["type"] == "http" and scope["path"] in LIMITED_PATHS
        if not is_limited or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key_name = record_of(scope).key_name
        limits = self._keys.limits_of(key_name)
        if limits == UNLIMITED:
            await self._app(scope, receive, send)
        else:
            await self._count(key_name, limits, scope, receive, send)

    async def _count(
        self, key_name: str, limits: LimitsSection, scope: Scope, receive: Receive, send: Send
    ) -> None:
        record = record_of(scope)
        record.allowance = allowance = self._limiter.allowance(key_name, limits)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *allowance.headers()]
            await send(message)

        try:
            allowance.enter()
        except RateLimitExceeded as error:
            record.error_code = error.code
            await error_response(error, scope=scope)(scope, receive, send_with_limits)
            return
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            allowance.leave()
