"""POST /v1/responses: a chat told in items; and the stored responses, to be read and deleted.

Beside it the routes that count a conversation's tokens and make it short.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from deepinfer.errors import InvalidValue, NotFound
from deepinfer.server.body import read_json
from deepinfer.server.event_stream import open_stream
from deepinfer.server.json import json_response
from deepinfer.server.openapi import (
    RESPONDING_ROUTE,
    STORED_ROUTE,
    TOKENIZING_ROUTE,
    describe_body,
    describe_errors,
    describe_typed_events,
)
from deepinfer.server.param_names import renaming_params
from deepinfer.server.record import record_of
from deepinfer.server.responses_api.answer import (
    CompactedResponse,
    DeletedResponse,
    InputTokens,
    ItemList,
    ResponseObject,
)
from deepinfer.server.responses_api.body import (
    PARAM_NAMES,
    CompactBody,
    InputTokensBody,
    ResponsesBody,
)
from deepinfer.server.responses_api.events import event_types
from deepinfer.server.responses_api.items import Item, ItemReference
from deepinfer.server.responses_api.owner import owner_of
from deepinfer.server.responses_api.paging import (
    PAGE_PARAMETERS,
    check_query,
    find_page,
    read_page,
)
from deepinfer.server.responses_api.run import compact, count_input_tokens, prepare_response
from deepinfer.server.responses_api.store import StoredResponse
from deepinfer.server.schemas import MAX_MESSAGES
from deepinfer.server.state import ServerState
from deepinfer.validation import MAX_SHOWN_CHARS, show_value

PATH = "/v1/responses"


class _ResponseId(StringConvertor):
    """An id, and none of the routes that stand in an id's place."""

    regex = "(?!(?:compact|input_tokens)(?:/|$))[^/]+"


register_url_convertor("response_id", _ResponseId())
STREAM = describe_typed_events(event_types())
ANSWER: dict[str, Any] = {
    "model": ResponseObject,
    "description": "The answer; with `stream: true` as server-sent events",
    "content": {"text/event-stream": {"schema": STREAM}},
}
CREATE_RESPONSES = {200: ANSWER, **describe_errors(RESPONDING_ROUTE)}
COUNT_ERRORS = describe_errors((*TOKENIZING_ROUTE, NotFound))
STORED_ERRORS = describe_errors(STORED_ROUTE)
ID_PARAMETER: dict[str, Any] = {
    "name": "response_id",
    "in": "path",
    "required": True,
    "description": "Id of a stored response",
    "schema": {"type": "string"},
}


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter()
    limits = state.config.server

    @router.post(PATH, responses=CREATE_RESPONSES, openapi_extra=describe_body(ResponsesBody))
    async def create_response(request: Request) -> Response:
        """Answer a conversation, in items."""
        state.check_open()
        body = await read_json(request, ResponsesBody, limits=limits)
        engine = state.engines.find(body.model)
        owner = owner_of(request.headers)
        items = _join(state, body, owner)

        def keep(response: ResponseObject) -> None:
            if body.store:
                _store(state, response, items, owner)

        run = await prepare_response(engine, body, items, record_of(request.scope), keep)
        if body.stream:
            with renaming_params(PARAM_NAMES):
                return await open_stream(run.generation, run, limits.first_byte_timeout_s)
        return json_response(await run.collect())

    @router.post(
        PATH + "/input_tokens",
        responses={200: {"model": InputTokens}, **COUNT_ERRORS},
        openapi_extra=describe_body(InputTokensBody),
    )
    async def count_tokens(request: Request) -> Response:
        """The tokens of a conversation, as `/v1/responses` would count them. No engine runs."""
        state.check_open()
        body = await read_json(request, InputTokensBody, limits=limits)
        engine = state.engines.find(body.model)
        items = _join(state, body, owner_of(request.headers))
        return json_response(await count_input_tokens(engine, body, items))

    @router.post(
        PATH + "/compact",
        responses={200: {"model": CompactedResponse}, **describe_errors(RESPONDING_ROUTE)},
        openapi_extra=describe_body(CompactBody),
    )
    async def compact_conversation(request: Request) -> Response:
        """A conversation made short, to be the beginning of the next input."""
        state.check_open()
        body = await read_json(request, CompactBody, limits=limits)
        engine = state.engines.find(body.model)
        items = _join(state, body, owner_of(request.headers))
        return json_response(await compact(engine, body, items, record_of(request.scope)))

    # The id is read from the scope: as a parameter FastAPI would promise a 422 that never comes.
    @router.get(
        PATH + "/{response_id:response_id}",
        responses={200: {"model": ResponseObject}, **STORED_ERRORS},
        openapi_extra={"parameters": [ID_PARAMETER]},
    )
    async def read_response(request: Request) -> Response:
        """A stored response."""
        stored = _find(state, request)
        check_query(request.query_params)
        return Response(stored.rendered, media_type="application/json")

    @router.delete(
        PATH + "/{response_id:response_id}",
        responses={200: {"model": DeletedResponse}, **STORED_ERRORS},
        openapi_extra={"parameters": [ID_PARAMETER]},
    )
    async def delete_response(request: Request) -> Response:
        """Forget a stored response. Those that go on from it stay as they are."""
        stored = _find(state, request)
        state.responses.delete(stored.id)
        return json_response(DeletedResponse(id=stored.id))

    @router.post(
        PATH + "/{response_id:response_id}/cancel",
        responses={200: {"model": ResponseObject}, **STORED_ERRORS},
        openapi_extra={"parameters": [ID_PARAMETER]},
    )
    async def cancel_response(request: Request) -> Response:
        """A stored response as it is: each has ended, so that there is nothing to cancel."""
        return Response(_find(state, request).rendered, media_type="application/json")

    @router.get(
        PATH + "/{response_id:response_id}/input_items",
        responses={200: {"model": ItemList}, **STORED_ERRORS},
        openapi_extra={"parameters": [ID_PARAMETER, *PAGE_PARAMETERS]},
    )
    async def list_input_items(request: Request) -> Response:
        """The conversation that a stored response was made from."""
        stored = _find(state, request)
        items, has_more = find_page(stored.input, read_page(request.query_params))
        return json_response(ItemList.of(items, has_more=has_more))

    return router


