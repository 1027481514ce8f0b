"""GET /version: which DeepInfer this is."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer import __version__
from deepinfer.server.answers import Version
from deepinfer.server.json import json_response
from deepinfer.server.openapi import ANY_ROUTE, describe_errors
from deepinfer.server.state import ServerState


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/version", responses={200: {"model": Version}, **describe_errors(ANY_ROUTE)})
    async def read_version(request: Request) -> Response:
        """The version of this server."""
        return json_response(Version(version=__version__))

    return router
