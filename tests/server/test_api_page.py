"""docs/api.md says what the schemas have: every field of every body, and every error code."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from deepinfer.errors import RequestError
from deepinfer.server import openapi, refused
from deepinfer.server.messages import ChatMessage
from deepinfer.server.messages_api.answer import StopReason
from deepinfer.server.messages_api.body import MessagesBody
from deepinfer.server.messages_api.errors import OTHER_TYPE, TYPES
from deepinfer.server.responses_api.body import ResponsesBody
from deepinfer.server.schema_base import Schema
from tools.make_api_docs import render_page, render_table

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def read_standings(route: str) -> dict[str, str]:
    """What the table of a route says of each field."""
    rows = [line.split(" | ") for line in render_table(route).splitlines()[2:]]
    return {row[0].strip("| `"): row[3] for row in rows}


def test_tables_of_fields_are_what_make_docs_writes() -> None:
    assert render_page(PAGE) == PAGE, "run `make docs`"


@pytest.mark.parametrize("route", openapi.BODIES)
def test_every_body_has_its_table(route: str) -> None:
    assert f"<!-- fields: {route} -->\n" in PAGE


@pytest.mark.parametrize(("route", "body"), openapi.BODIES.items())
def test_every_field_has_a_row_with_its_standing(route: str, body: type[Schema]) -> None:
    standings = read_standings(route)
    outer = {name: standing for name, standing in standings.items() if "." not in name}
    fields = {field.alias or name for name, field in body.model_fields.items()}
    assert set(outer) == {*fields, *body.refused, *body.without_effect}
    for name, standing in outer.items():
        if name in fields:
            assert standing == ("translated" if name in refused.TRANSLATED else "honoured")
        else:
            assert standing == ("refused" if name in body.refused else "no effect")


def test_fields_of_fields_have_rows_too() -> None:
    standings = read_standings("POST /v1/chat/completions")
    for name in ChatMessage.model_fields:
        assert standings[f"messages[].{name}"] == "honoured"
    for name in refused.MESSAGE:
        assert standings[f"messages[].{name}"] == "refused"
    assert standings["stream_options.include_obfuscation"] == "no effect"


@pytest.mark.parametrize(
    "row",
    [
        "| `max_tokens` | integer, -1 or more | `512` | honoured |",
        "| `repetition_penalty` | number, 0.01 to 10 | `1` | honoured |",
        "| `seed` | integer of 64 bits | none | honoured |",
        "| `messages` | array of: object; 1 to 10,000 items | required | translated |",
        "| `guided_regex` | string, 1 to 4,096 characters | none | translated |",
        '| `modalities` | only `null`, `["text"]` | none | refused |',
        "| `tools[].function.strict` | boolean | `false` | honoured |",
    ],
)
def test_row_says_type_bounds_and_default(row: str) -> None:
    assert row in render_table("POST /v1/chat/completions")


MESSAGES = PAGE.partition("## `POST /v1/messages`\n")[2].partition("\n## ")[0]
NAMED = {*refused.MESSAGES, *refused.MESSAGES_TOOL, *refused.MESSAGES_WITHOUT_EFFECT}


@pytest.mark.parametrize("name", [*MessagesBody.model_fields, *get_args(StopReason)])
def test_every_field_and_stop_reason_of_messages_has_a_row(name: str) -> None:
    assert f"\n| `{name}` | " in MESSAGES


@pytest.mark.parametrize("name", sorted(NAMED | {*TYPES.values(), OTHER_TYPE}))
def test_all_else_of_messages_is_named(name: str) -> None:
    assert f"`{name}`" in MESSAGES


RESPONSES = PAGE.partition("\n## `POST /v1/responses`")[2].partition("\n## ")[0]
REFUSED_IN_RESPONSES = {
    *(refused.RESPONSES.keys() - refused.GENERATION.keys()),
    *refused.RESPONSE_REASONING,
    *refused.RESPONSE_TOOL,
}
FIELDS_OF_RESPONSES = {
    *ResponsesBody.model_fields,
    *ResponsesBody.without_effect,
    *REFUSED_IN_RESPONSES,
}


@pytest.mark.parametrize("name", sorted(FIELDS_OF_RESPONSES))
def test_every_field_of_a_response_is_named_in_its_section(name: str) -> None:
    assert f"`{name}`" in RESPONSES


@pytest.mark.parametrize("kind", openapi.GENERATING_ROUTE, ids=lambda kind: kind.code)
def test_every_code_has_a_row(kind: type[RequestError]) -> None:
    assert f"\n| {kind.status} | `{kind.code}` | " in PAGE
