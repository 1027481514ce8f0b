"""/openapi.json describes what is there: routes, fields, bounds, errors."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest

from deepinfer.server import openapi, refused
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.messages_api.body import MessagesBody, PromptBody
from deepinfer.server.responses_api.body import ResponsesBody
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
        ("get", "/metrics"),
        ("get", "/version"),
        ("get", "/v1/gpu/info"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model_id}"),
        ("post", "/tokenize"),
        ("post", "/detokenize"),
        ("post", "/v1/completions"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
        ("delete", "/v1/responses/{response_id}"),
        ("get", "/v1/responses/{response_id}/input_items"),
        ("post", "/v1/responses/{response_id}/cancel"),
        ("post", "/v1/responses/input_tokens"),
        ("post", "/v1/responses/compact"),
        ("post", "/v1/messages"),
        ("post", "/v1/messages/count_tokens"),
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
    generating = {"200", "400", "401", "403", "404", "408", "413", "415", "429", "500", "503"}
    assert {s for path, s in statuses if path == "/v1/completions"} == generating
    assert {s for path, s in statuses if path == "/health"} == {"200", "403", "503"}
    assert {s for path, s in statuses if path == "/health/ready"} == {"200", "403", "503"}
    tokenizing = {"200", "400", "401", "403", "404", "408", "413", "415", "429", "500", "503"}
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
    fields = {field.alias or name for name, field in schema.model_fields.items()}
    expected = {*fields, *schema.refused, *schema.without_effect}
    assert set(properties) == expected
    assert properties["temperature"] == {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 2}, {"type": "null"}],
        "default": 0.7,
        "description": "Sampling temperature; 0 is greedy",
        "title": "Temperature",
    }
    assert properties["max_tokens"]["default"] == 512
    assert properties["bad_words"]["enum"] == [None, []]


@pytest.mark.parametrize("schema", [MessagesBody, PromptBody], ids=lambda s: s.__name__)
def test_every_field_of_a_message_body_is_described(
    document: dict[str, Any], schema: type[Schema]
) -> None:
    described = document["components"]["schemas"][schema.__name__]["properties"]
    assert set(described) == {*schema.model_fields, *schema.refused, *schema.without_effect}
    assert described["container"]["enum"] == [None]


def test_every_field_of_a_responses_body_is_described(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["ResponsesBody"]["properties"]
    expected = {*ResponsesBody.model_fields, *refused.RESPONSES, *ResponsesBody.without_effect}
    assert set(properties) == expected
    assert properties["max_output_tokens"]["default"] is None
    assert properties["temperature"]["default"] == 0.7
    assert properties["background"]["enum"] == [None, False]
    stored = document["paths"]["/v1/responses/{response_id}"]["get"]["responses"]
    assert set(stored) == {"200", "400", "401", "403", "404", "500"}


def test_errors_of_messages_have_their_own_shape(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/messages"]["post"]["responses"]
    schemas = {
        status: response["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        for status, response in responses.items()
    }
    assert schemas.pop("200") == "Message"
    assert set(schemas.values()) == {"MessagesErrorBody"}
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == set(chat)


def test_key_goes_in_either_header(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    headers = [scheme.get("name", scheme.get("scheme")) for scheme in schemes.values()]
    assert headers == ["bearer", "x-api-key"]
    for scheme in schemes:
        assert {scheme: []} in document["paths"]["/v1/messages"]["post"]["security"]


def test_bodies_are_those_of_the_routes(document: dict[str, Any]) -> None:
    content = {
        f"{method.upper()} {path}": operation["requestBody"]["content"]
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if "requestBody" in operation
    }
    references = {
        route: types["application/json"]["schema"]["$ref"].split("/")[-1]
        for route, types in content.items()
    }
    assert references == {route: body.__name__ for route, body in openapi.BODIES.items()}


def test_models_of_the_same_name_are_kept_apart(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["CalledFunction"]["required"] == ["name", "arguments"]  # in an answer
    assert schemas["CalledFunctionInput"]["required"] == ["name"]  # in a message
    call = schemas["ToolCall"]["properties"]["function"]
    assert call["$ref"] == "#/components/schemas/CalledFunctionInput"


def test_rules_between_fields_are_described(document: dict[str, Any]) -> None:
    body = document["components"]["schemas"]["CompletionBody"]
    is_valid = jsonschema.Draft202012Validator({"allOf": body["allOf"]}).is_valid
    assert is_valid({"stream_options": {}, "stream": True})
    assert is_valid({"stream_options": None})
    assert not is_valid({"stream_options": {}})
    assert not is_valid({"stream_options": {}, "stream": False})


def test_standing_of_a_field_is_described(document: dict[str, Any]) -> None:
    properties = document["components"]["schemas"]["ChatBody"]["properties"]
    assert properties["response_format"]["x-standing"] == "translated"
    assert properties["user"]["x-standing"] == "no effect"
    assert properties["audio"]["x-standing"] == "refused"
    assert "x-standing" not in properties["temperature"]


def test_only_health_is_open(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert bool(operation["security"]) != path.startswith("/health")