def _store(
    state: ServerState, response: ResponseObject, items: tuple[Item, ...], owner: bytes
) -> None:
    state.responses.put(
        StoredResponse(
            id=response.id,
            owner=owner,
            rendered=response.model_dump_json().encode(),
            input=items,
            output=tuple(response.output),
        )
    )


def _find(state: ServerState, request: Request) -> StoredResponse:
    return _recall(state, request.path_params["response_id"], owner_of(request.headers), None)


def _recall(state: ServerState, id_: str, owner: bytes, param: str | None) -> StoredResponse:
    stored = state.responses.find(id_, owner)
    if stored is None:
        raise NotFound(
            f"There is no stored response `{id_[:MAX_SHOWN_CHARS]}`; the oldest are dropped, and "
            "all of them when the server ends",
            param=param,
        )
    return stored


def _join(
    state: ServerState, body: ResponsesBody | InputTokensBody | CompactBody, owner: bytes
) -> tuple[Item, ...]:
    """The whole conversation: what was said before, if it goes on from that, and the input."""
    given = tuple(
        _look_up(state, item, owner, index) if isinstance(item, ItemReference) else item
        for index, item in enumerate(body.given_items)
    )
    if body.previous_response_id is None:
        return given
    before = _recall(state, body.previous_response_id, owner, "previous_response_id")
    items = (*before.conversation, *given)
    if len(items) > MAX_MESSAGES:
        raise InvalidValue(
            f"`input` and the earlier conversation have {len(items):,} items; they may have at "
            f"most {MAX_MESSAGES:,}",
            param="input",
        )
    return items


def _look_up(state: ServerState, reference: ItemReference, owner: bytes, index: int) -> Item:
    item = state.responses.find_output(reference.id, owner)
    if item is None:
        raise NotFound(
            f"`input[{index}].id` must be of an item in the output of a stored response; "
            f"{show_value(reference.id)} was given. The oldest responses are dropped, and all of "
            "them when the server ends",
            param=f"input[{index}].id",
        )
    return item
