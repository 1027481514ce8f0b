"""GET /v1/models and /v1/models/{id}: what this server can be asked for, and how long a context."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.errors import ModelNotFound
from deepinfer.server.answers import Model, ModelList
from deepinfer.server.engines import ServedEngine
from deepinfer.server.json import json_response
from deepinfer.server.messages_api.answer import ModelInfo, ModelInfoList
from deepinfer.server.messages_api.errors import speaks_messages
from deepinfer.server.openapi import ANY_ROUTE, describe_errors
from deepinfer.server.state import ServerState

ID_PARAMETER: dict[str, Any] = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "description": "Model id, slashes included, alias or engine name",
    "schema": {"type": "string"},
}

TWO_SHAPES = "With an `anthropic-version` header in Anthropic's shape"
LIST_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": ModelList | ModelInfoList, "description": TWO_SHAPES},
    **describe_errors(ANY_ROUTE),
}
ONE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": Model | ModelInfo, "description": TWO_SHAPES},
    **describe_errors((ModelNotFound, *ANY_ROUTE)),
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=LIST_RESPONSES)
    async def list_models(request: Request) -> Response:
        """The models that this server offers, one entry a name."""
        named = [(engine, name) for engine in state.engines.models for name in engine.names.listed]
        if speaks_messages(request.scope):
            infos = [_describe_to_messages(engine, name) for engine, name in named]
            page = ModelInfoList(data=infos, first_id=infos[0].id, last_id=infos[-1].id)
            return json_response(page)
        return json_response(ModelList(data=[_describe(engine, name) for engine, name in named]))

    # The id is read from the scope: as a parameter FastAPI would promise a 422 that never comes.
    @router.get(
        "/v1/models/{model_id:path}",
        responses=ONE_RESPONSES,
        openapi_extra={"parameters": [ID_PARAMETER]},
    )
    async def read_model(request: Request) -> Response:
        """One model by its id."""
        name = request.path_params["model_id"]
        engine = state.engines.find(name)
        shown = name if name in engine.names.listed else engine.model_id
        describe = _describe_to_messages if speaks_messages(request.scope) else _describe
        return json_response(describe(engine, shown))

    return router


def _describe(engine: ServedEngine, name: str) -> Model:
    context_length = engine.manifest.limits.max_seq_len
    return Model(
        id=name,
        created=engine.created,
        root=engine.manifest.model.id,
        parent=_find_parent(engine),
        max_model_len=context_length,
        context_length=context_length,
        engine=engine.manifest.name,
        status=engine.client.status.phase,
    )


def _find_parent(engine: ServedEngine) -> str | None:
    """The model that an adapter was trained on, whether it is merged or taken by request."""
    if engine.adapter is not None:
        return engine.manifest.model.id
    merged = engine.manifest.adapter
    return merged.base_model_id if merged is not None else None


def _describe_to_messages(engine: ServedEngine, name: str) -> ModelInfo:
    limits = engine.manifest.limits
    return ModelInfo(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(engine.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        max_input_tokens=min(limits.max_input_len, limits.max_seq_len - 1),
        max_tokens=limits.max_seq_len - 1,
    )
