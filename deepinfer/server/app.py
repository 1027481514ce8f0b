"""The application: routes and middleware put together around one server's state."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from deepinfer import __version__
from deepinfer.errors import RequestError
from deepinfer.server.auth import HEALTH_PATHS, METRICS_PATH, HostCheck, KeyCheck
from deepinfer.server.context import RequestContext
from deepinfer.server.disconnect import CancelOnDisconnect
from deepinfer.server.errors import METHODS, handle_http_exception, handle_request_error
from deepinfer.server.limit_check import LimitCheck
from deepinfer.server.routes import (
    chat,
    completions,
    gpu,
    health,
    messages,
    metrics,
    models,
    openapi,
    responses,
    tokenize,
    version,
)
from deepinfer.server.state import ServerState

# Of a response; a page sees a few of its headers without being told.
HEADERS_FOR_PAGES = (
    *("x-request-id", "request-id", "retry-after", "x-should-retry"),
    *(
        f"x-ratelimit-{what}-{unit}"
        for unit in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
)


def create_app(state: ServerState) -> FastAPI:
    """The ASGI application for `state`. It starts and stops nothing."""
    app = FastAPI(
        title="DeepInfer",
        version=__version__,
        description="OpenAI-compatible routes in front of a compiled inference engine",
        openapi_url=None,  # there is a route of our own, without the pages that fetch scripts
        redirect_slashes=False,
    )
    for route in (
        health,
        metrics,
        version,
        gpu,
        models,
        tokenize,
        completions,
        chat,
        messages,
        responses,
    ):
        app.include_router(route.make_router(state))
    app.include_router(openapi.make_router(app))
    app.add_exception_handler(RequestError, handle_request_error)
    app.add_exception_handler(HTTPException, handle_http_exception)
    # The last one added is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(CancelOnDisconnect)
    app.add_middleware(LimitCheck, keys=state.keys, limiter=state.limiter)
    app.add_middleware(KeyCheck, keys=state.keys, open_paths=_open_paths(state))
    app.add_middleware(HostCheck, keys=state.keys, settings=state.config.server)
    app.add_middleware(RequestContext, state=state)
    _open_to_pages(app, state)
    _complete_routes(app)
    return app


class HeadAsGet:
    """ASGI middleware: a HEAD request is answered by its path's GET route.

    The HTTP server sends the head of that response only.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server reads in the original that no body is to be sent.
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")  # for the metrics


def _complete_routes(app: FastAPI) -> None:
    """FastAPI completes included routes when one is first looked for, which takes 10 ms or so.

    The first request shall not wait for that.
    """
    nowhere = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(nowhere)


def _open_to_pages(app: FastAPI, state: ServerState) -> None:
    """Let the pages of some origins call; a browser asks for that before it sends a key."""
    origins = state.config.server.cors_origins
    if origins is not None:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=HEADERS_FOR_PAGES,
        )


def _open_paths(state: ServerState) -> frozenset[str]:
    needs_key = state.config.server.metrics_need_key
    return HEALTH_PATHS if needs_key else HEALTH_PATHS | {METRICS_PATH}
