"""GET /health, /health/live and /health/ready: whether the server takes work, without a key.

/health is about the engine that answers when a client names none. /health/ready is about all of
them: an engine that is started again does not take a server out of service whose others work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.engine import FAILED, RESTARTING, STOPPED, EngineStatus
from deepinfer.errors import EngineLoading, EngineUnavailable, RequestError
from deepinfer.server.answers import Alive, EngineState, Health, NoneReady, NotReady, Ready
from deepinfer.server.engines import ServedEngine
from deepinfer.server.errors import error_response
from deepinfer.server.json import json_response
from deepinfer.server.openapi import WRONG_NAME, Responses
from deepinfer.server.state import ServerState

# Anyone may read it: of a file no more than its name.
PATH = re.compile(r"(?:/[^/\s`'\"]+)*/(?=[^/\s])")
CODES = "Code `engine_loading`, `engine_unavailable` or `shutting_down`"
HEALTH: Responses = {
    200: {"model": Health, "description": "The engine takes work"},
    503: {"model": NotReady, "description": CODES},
    **WRONG_NAME,
}
READINESS: Responses = {
    200: {"model": Ready, "description": "Every engine has been loaded, and one takes work"},
    503: {"model": NoneReady, "description": CODES},
    **WRONG_NAME,
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses=HEALTH)
    async def read_health(request: Request) -> Response:
        """Whether the engine that answers by default takes work."""
        status = state.engines.default.client.status
        try:
            state.check_open()
            _check_ready(status)
        except RequestError as error:
            return error_response(error, {"phase": status.phase, "percent": status.percent})
        return json_response(_health(state))

    @router.get("/health/live", responses={200: {"model": Alive}, **WRONG_NAME})
    async def read_liveness(request: Request) -> Response:
        """Whether the process answers, whatever its engines do."""
        return json_response(Alive())

    @router.get("/health/ready", responses=READINESS)
    async def read_readiness(request: Request) -> Response:
        """Whether to send work here, and the state of each engine."""
        models = [_describe(engine) for engine in state.engines]
        status = _slowest([engine.client.status for engine in state.engines])
        try:
            state.check_open()
            _check_ready(status)
        except RequestError as error:
            listed = [model.model_dump() for model in models]
            extra = {"phase": status.phase, "percent": status.percent, "models": listed}
            return error_response(error, extra)
        return json_response(Ready(**_health(state).model_dump(), models=models))

    return router


def _health(state: ServerState) -> Health:
    return Health(
        model=state.engines.default.model_id,
        gpus=len(state.gpus),
        nvidia_5090=any(gpu.is_rtx_5090 for gpu in state.gpus),
    )


def _describe(engine: ServedEngine) -> EngineState:
    status = engine.client.status
    return EngineState(
        model=engine.model_id,
        engine=engine.manifest.name,
        phase=status.phase,
        percent=status.percent,
    )


def _slowest(statuses: Sequence[EngineStatus]) -> EngineStatus:
    """The status that the whole server has: loading before ready, ready before unavailable."""
    return min(statuses, key=lambda status: (not _is_loading(status), not status.is_ready))


def _is_loading(status: EngineStatus) -> bool:
    return not status.is_ready and status.phase not in (RESTARTING, FAILED, STOPPED)


def _check_ready(status: EngineStatus) -> None:
    if status.is_ready:
        return
    if _is_loading(status):
        raise EngineLoading(f"The engine is loading: {status.phase}, {status.percent}%")
    if status.phase == FAILED and status.message:
        raise EngineUnavailable(f"The engine has failed: {PATH.sub('', status.message)}")
    raise EngineUnavailable(f"The engine is not available: {status.phase}")
