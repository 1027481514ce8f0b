"""Guided decoding by script: the toy model cannot be masked, so a fitting answer is written out."""

from __future__ import annotations

import json
from typing import Any

import pydantic

from tests.contract.double.configs import RequestError
from tests.contract.double.record import assumed, message

REFUSED_MARK = "# refused"  # a comment in a grammar that the double is to find wrong

EXAMPLES: dict[str, Any] = {
    "string": "a",
    "integer": 0,
    "number": 0,
    "boolean": True,
    "null": None,
    "array": [],
}


def script(params: Any, tokenizer: Any) -> list[int]:
    """Token ids of one answer that satisfies the constraint. Raises RequestError."""
    if params.json_object:
        return tokenizer.encode_plain("{}")  # type: ignore[no-any-return]
    if params.json is not None:
        answer = json.dumps(example(_schema(params.json)))
        return tokenizer.encode_plain(answer)  # type: ignore[no-any-return]
    if params.grammar is not None and REFUSED_MARK in params.grammar:
        raise RequestError(_refusal())
    kinds = ("regex", "grammar", "structural_tag")
    kind = next((kind for kind in kinds if getattr(params, kind) is not None), "empty")
    raise RequestError(message("guided_not_simulated", kind=kind))


def _refusal() -> str:
    """xgrammar's own words; where it throws in an iteration, the executor's before them."""
    error = message("grammar_parser")
    return message("forward_error") + error if assumed("grammar_errors_end_the_batch") else error


def example(schema: dict[str, Any]) -> Any:
    """The smallest value of a schema of objects, enums and plain types."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type", "object") == "object":
        properties = schema.get("properties", {})
        return {name: example(properties[name]) for name in schema.get("required", properties)}
    return EXAMPLES[schema["type"]]


def _schema(given: Any) -> dict[str, Any]:
    if isinstance(given, type) and issubclass(given, pydantic.BaseModel):
        return given.model_json_schema()
    try:
        schema = json.loads(given) if isinstance(given, str) else given
        example(schema)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(message("guided_invalid", error=error)) from error
    return dict(schema)
