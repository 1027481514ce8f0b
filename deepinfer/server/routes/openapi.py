"""GET /openapi.json: the document that describes the other routes.

It is made when somebody first asks: that takes the better part of a second, which not every start
shall pay for. A thread makes it, so that streams go on meanwhile.
"""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.server.openapi import build_openapi


def make_router(app: FastAPI) -> APIRouter:
    router = APIRouter()
    document = b""
    making = asyncio.Lock()

    @router.get("/openapi.json", include_in_schema=False)
    async def read_openapi(request: Request) -> Response:
        nonlocal document
        async with making:
            if not document:
                document = await asyncio.to_thread(_make_document, app)
        return Response(document, media_type="application/json")

    return router


def _make_document(app: FastAPI) -> bytes:
    return msgspec.json.encode(build_openapi(app))
