"""What /openapi.json says beyond what FastAPI finds by itself.

Handlers read their bodies themselves, for the size cap and for errors in our shape, so the bodies'
schemas, the errors and the key are described here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from deepinfer import errors
from deepinfer.errors import RequestError
from deepinfer.server.answers import Answer, ChatChunk, CompletionChunk, ErrorBody, ErrorObject
from deepinfer.server.auth import HEALTH_PATHS, KEY_HEADER
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages_api.answer import MESSAGE_EVENTS
from deepinfer.server.messages_api.body import MessagesBody, PromptBody
from deepinfer.server.responses_api.body import CompactBody, InputTokensBody, ResponsesBody
from deepinfer.server.schema_base import Schema
from deepinfer.server.schemas import CompletionBody
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody

REF_TEMPLATE = "#/components/schemas/{model}"
KEY_SCHEME = "ApiKey"
HEADER_SCHEME = "ApiKeyHeader"
BODIES: Mapping[str, type[Schema]] = {
    "POST /v1/completions": CompletionBody,
    "POST /v1/chat/completions": ChatBody,
    "POST /v1/responses": ResponsesBody,
    "POST /v1/responses/input_tokens": InputTokensBody,
    "POST /v1/responses/compact": CompactBody,
    "POST /v1/messages": MessagesBody,
    "POST /v1/messages/count_tokens": PromptBody,
    "POST /tokenize": TokenizeBody,
    "POST /detokenize": DetokenizeBody,
}
# No route answers with one of these whole, so FastAPI would not describe them.
CHUNKS: tuple[type[BaseModel], ...] = (CompletionChunk, ChatChunk, *MESSAGE_EVENTS)

ANY_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidApiKey,
    errors.HostNotAllowed,
    errors.InternalError,
)
GENERATING_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidJson,
    errors.MissingParameter,
    errors.InvalidValue,
    errors.ContextLengthExceeded,
    errors.UnsupportedParameter,
    errors.ModelNotFound,
    errors.BodyTimeout,
    errors.ContentTooLarge,
    errors.UnsupportedMediaType,
    errors.QueueFull,
    errors.RateLimitExceeded,
    errors.EngineLoading,
    errors.ShuttingDown,
    errors.EngineUnavailable,
    *ANY_ROUTE,
)

# It may go on from a response that is not there.
RESPONDING_ROUTE: tuple[type[RequestError], ...] = (*GENERATING_ROUTE, errors.NotFound)
STORED_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidValue,
    errors.UnsupportedParameter,
    errors.NotFound,
    *ANY_ROUTE,
)

TOKENIZING_ROUTE: tuple[type[RequestError], ...] = (
    errors.InvalidJson,
    errors.MissingParameter,
    errors.InvalidValue,
    errors.UnsupportedParameter,
    errors.ModelNotFound,
    errors.ContextLengthExceeded,
    errors.RateLimitExceeded,
    errors.BodyTimeout,
    errors.ContentTooLarge,
    errors.UnsupportedMediaType,
    errors.ShuttingDown,
    *ANY_ROUTE,
)

Responses = dict[int | str, dict[str, Any]]


def describe_errors(
    kinds: Sequence[type[RequestError]], model: type[Answer] = ErrorBody
) -> Responses:
    """One response for each status, which names the codes that come with it."""
    statuses = sorted({kind.status for kind in kinds})
    return {status: _describe_status(status, kinds, model) for status in statuses}


def _describe_status(
    status: int, kinds: Sequence[type[RequestError]], model: type[Answer]
) -> dict[str, Any]:
    codes = [kind.code for kind in kinds if kind.status == status]
    description = "Code " + " or ".join(f"`{code}`" for code in codes)
    if status not in (429, 503):
        return {"model": model, "description": description}
    seconds = {"type": "integer", "minimum": 1, "maximum": 120}
    header = {"description": "Seconds to wait before another try", "schema": seconds}
    return {"model": model, "description": description, "headers": {"Retry-After": header}}


WRONG_NAME = describe_errors((errors.HostNotAllowed,))  # of the routes that need no key


def describe_answer(whole: type[BaseModel], chunk: type[BaseModel]) -> Responses:
    """The 200 of a route that answers whole or, when asked, as a stream of one `chunk` an event."""
    return {
        200: {
            "model": whole,
            "description": "The answer; with `stream: true` as server-sent events",
            "content": {"text/event-stream": {"schema": _describe_event(chunk)}},
        }
    }


def _describe_event(chunk: type[BaseModel]) -> dict[str, Any]:
    """One event in OpenAPI's terms: an object of the event's fields, with JSON in `data`."""
    failure = {
        "type": "object",
        "required": ["error"],
        "properties": {"error": refer_to(ErrorObject)},
    }
    data = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [refer_to(chunk), failure]},
    }
    return {
        "type": "object",
        "description": f"One event: a {chunk.__name__}, or what went wrong. `[DONE]` is the last",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]}},
    }


def describe_named_events(
    models: Sequence[type[BaseModel]], failure: type[BaseModel]
) -> dict[str, Any]:
    """The same of a stream whose events say what they are, and of which none is the mark of an end.

    All of `models` and `failure` must be described elsewhere in the document.
    """
    content = {"anyOf": [refer_to(model) for model in (*models, failure)]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {
        "type": "object",
        "description": "One event; `event` is the `type` of the object in `data`",
        "required": ["event", "data"],
        "properties": {"event": {"type": "string"}, "data": data},
    }


def describe_typed_events(types: Sequence[str]) -> dict[str, Any]:
    """The same of a stream whose events name one of `types`, and that ends with `[DONE]`."""
    content = {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"enum": list(types)}},
    }
    data = {"contentMediaType": "application/json", "contentSchema": content}
    return {
        "type": "object",
        "description": "One event; `event` is the `type` of the object in `data`",
        "required": ["data"],
        "properties": {
            # `[DONE]` has no name, and an event without one is a message.
            "event": {"enum": [*types, "message"]},
            "data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]},
        },
    }


def refer_to(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF_TEMPLATE.format(model=model.__name__)}


def describe_body(schema: type[Schema]) -> dict[str, Any]:
    content = {"application/json": {"schema": refer_to(schema)}}
    return {"requestBody": {"required": True, "content": content}}


def build_openapi(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    components = document.setdefault("components", {})
    answers = _make_schemas(CHUNKS, "serialization") | components.setdefault("schemas", {})
    bodies = _make_schemas(set(BODIES.values()), "validation")
    components["schemas"] = answers | _rename(bodies, answers)
    components["securitySchemes"] = {
        KEY_SCHEME: {"type": "http", "scheme": "bearer"},
        HEADER_SCHEME: {"type": "apiKey", "in": "header", "name": KEY_HEADER},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # Only a server with a key asks for one, so none is described as enough, too.
            operation["security"] = (
                [] if path in HEALTH_PATHS else [{KEY_SCHEME: []}, {HEADER_SCHEME: []}, {}]
            )
    return document


def _make_schemas(models: Iterable[type[BaseModel]], mode: JsonSchemaMode) -> dict[str, Any]:
    """The schemas of `models` and of what they are made of, by name."""
    _, made = models_json_schema([(model, mode) for model in models], ref_template=REF_TEMPLATE)
    schemas: dict[str, Any] = made["$defs"]
    return schemas


def _rename(schemas: dict[str, Any], taken: Iterable[str]) -> dict[str, Any]:
    """The same schemas under names that are not `taken` by other modules' models."""
    text = json.dumps(schemas)
    for name in schemas.keys() & set(taken):
        reference = f'"{REF_TEMPLATE.format(model=name)}"'
        text = text.replace(reference, reference.replace(name, f"{name}Input"))
    renamed: dict[str, Any] = json.loads(text)
    return {f"{name}Input" if name in taken else name: s for name, s in renamed.items()}
