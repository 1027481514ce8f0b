"""Grammars of forced calls in every format: functions without parameters, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from deepinfer.text.call_grammar import (
    TAGS,
    ToolRefused,
    make_call_grammar,
    make_free_call_grammar,
)
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_choice import open_parser
from deepinfer.text.tool_schema import Tool
from tests.text.grammar_walk import Grammar
from tests.text.tool_answers import collect, read

EVERY_FORMAT = pytest.mark.parametrize("tool_format", ToolFormat)
NUM_DRAWN = 30
NO_PARAMETERS: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {}, "required": []},
    {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": None},
    {"type": "object", "properties": {}, "additionalProperties": False, "title": "None"},
]


def draw_calls(tool_format: ToolFormat, grammar: str, tools: list[Tool]) -> list[tuple[str, str]]:
    """Calls that the format's own parser reads in texts that are drawn."""
    rng, calls = random.Random(3), []
    for _ in range(NUM_DRAWN):
        answer = collect(read(open_parser(tool_format, tools), [Grammar(grammar).draw(rng)]))
        assert answer.content == ""
        calls += answer.calls
    return calls


@EVERY_FORMAT
@pytest.mark.parametrize("parameters", NO_PARAMETERS, ids=str)
def test_function_without_parameters_is_called_with_none(
    tool_format: ToolFormat, parameters: dict[str, Any]
) -> None:
    tools = [Tool("now", parameters)]
    grammar = make_call_grammar(tools, tool_format, parallel=False)
    assert draw_calls(tool_format, grammar, tools) == [("now", "{}")] * NUM_DRAWN


@pytest.mark.parametrize("tool_format", [f for f in ToolFormat if f not in TAGS])
def test_function_that_takes_any_names_is_no_function_without_parameters(
    tool_format: ToolFormat,
) -> None:
    tools = [Tool("tag", {"type": "object", "additionalProperties": {"type": "boolean"}})]
    grammar = make_call_grammar(tools, tool_format, parallel=False)
    assert any("true" in call[1] for call in draw_calls(tool_format, grammar, tools))


@EVERY_FORMAT
def test_keyword_that_cannot_be_enforced_is_not_taken_for_no_parameters(
    tool_format: ToolFormat,
) -> None:
    with pytest.raises(ToolRefused) as refused:
        make_call_grammar([Tool("f", {"type": "object", "not": {}})], tool_format, parallel=False)
    assert refused.value.at == ".not"


NOW = Tool("now", {})
BAD = Tool("bad", {"type": "object", "properties": {"x": {"type": "array", "contains": {}}}})


@EVERY_FORMAT
def test_refusal_names_the_tool_and_the_place(tool_format: ToolFormat) -> None:
    with pytest.raises(ToolRefused, match="not supported") as refused:
        make_call_grammar([NOW, BAD], tool_format, parallel=True)
    assert refused.value.tool_name == "bad"
    assert refused.value.at == ".properties.x.contains"


@EVERY_FORMAT
def test_call_that_is_free_may_have_parameters_that_cannot_be_enforced(
    tool_format: ToolFormat,
) -> None:
    tools = [NOW, BAD]
    grammar = make_free_call_grammar(tools, tool_format, parallel=False)
    assert {name for name, _ in draw_calls(tool_format, grammar, tools)} == {"now", "bad"}


@EVERY_FORMAT
def test_names_with_percent_signs_are_found(tool_format: ToolFormat) -> None:
    parameters = {"properties": {"a%20b/c": {"const": "v"}}, "required": ["a%20b/c"]}
    tools = [Tool("f", {"type": "object", **parameters})]
    grammar = make_call_grammar(tools, tool_format, parallel=False)
    for name, arguments in draw_calls(tool_format, grammar, tools):
        assert name == "f" and json.loads(arguments) == {"a%20b/c": "v"}
