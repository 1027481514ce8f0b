"""GET /v1/models and /v1/models/{id}: what this server can be asked for, and how long a context."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.errors import ModelNotFound
from deepinfer.server.answers import Model, ModelList
from deepinfer.server.engines import ServedEngine
from deepinfer.server.json import json_response
from deepinfer.server.openapi import ANY_ROUTE, describe_errors
from deepinfer.server.state import ServerState

ID_PARAMETER: dict[str, Any] = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "description": "Model id, slashes included, alias or engine name",
    "schema": {"type": "string"},
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses={200: {"model": ModelList}, **describe_errors(ANY_ROUTE)})
    async def list_models(request: Request) -> Response:
        """The models that this server offers, one entry a name."""
        entries = [
            _describe(engine, name) for engine in state.engines for name in engine.names.listed
        ]
        return json_response(ModelList(data=entries))

    # The id is read from the scope: as a parameter FastAPI would promise a 422 that never comes.
    @router.get(
        "/v1/models/{model_id:path}",
        responses={200: {"model": Model}, **describe_errors((ModelNotFound, *ANY_ROUTE))},
        openapi_extra={"parameters": [ID_PARAMETER]},
    )
    async def read_model(request: Request) -> Response:
        """One model by its id."""
        name = request.path_params["model_id"]
        engine = state.engines.find(name)
        return json_response(
            _describe(engine, name if name in engine.names.listed else engine.model_id)
        )

    return router


def _describe(engine: ServedEngine, name: str) -> Model:
    context_length = engine.manifest.limits.max_seq_len
    return Model(
        id=name,
        created=engine.created,
        root=engine.manifest.model.id,
        max_model_len=context_length,
        context_length=context_length,
        engine=engine.manifest.name,
        status=engine.client.status.phase,
    )
