"""Structured output over HTTP, on a real engine whose random weights have no sense of JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from deepinfer.text.string_formats import PATTERNS
from tests.building import BuildEngine
from tests.server.random_regexes import make_regex
from tests.server.random_schemas import make_document
from tests.server.serving import DEADLINE_S, client_of, read_events, serving

NUM_SCHEMAS = 100
NUM_REGEXES = 100
EXPLOSIVE_REGEX = "(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})"
EXPLOSIVE_GRAMMAR = "root ::= ([a-z]{0,100}){0,190}"  # minutes, however fast the machine
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def http(build_engine: BuildEngine) -> Iterator[httpx.Client]:
    built = build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "8")
    with serving(built.engine.path) as server, client_of(server) as client:
        complete(client, guided_regex="a")  # the process that tries grammars has started
        yield client


def post(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"prompt": "hello", "max_tokens": 300, "temperature": 1, "top_p": 1, "seed": 7}
    return http.post("/v1/completions", json=body | fields)


def complete(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    response = post(http, **fields)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}


def test_a_hundred_random_schemas_are_met_by_every_answer(http: httpx.Client) -> None:
    rng = random.Random(4)
    num_finished = 0
    for _ in range(NUM_SCHEMAS):
        schema = make_document(rng)
        for choice in complete(http, response_format=response_format(schema), n=2):
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["text"]), schema)
                num_finished += 1
    assert num_finished == 2 * NUM_SCHEMAS


def test_a_hundred_random_regexes_match_every_answer(http: httpx.Client) -> None:
    rng = random.Random(4)
    num_ended, num_refused = 0, 0
    for _ in range(NUM_REGEXES):
        pattern = make_regex(rng)
        response = post(http, guided_regex=pattern, n=3, max_tokens=100)
        if response.status_code == 400:
            num_refused += "takes longer" in response.json()["error"]["message"]
            continue
        for choice in response.json()["choices"]:
            if choice["finish_reason"] == "stop":
                assert re.fullmatch(pattern, choice["text"], re.ASCII), (pattern, choice["text"])
                num_ended += 1
    assert num_ended > 2 * NUM_REGEXES and num_refused < NUM_REGEXES / 10


def test_json_is_compact_and_ends(http: httpx.Client) -> None:
    for choice in complete(http, guided_json=PERSON, n=32):
        value = json.loads(choice["text"])
        jsonschema.validate(value, PERSON)
        assert choice["finish_reason"] == "stop"
        outside_strings = re.sub(r'"(\\.|[^"\\])*"', "", choice["text"])
        assert not re.search(r"\s", outside_strings)


@pytest.mark.parametrize("name", PATTERNS)
def test_formats_and_patterns_are_met(http: httpx.Client, name: str) -> None:
    pattern = r'^[A-Z]{2,4}(-|"|\\|\n)\d\s$'
    properties = {"f": {"type": "string", "format": name}, "p": {"pattern": pattern}}
    schema = {"type": "object", "properties": properties, "required": ["f", "p"]}
    for choice in complete(http, guided_json=schema, n=4):
        assert choice["finish_reason"] == "stop"
        value = json.loads(choice["text"])
        jsonschema.validate(value, schema)
        assert re.fullmatch(PATTERNS[name], value["f"])


def test_any_json_object_is_an_object(http: httpx.Client) -> None:
    choices = complete(http, response_format={"type": "json_object"}, n=32)
    ended = [json.loads(c["text"]) for c in choices if c["finish_reason"] == "stop"]
    # A string of a model without sense may go on for long; that all 32 do is out of the question.
    assert ended and all(isinstance(value, dict) for value in ended)


def test_recursive_schema_is_followed(http: httpx.Client) -> None:
    node = {
        "type": "object",
        "properties": {
            "v": {"type": "boolean"},
            "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
        },
        "required": ["v", "next"],
    }
    schema = {"$ref": "#/$defs/node", "$defs": {"node": node}}
    choices = complete(http, guided_json=json.dumps(schema), n=8)
    ended = [json.loads(c["text"]) for c in choices if c["finish_reason"] == "stop"]
    assert ended
    for value in ended:
        jsonschema.validate(value, schema)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[a-c]{3}-[0-9]+x"}, "[a-c]{3}-[0-9]+x"),
        ({"guided_choice": ["yes", 'no "x"\n', "é"]}, 'yes|no "x"\n|é'),
        ({"guided_grammar": 'root ::= "a" b\nb ::= [0-9]{3}'}, "a[0-9]{3}"),
        ({"structured_outputs": {"choice": ["one", "two"]}}, "one|two"),
        ({"structured_outputs": {"regex": "z{2}"}}, "zz"),
        ({"structured_outputs": {"json": {"const": 1}}}, "1"),
        ({"structured_outputs": {"grammar": 'root ::= "g"'}}, "g"),
        ({"guided_json": {"enum": ["k", None]}}, '"k"|null'),
        ({"response_format": {"type": "json_object", "schema": {"const": 1}}}, "1"),
        ({"response_format": {"type": "json_object", "value": {"const": 2}}}, "2"),
        ({"grammar": 'root ::= "g" x\nx ::= | "h"'}, "gh?"),
        ({"grammar": "", "guided_choice": ["a"]}, "a"),
        ({"guided_json": {"type": "number", "minimum": 0.5, "maximum": 0.75}}, r"0\.[567][0-9]*"),
    ],
)
def test_other_forms_are_met(http: httpx.Client, fields: dict[str, Any], pattern: str) -> None:
    for choice in complete(http, n=4, **fields):
        assert re.fullmatch(pattern, choice["text"]), choice["text"]


def test_chat_takes_a_grammar_and_the_schema_of_an_object(http: httpx.Client) -> None:
    for fields in (
        {"grammar": 'root ::= "1"'},
        {"response_format": {"type": "json_object", "schema": {"const": 1}}},
    ):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, **fields}
        response = http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == "1"


def test_schema_of_zod_and_pydantic_is_met(http: httpx.Client) -> None:
    safe = 2**53 - 1
    properties = {
        "age": {"type": "integer", "minimum": -safe, "maximum": safe},
        "id": {"type": "integer", "exclusiveMinimum": 0, "maximum": 2**63 - 1},
        "price": {"type": "number", "minimum": 0},
        "scores": {
            "type": "object",
            "propertyNames": {"type": "string", "enum": ["a", "b"]},
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 100},
            "required": ["a", "b"],
        },
        "pair": {"type": "array", "items": [{"type": "boolean"}], "additionalItems": False},
        "order": {"type": "array", "items": {"enum": ["x", "y", "z"]}, "uniqueItems": True},
        "step": {"type": "number", "multipleOf": 5, "minimum": 0, "maximum": 50},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    for choice in complete(http, response_format=response_format(schema), n=8):
        assert choice["finish_reason"] == "stop"
        jsonschema.Draft7Validator(schema).validate(json.loads(choice["text"]))


@pytest.mark.parametrize("most", [300, 10_000, 65_536])
def test_long_strings_are_taken(http: httpx.Client, most: int) -> None:
    (choice,) = complete(http, guided_json={"type": "string", "maxLength": most}, max_tokens=50)
    assert choice["text"].startswith('"') and len(choice["text"]) <= most + 2


def test_chat_parses_a_schema_through_the_sdk(http: httpx.Client) -> None:
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        age: int = Field(ge=0, le=150)
        nickname: str | None = Field(max_length=5)

    url = f"{http.base_url}".rstrip("/") + "/v1"
    with openai.OpenAI(base_url=url, api_key="x", timeout=DEADLINE_S) as sdk:
        answer = sdk.chat.completions.parse(
            model=sdk.models.list().data[0].id,
            messages=[{"role": "user", "content": "hi"}],
            response_format=Person,
            max_tokens=100,
        )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_stream_has_the_same_text(http: httpx.Client) -> None:
    (whole,) = complete(http, guided_json=PERSON)
    body = {"prompt": "hello", "max_tokens": 300, "temperature": 1, "top_p": 1, "seed": 7}
    body |= {"guided_json": PERSON, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        events = [json.loads(event) for event in read_events(response) if event != "[DONE]"]
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]


def test_answer_without_room_to_finish_ends_with_length(http: httpx.Client) -> None:
    (choice,) = complete(http, guided_json=PERSON, max_tokens=3)
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guided_regex": "[a-z"}, "`]` (at position 0)"),
        ({"guided_grammar": 'root ::= "a" b'}, "not defined"),
        ({"guided_regex": EXPLOSIVE_REGEX}, "20,000"),
        ({"guided_grammar": EXPLOSIVE_GRAMMAR}, "takes longer"),
    ],
    ids=["regex", "grammar", "large regex", "explosive"],
)
def test_what_does_not_compile_is_refused_and_the_next_is_served(
    http: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    complete(http, guided_regex="a")  # whatever an earlier test has ended has started again
    for is_stream in (False, True):
        response = post(http, stream=is_stream, **fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["code"] == "invalid_value" and words in error["message"]
        assert error["param"] == next(iter(fields))
    assert complete(http, max_tokens=3)[0]["text"]
    assert complete(http, guided_regex="b")[0]["text"] == "b"


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("no type", {"response_format": {}}, "response_format", "json_object"),
    ("other type", {"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ("no schema", {"response_format": {"type": "json_schema"}}, "response_format.json_schema", ""),
    ("regex long", {"guided_regex": "a" * 5_000}, "guided_regex", "4,096"),
    ("schema long", {"guided_json": {"title": "x" * 70_000}}, "guided_json", "65,536"),
    ("schema deep", {"guided_json": deep(60)}, "guided_json", "32"),
    ("not JSON", {"guided_json": "{"}, "guided_json", "JSON"),
    ("no choice", {"guided_choice": []}, "guided_choice", "empty"),
    ("choices", {"guided_choice": ["x"] * 1_001}, "guided_choice", "1,000"),
    ("enum", {"guided_json": {"enum": list(range(1_001))}}, "guided_json.enum", "1,000"),
    ("pattern", {"guided_json": {"pattern": "(?=x)"}}, "guided_json.pattern", "look ahead"),
    ("backreference", {"guided_regex": r"(a)\1"}, "guided_regex", "position 3"),
    ("no text", {"guided_grammar": "root ::= root"}, "guided_grammar", "comes to an end"),
    ("uniqueItems", {"guided_json": {"uniqueItems": True}}, "guided_json.uniqueItems", "enum"),
    (
        "format's schema",
        {"response_format": {"type": "json_object", "schema": {"not": {}}}},
        "response_format.schema.not",
        "not supported",
    ),
    ("tokens", {"grammar": "root ::= <x>"}, "grammar", "tokens"),
    ("grammar beside", {"grammar": 'root ::= "a"', "guided_regex": "a"}, "grammar", "combined"),
    ("circle", {"guided_json": {"$ref": "#"}}, "guided_json", "without end"),
    ("two", {"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "combined"),
    (
        "two inside",
        {"structured_outputs": {"regex": "a", "choice": ["a"]}},
        "structured_outputs.choice",
        "combined",
    ),
    (
        "structural tag",
        {"structured_outputs": {"structural_tag": "{}"}},
        "structured_outputs.structural_tag",
        "not supported",
    ),
    ("min_tokens", {"guided_regex": "a", "min_tokens": 2}, "min_tokens", "combined"),
    ("ignore_eos", {"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "combined"),
]


@pytest.mark.parametrize(
    ("fields", "param", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str, words: str
) -> None:
    response = post(http, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert str(error["param"]).startswith(param) and words in error["message"]


def test_text_is_what_nobody_has_to_ask_for(http: httpx.Client) -> None:
    (free,) = complete(http, max_tokens=5)
    (text,) = complete(http, max_tokens=5, response_format={"type": "text"})
    assert free["text"] == text["text"]


# A model that thinks: its template opens the block, leaves it to the model, or closes it.
THINKING_TEMPLATE = (
    "{# <think> </think> #}{{ messages[-1].content }}"
    "{% if enable_thinking is defined %}"
    "{{ '<think>\\n' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)


def write_thinking_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(THINKING_TEMPLATE, encoding="utf-8")


@pytest.fixture(scope="module")
def thinking(build_engine: BuildEngine) -> Iterator[httpx.Client]:
    built = build_engine(
        "llama", "fp32", "--max-batch-size", "8", edit_checkpoint=write_thinking_template
    )
    with serving(built.engine.path) as server, client_of(server) as client:
        yield client


def think(http: httpx.Client, max_tokens: int = 40, **arguments: bool) -> list[dict[str, Any]]:
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "guided_choice": ["yes", "no"],
        "chat_template_kwargs": arguments,
        "max_tokens": max_tokens,
        "n": 16,
        "seed": 7,
    }
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


def test_thoughts_that_the_prompt_has_opened_come_before_the_answer(
    thinking: httpx.Client,
) -> None:
    for choice in think(thinking, enable_thinking=True):
        message = choice["message"]
        assert message["reasoning_content"]
        assert choice["finish_reason"] == "length" or message["content"] in ("yes", "no")


def test_model_may_think_or_answer_at_once(thinking: httpx.Client) -> None:
    answers = think(thinking)
    ended = [choice for choice in answers if choice["finish_reason"] == "stop"]
    assert ended and {choice["message"]["content"] for choice in ended} <= {"yes", "no"}
    assert any(choice["message"]["reasoning_content"] for choice in answers)


def test_model_that_must_not_think_answers_at_once(thinking: httpx.Client) -> None:
    for choice in think(thinking, enable_thinking=False):
        assert choice["message"]["content"] in ("yes", "no")
        assert not choice["message"].get("reasoning_content")
