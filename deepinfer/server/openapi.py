"""What /openapi.json says beyond what FastAPI finds by itself.

Handlers read their bodies themselves, for the size cap and for errors in our shape, so the bodies'
schemas, the errors and the key are described here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from deepinfer import errors
from deepinfer.errors import RequestError
from deepinfer.server.answers import ErrorBody
from deepinfer.server.auth import OPEN_PATHS
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.schema_base import Schema
from deepinfer.server.schemas import CompletionBody
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody

REF_TEMPLATE = "#/components/schemas/{model}"
KEY_SCHEME = "ApiKey"
BODIES: tuple[type[Schema], ...] = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)

ANY_ROUTE: tuple[type[RequestError], ...] = (errors.InvalidApiKey, errors.InternalError)
GENERATING_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidJson,
    errors.MissingParameter,
    errors.InvalidValue,
    errors.ContextLengthExceeded,
    errors.UnsupportedParameter,
    errors.ModelNotFound,
    errors.ContentTooLarge,
    errors.UnsupportedMediaType,
    errors.QueueFull,
    errors.EngineLoading,
    errors.ShuttingDown,
    errors.EngineUnavailable,
    *ANY_ROUTE,
)

TOKENIZING_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidJson,
    errors.MissingParameter,
    errors.InvalidValue,
    errors.UnsupportedParameter,
    errors.ModelNotFound,
    errors.ContentTooLarge,
    errors.UnsupportedMediaType,
    errors.ShuttingDown,
    *ANY_ROUTE,
)

Responses = dict[int | str, dict[str, Any]]


def describe_errors(kinds: Sequence[type[RequestError]]) -> Responses:
    """One response for each status, which names the codes that come with it."""
    statuses = sorted({kind.status for kind in kinds})
    return {status: _describe_status(status, kinds) for status in statuses}


def _describe_status(status: int, kinds: Sequence[type[RequestError]]) -> dict[str, Any]:
    codes = [kind.code for kind in kinds if kind.status == status]
    description = "Code " + " or ".join(f"`{code}`" for code in codes)
    if status not in (429, 503):
        return {"model": ErrorBody, "description": description}
    seconds = {"type": "integer", "minimum": 1, "maximum": 120}
    header = {"description": "Seconds to wait before another try", "schema": seconds}
    return {"model": ErrorBody, "description": description, "headers": {"Retry-After": header}}


def describe_answer(whole: type[Any], chunk: str) -> Responses:
    """The 200 of a route that answers whole or, when asked, as a stream of `chunk` events."""
    stream = {"type": "string", "description": f"Events with a {chunk} each, then `[DONE]`"}
    return {
        200: {
            "model": whole,
            "description": "The answer; with `stream: true` as server-sent events",
            "content": {"text/event-stream": {"schema": stream}},
        }
    }


def describe_body(schema: type[Schema]) -> dict[str, Any]:
    reference = {"$ref": REF_TEMPLATE.format(model=schema.__name__)}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def build_openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _, bodies = models_json_schema(
        [(body, "validation") for body in BODIES], ref_template=REF_TEMPLATE
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(bodies["$defs"])
    components["securitySchemes"] = {KEY_SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # Only a server with a key asks for one, so none is described as enough, too.
            operation["security"] = [] if path in OPEN_PATHS else [{KEY_SCHEME: []}, {}]
    return document
