"""Request bodies: the defaults that the API reference promises, and what null means."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from deepinfer.errors import InvalidJson, InvalidValue, RequestError, UnsupportedParameter
from deepinfer.server import refused
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.errors import from_validation
from deepinfer.server.schemas import DEFAULT_MAX_TOKENS, CompletionBody, Schema

MESSAGES = [{"role": "user", "content": "hi"}]
REFERENCE_DEFAULTS = {
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": -1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "stream": False,
    "n": 1,
}


def parse(schema: type[Schema], **fields: Any) -> Any:
    return schema.model_validate_json(json.dumps(fields))


def reject(schema: type[Schema], **fields: Any) -> RequestError:
    with pytest.raises(ValidationError) as caught:
        parse(schema, **fields)
    return from_validation(caught.value)


@pytest.mark.parametrize(
    "body", [parse(CompletionBody, prompt="x"), parse(ChatBody, messages=MESSAGES)], ids=type
)
def test_defaults_are_those_of_the_reference(body: Any) -> None:
    assert {name: getattr(body, name) for name in REFERENCE_DEFAULTS} == REFERENCE_DEFAULTS
    assert (DEFAULT_MAX_TOKENS, body.max_tokens, body.stop) == (512, None, ())


def test_null_means_the_default() -> None:
    fields = CompletionBody.model_fields.items()
    names = [field.alias or name for name, field in fields if not field.is_required()]
    nulls = parse(CompletionBody, prompt="x", **dict.fromkeys(names))
    assert nulls.model_dump() == parse(CompletionBody, prompt="x").model_dump()


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
    ids=["string", "strings", "token ids", "arrays of token ids"],
)
def test_prompt_has_four_forms(prompt: object, parsed: object) -> None:
    assert parse(CompletionBody, prompt=prompt).prompt == parsed


def test_whole_number_may_be_written_with_a_point() -> None:
    body = parse(CompletionBody, prompt=[[1.0, 2], [3]], max_tokens=16.0, stop_token_ids=[2.0])
    assert (body.prompt, body.max_tokens, body.stop_token_ids) == (((1, 2), (3,)), 16, [2])
    assert type(body.max_tokens) is int
    assert reject(CompletionBody, prompt="x", stop_token_ids=[2.5]).param == "stop_token_ids[0]"
    assert reject(CompletionBody, prompt="x", max_tokens=1e300).param == "max_tokens"
    assert reject(CompletionBody, prompt="x", stream=1.0).param == "stream"


def test_integer_is_a_number_and_a_string_is_none() -> None:
    assert parse(CompletionBody, prompt="x", temperature=1).temperature == 1.0
    assert reject(CompletionBody, prompt="x", temperature="1").message == (
        '`temperature` must be a number; `"1"` was given'
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 3.5}, "`temperature` must be at most 2; `3.5` was given"),
        ({"n": 0}, "`n` must be at least 1; `0` was given"),
        ({"prompt": []}, "`prompt` must not be empty; an empty array was given"),
        ({"stop": ["a", "x" * 1001]}, "`stop[1]` must have at most 1,000 characters"),
        ({"tools": [], "suffix": "x"}, "`suffix` is not supported by this server; leave it out"),
        (
            {"model": "m" * 99, "n": "x" * 99},
            '`n` must be a whole number; `"' + "x" * 59 + "...` was given",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_message_states_the_rule_and_the_value(fields: dict[str, Any], message: str) -> None:
    assert reject(CompletionBody, **{"prompt": "x", **fields}).message == message


def test_unknown_fields_are_kept_aside_and_named() -> None:
    body = parse(ChatBody, messages=MESSAGES, user="me", tools=[], brand_new=1)
    assert body.unknown_fields == {"brand_new"}


@pytest.mark.parametrize(
    ("schema", "required", "neutral"),
    [
        (CompletionBody, {"prompt": "x"}, refused.COMPLETION),
        (ChatBody, {"messages": MESSAGES}, refused.CHAT),
    ],
    ids=["completion", "chat"],
)
def test_refused_parameter_is_taken_with_its_neutral_values_only(
    schema: type[Schema], required: dict[str, Any], neutral: refused.Neutral
) -> None:
    for name, values in neutral.items():
        for value in (None, *values):
            parse(schema, **required, **{name: value})
        error = reject(schema, **required, **{name: "something else"})
        assert isinstance(error, UnsupportedParameter) and error.param == name


def test_true_is_not_the_number_one() -> None:
    refusal = reject(ChatBody, messages=MESSAGES, length_penalty=True)
    assert isinstance(refusal, UnsupportedParameter)


def test_values_of_other_kinds_are_not_repeated_whole() -> None:
    error = reject(CompletionBody, prompt="x", temperature=["y" * 1000])
    assert isinstance(error, InvalidValue)
    assert error.message == "`temperature` must be a number; an array of 1 items was given"


def test_body_that_is_no_object_is_invalid_json() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate_json("[1]")
    error = from_validation(caught.value)
    assert isinstance(error, InvalidJson)
    assert error.message == "The body must be a JSON object; an array of 1 items was sent"
