"""/openapi.json describes what is there: routes, fields, bounds, errors."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from deepinfer.server import refused
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.schemas import CompletionBody, Schema
from deepinfer.server.token_bodies import DetokenizeBody, TokenizeBody

BODIES = {"CompletionBody": CompletionBody, "ChatBody": ChatBody}


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/openapi.json").json()
    return found


def references(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own.union(*map(references, node.values()))


def test_every_route_is_described(document: dict[str, Any]) -> None:
    operations = {(m, path) for path, item in document["paths"].items() for m in item}
    assert operations == {
        ("get", "/health"),
        ("get", "/health/live"),
        ("get", "/health/ready"),
        ("get", "/version"),
        ("get", "/v1/gpu/info"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model_id}"),
        ("post", "/tokenize"),
        ("post", "/detokenize"),
        ("post", "/v1/completions"),
        ("post", "/v1/chat/completions"),
    }


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        kind, name = reference.removeprefix("#/components/").split("/")
        assert name in document["components"][kind], reference


def test_no_status_is_promised_that_never_comes(document: dict[str, Any]) -> None:
    statuses = {
        (path, status)
        for path, item in document["paths"].items()
        for operation in item.values()
        for status in operation["responses"]
    }
    assert not [entry for entry in statuses if entry[1] == "422"]
    generating = {"200", "400", "401", "404", "413", "415", "429", "500", "503"}
    assert {s for path, s in statuses if path == "/v1/completions"} == generating
    assert {s for path, s in statuses if path == "/health"} == {"200", "503"}
    assert {s for path, s in statuses if path == "/health/ready"} == {"200", "503"}
    tokenizing = {"200", "400", "401", "404", "413", "415", "500", "503"}
    assert {s for path, s in statuses if path == "/tokenize"} == tokenizing


@pytest.mark.parametrize("schema", [TokenizeBody, DetokenizeBody], ids=lambda s: s.__name__)
def test_every_field_of_a_token_body_is_described(
    document: dict[str, Any], schema: type[Schema]
) -> None:
    described = document["components"]["schemas"][schema.__name__]["properties"]
    assert set(described) == {*schema.model_fields, *schema.refused}


@pytest.mark.parametrize("name", list(BODIES))
def test_every_field_of_a_body_is_described(document: dict[str, Any], name: str) -> None:
    properties = document["components"]["schemas"][name]["properties"]
    schema = BODIES[name]
    expected = {*schema.model_fields, *schema.refused, *refused.WITHOUT_EFFECT}
    assert set(properties) == expected
    assert properties["temperature"] == {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 2}, {"type": "null"}],
        "default": 0.7,
        "description": "Sampling temperature; 0 is greedy",
        "title": "Temperature",
    }
    assert properties["max_tokens"]["default"] == 512
    assert properties["bad_words"]["enum"] == [None, []]


def test_only_health_is_open(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert bool(operation["security"]) != path.startswith("/health")
