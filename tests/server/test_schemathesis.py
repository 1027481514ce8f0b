"""A running server is what its /openapi.json says, as far as generated requests can tell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
import requests
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deepinfer.config import ServeConfig
from deepinfer.server.app import create_app
from deepinfer.server.engines import EngineCatalog
from deepinfer.server.openapi import build_openapi
from deepinfer.server.state import ServerState
from tests.server.serving import (
    CHAT_TEMPLATE,
    DEADLINE_S,
    MODEL_ID,
    client_of,
    make_echo_engine,
    serving,
)

NUM_EXAMPLES = 15  # of each route, beside those that are made of each field's bounds
MAX_TOKENS = 16
TEMPLATE_WITH_TOOLS = (
    "{% if tools %}<tool_call>{name, arguments}</tool_call>{% endif %}" + CHAT_TEMPLATE
)
# What no schema says of a body: how fields compare, and what only an engine can tell.
UNSPEAKABLE_CODES = {"context_length_exceeded", "unsupported_parameter"}
UNSPEAKABLE_RULES = re.compile(
    "must not be combined with|must be at least `n`|needs `"
    "|more than the .* tokens that may be generated|must equal `max_tokens`|holds the token id"
    "|chat template|must be JSON|must be followed by|and the earlier conversation have"
)
# A grammar is read by whoever compiles it.
GRAMMARS = re.compile(
    r"response_format|structured_outputs|guided_|^grammar|text\.format|output_|tool"
)


def make_document() -> dict[str, Any]:
    """What the server publishes; its engines have no part in it."""
    state = ServerState(ServeConfig(), cast(EngineCatalog, ()), tuple, ())
    return build_openapi(create_app(state))


def load_schema() -> schemathesis.BaseSchema:
    """The document, where each body has one rule between its fields at most.

    The generator of examples gives up where a body has to keep to several at once.
    """
    document = make_document()
    for body in document["components"]["schemas"].values():
        del body.get("allOf", [])[1:]
    generation = {"deterministic": True, "max-examples": NUM_EXAMPLES, "no-shrink": True}
    config = schemathesis.Config.from_dict({"seed": 1, "generation": generation})
    return schemathesis.openapi.from_dict(document, config=config)


schema = load_schema()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=TEMPLATE_WITH_TOOLS)
    with serving(folder) as process, client_of(process) as client:
        yield client


@pytest.fixture(scope="module")
def stored_id(http: httpx.Client) -> str:
    response = http.post("/v1/responses", json={"input": "to be kept"})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def test_the_document_is_the_one_that_is_served(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json() == make_document()


# Generated patterns are tried by a library that finds some of them odd.
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
@schema.parametrize()
def test_server_keeps_to_its_description(
    case: schemathesis.Case, http: httpx.Client, stored_id: str
) -> None:
    if case.meta is not None and case.meta.generation.mode.is_positive:
        make_answerable(case, stored_id)
    response = case.call(base_url=str(http.base_url), timeout=DEADLINE_S)
    excused = [positive_data_acceptance] if is_unspeakable(response) else []
    case.validate_response(response, excluded_checks=excused)


def make_answerable(case: schemathesis.Case, stored_id: str) -> None:
    """Ask for what is there, and for little of it; the rest of the request stays as it was made."""
    if "response_id" in case.path_parameters:
        case.path_parameters["response_id"] = stored_id
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("model"), str):
        case.body["model"] = MODEL_ID
    if isinstance(case.body.get("previous_response_id"), str):
        case.body["previous_response_id"] = stored_id
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"):
        if isinstance(case.body.get(name), int | float):
            case.body[name] = min(case.body[name], MAX_TOKENS)


def is_unspeakable(response: requests.Response) -> bool:
    """Whether a request was refused for what its schema cannot say."""
    if response.status_code != 400:
        return False
    error = response.json()["error"]
    return (
        error.get("code") in UNSPEAKABLE_CODES
        or UNSPEAKABLE_RULES.search(error["message"]) is not None
        or GRAMMARS.match(error.get("param") or "") is not None
    )
