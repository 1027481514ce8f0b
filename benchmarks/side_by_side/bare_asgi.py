"""The least that can stream from our HTTP server: an ASGI application with events made beforehand.

Sends an event to every stream in each step, as the API process does with an engine behind it, and
does nothing else: no engine, no text, no limits. uvicorn serves it as `bare_asgi:app`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from benchmarks.bench_client import event

STEP_S = 0.02
EVENT = event(None)
MODELS = b'{"data": [{"id": "bare"}]}'
SSE = [(b"content-type", b"text/event-stream")]

Send = Callable[[Mapping[str, Any]], Awaitable[None]]


class Steps:
    """Wakes everybody who waits, fifty times a second for as long as somebody does."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def wait(self) -> asyncio.Future[None]:
        if self._next is None or self._next.done():
            loop = asyncio.get_running_loop()
            self._next = loop.create_future()
            loop.call_later(STEP_S, self._next.set_result, None)
        return self._next


steps = Steps()


async def app(scope: Mapping[str, Any], receive: Callable[[], Any], send: Send) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] != "/v1/completions":
        await answer(send, MODELS, 200 if scope["method"] == "GET" else 404)
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    fields = json.loads(body)
    usage = {"prompt_tokens": 1, "completion_tokens": fields["max_tokens"]}
    if fields["stream"]:
        await stream(send, usage)
    else:
        await answer(send, json.dumps({"choices": [], "usage": usage}).encode())


async def answer(send: Send, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Send, usage: dict[str, int]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": SSE})
    for _ in range(usage["completion_tokens"]):
        await asyncio.shield(steps.wait())
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
    end = event(usage, "") + b"data: [DONE]\n\n"
    await send({"type": "http.response.body", "body": end})
