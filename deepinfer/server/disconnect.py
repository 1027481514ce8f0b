"""Ends the handling of a request when its client goes away, at once and wherever it stands.

The connection is watched from the moment the whole body has been read: a task waits for the
disconnect and cancels the request's own task. Whoever holds something for the request lets go of
it as for any cancellation, so no handler has to ask whether its client is still there.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepinfer import tasks
from deepinfer.server.errors import ClientDisconnected
from deepinfer.server.record import RequestRecord, record_of


class CancelOnDisconnect:
    """ASGI middleware, inside of RequestContext. Without a body read, nothing is watched."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch = _Watch(receive, record_of(scope))
        try:
            await self._app(scope, watch.receive, send)
        except asyncio.CancelledError:
            # When somebody else has cancelled the task too, it is theirs.
            if not watch.has_cancelled or watch.owner.uncancel() > 0:
                raise
            raise ClientDisconnected from None
        finally:
            watch.stop()


class _Watch:
    def __init__(self, receive: Receive, record: RequestRecord) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.owner = task
        self.has_cancelled = False
        self._receive = receive
        self._record = record
        self._task: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._task = tasks.start(self._wait(), "the watch for a client that leaves")
        return message

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # A finished response also ends the waiting, and is no reason to cancel anything.
        if not self._record.is_complete:
            self.has_cancelled = True
            self.owner.cancel()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
