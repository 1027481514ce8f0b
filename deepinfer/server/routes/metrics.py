"""GET /metrics: the figures of this server, as Prometheus reads them."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import generate_latest
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.server.metrics import make_registry
from deepinfer.server.openapi import ANY_ROUTE, Responses, describe_errors
from deepinfer.server.state import ServerState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # the format of generate_latest
FIGURES: Responses = {
    200: {
        "description": "Metrics in the text format of Prometheus",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()
    registry = make_registry(state.engines, state.meter)

    @router.get(
        "/metrics", response_class=Response, responses={**FIGURES, **describe_errors(ANY_ROUTE)}
    )
    async def read_metrics(request: Request) -> Response:
        """What this server does and has done, in numbers."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE)

    return router
