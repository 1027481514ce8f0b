"""Every field of every body with null, wrong types, wrong values, and objects where none belong.

The fields come from the bodies' own JSON Schemas. Whatever is refused is refused in the promised
shape, and its message speaks of JSON: no client knows Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from deepinfer.server.errors import from_validation
from deepinfer.server.openapi import BODIES
from tests.server.serving import client_of, make_echo_engine, serving

TURN = [{"role": "user", "content": "hi"}]
CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
WHOLE: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/chat/completions": {
        "messages": [*TURN, {"role": "assistant", "content": "x", "tool_calls": CALLS}],
        "max_tokens": 1,
    },
    "/v1/responses": {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 1},
    "/v1/responses/input_tokens": {"input": [{"role": "user", "content": "hi"}]},
    "/v1/responses/compact": {"model": "test/echo", "input": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"messages": TURN, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": TURN},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [5]},
}
# What stands where something else belongs.
WRONG: list[Any] = [
    None, True, False, 0, -7, 1.5, 10**30, "", "wrong", [], [None], [True], [[]], {},
    {"type": None}, {"type": "wrong"}, {"type": ["wrong"]}, {"wrong": {"wrong": None}},
]  # fmt: skip
# Words of Python and of the libraries, and quotes around a value as Python writes them.
PYTHON = re.compile(
    r"\b(None|True|False|dict|tuple|NoneType|ValidationError|pydantic|Traceback|instance of)\b"
    r"|<class|object at 0x|Input should|Field required|ToolWish|Grammar\(|\{'|\['|: '|\(\)"
)


def fields_of(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Paths to the fields of an object, those of objects inside it and of arrays' items too."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for name, field in schema.get("properties", {}).items():
        yield (name,)
        for below in fields_of(field, definitions):
            yield (name, *below)
    if "items" in schema:
        yield (0,)
        for below in fields_of(schema["items"], definitions):
            yield (0, *below)
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from fields_of(option, definitions)


def put(body: Any, path: tuple[Any, ...], value: object) -> Any:
    """A copy with `value` at `path`, whose containers are made where there are none."""
    if not path:
        return value
    here, *rest = path
    if isinstance(here, int):
        items = list(body) if isinstance(body, list) else [{}]
        items[0] = put(items[0] if items else {}, tuple(rest), value)
        return items
    fields = dict(body) if isinstance(body, dict) else {}
    fields[here] = put(fields.get(here), tuple(rest), value)
    return fields


def all_fields() -> Iterator[Any]:
    for route, schema in BODIES.items():
        described = schema.model_json_schema()
        route_path = route.removeprefix("POST ")
        for path in dict.fromkeys(fields_of(described, described.get("$defs", {}))):
            yield pytest.param(route_path, path, id=f"{route_path} {'.'.join(map(str, path))}")


def assert_speaks_json(message: str, where: str) -> None:
    assert message and not PYTHON.search(message), where
    assert len(message) < 400, where


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    with serving(folder) as server, client_of(server) as client:
        yield client


@pytest.mark.parametrize(("route", "path"), [*all_fields()])
def test_wrong_value_is_taken_or_refused_in_terms_of_json(
    client: httpx.Client, route: str, path: tuple[Any, ...]
) -> None:
    schema = BODIES[f"POST {route}"]
    for value in WRONG:
        body = put(WHOLE[route], path, value)
        where = f"{route} {path} = {value!r}"
        try:
            schema.model_validate_json(json.dumps(body))
        except ValidationError as error:
            refusal = from_validation(error)
            assert refusal.status == 400, where
            assert_speaks_json(refusal.message, f"{where}: {refusal.message}")
            continue
        # What the schema lets through may be refused by the engine's side, or is answered.
        response = client.post(route, json=body)
        where = f"{where}: {response.text[:500]}"
        assert response.status_code in (200, 400, 404), where
        if response.status_code == 404:
            assert path in (("model",), ("previous_response_id",)), where
        if response.status_code != 200:
            content = response.json()
            assert content["detail"] == content["error"]["message"], where
            assert_speaks_json(content["detail"], where)


@pytest.mark.parametrize(
    ("route", "path"),
    [
        ("/v1/chat/completions", ("tool_choice",)),
        ("/v1/responses", ("tool_choice",)),
        ("/v1/messages", ("tool_choice",)),
        ("/v1/chat/completions", ("response_format",)),
        ("/v1/responses", ("text",)),
        ("/v1/responses", ("reasoning",)),
        ("/v1/messages", ("system",)),
    ],
)
def test_null_of_a_field_with_a_shape_of_its_own_is_its_default(
    client: httpx.Client, route: str, path: tuple[Any, ...]
) -> None:
    answer = client.post(route, json=put(WHOLE[route], path, None))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("route", WHOLE)
@pytest.mark.parametrize("body", ["null", "[]", "true", '"text"', "5", "{", "{'a': 1}", "NaN"])
def test_body_that_is_no_object_is_refused_in_terms_of_json(
    client: httpx.Client, route: str, body: str
) -> None:
    response = client.post(route, content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    assert_speaks_json(response.json()["detail"], response.text)
