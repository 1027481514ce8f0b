"""GET /health: whether the engine takes work, without a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.engine import FAILED, RESTARTING, STOPPED, EngineStatus
from deepinfer.errors import EngineLoading, EngineUnavailable, RequestError
from deepinfer.server.errors import error_response
from deepinfer.server.json import json_response
from deepinfer.server.openapi import Responses
from deepinfer.server.responses import Health, NotReady
from deepinfer.server.state import ServerState

RESPONSES: Responses = {
    200: {"model": Health, "description": "The engine takes work"},
    503: {
        "model": NotReady,
        "description": "Code `engine_loading`, `engine_unavailable` or `shutting_down`",
    },
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=RESPONSES)
    async def read_health(request: Request) -> Response:
        """Whether the server is ready."""
        engine = state.engines.default
        status = engine.client.status
        try:
            state.check_open()
            _check_ready(status)
        except RequestError as error:
            return error_response(error, {"phase": status.phase, "percent": status.percent})
        return json_response(
            Health(
                model=engine.model_id,
                gpus=len(state.gpus),
                nvidia_5090=any(gpu.is_rtx_5090 for gpu in state.gpus),
            )
        )

    return router


def _check_ready(status: EngineStatus) -> None:
    if status.is_ready:
        return
    if status.phase in (RESTARTING, FAILED, STOPPED):
        raise EngineUnavailable(f"The engine is not available: {status.phase}")
    raise EngineLoading(f"The engine is loading: {status.phase}, {status.percent}%")
