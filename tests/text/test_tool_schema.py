"""The grammar of a forced call: whatever it allows is read back as a call of a given tool."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepinfer.errors import InvalidValue
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_choice import open_parser
from deepinfer.text.tool_schema import (
    CallFrame,
    CallGrammar,
    Tool,
    choose_tools,
    tool_call_schema,
)
from tests.text.tool_answers import Answer, collect, read

WEATHER = Tool(
    "weather",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
NOW = Tool("now", {})
TREE = Tool(
    "tree",
    {
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}, "$ref": {"const": {"$ref": "#/x"}}},
        "$defs": {"node": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    },
)
JSON_FORMATS = [ToolFormat.HERMES, ToolFormat.LLAMA3, ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS]
EVERY_FORMAT = pytest.mark.parametrize("tool_format", JSON_FORMATS)


def look_up(root: dict[str, Any], reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def references_in(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for one in schema for found in references_in(one)]
    if not isinstance(schema, dict):
        return []
    here = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return here + [
        found for key, one in schema.items() if key != "const" for found in references_in(one)
    ]


def call_text(tool_format: ToolFormat, grammar: CallGrammar, name: str, num_calls: int) -> str:
    """What a model under the grammar may write: calls of one tool with an empty object."""
    frame = next(one for one in grammar.frames if name in one.prefix + json.dumps(one.schema))
    key = "parameters" if tool_format is ToolFormat.LLAMA3 else "arguments"
    call: object = {"name": name, key: {}}
    if tool_format is ToolFormat.MISTRAL:
        return frame.prefix + json.dumps([call] * num_calls) + frame.suffix
    if tool_format is ToolFormat.MISTRAL_ARGS:
        call = {}
    one = frame.prefix + json.dumps(call) + frame.suffix
    return (grammar.separator or "").join([one] * num_calls)


@EVERY_FORMAT
@pytest.mark.parametrize("num_calls", [1, 3])
def test_what_the_grammar_allows_is_read_as_calls(tool_format: ToolFormat, num_calls: int) -> None:
    grammar = tool_call_schema([WEATHER, NOW], tool_format)
    text = call_text(tool_format, grammar, "now", num_calls)
    answer = collect(read(open_parser(tool_format), [text]))
    assert answer == Answer("", [("now", "{}")] * num_calls)


def test_hermes_grammar_in_full() -> None:
    grammar = tool_call_schema([WEATHER], ToolFormat.HERMES, parallel=False)
    schema = {
        "type": "object",
        "properties": {"name": {"const": "weather"}, "arguments": {"$ref": "#/$defs/weather"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "$defs": {"weather": WEATHER.parameters},
    }
    frame = CallFrame("<tool_call>\n", schema, "\n</tool_call>")
    assert grammar == CallGrammar((frame,), separator=None)


@EVERY_FORMAT
def test_one_call_only_where_they_are_not_parallel(tool_format: ToolFormat) -> None:
    grammar = tool_call_schema([WEATHER, NOW], tool_format, parallel=False)
    assert grammar.separator is None
    if tool_format is ToolFormat.MISTRAL:
        assert grammar.frames[0].schema["maxItems"] == 1


def test_named_choice_is_of_that_tool_only() -> None:
    assert choose_tools([WEATHER, NOW], "now") == [NOW]
    assert choose_tools([WEATHER, NOW]) == [WEATHER, NOW]


@EVERY_FORMAT
def test_references_inside_parameters_still_lead_somewhere(tool_format: ToolFormat) -> None:
    grammar = tool_call_schema([TREE, NOW], tool_format)
    for frame in grammar.frames:
        for reference in references_in(frame.schema):
            assert isinstance(look_up(frame.schema, reference), dict)


def test_data_and_property_names_that_look_like_references_are_left_alone() -> None:
    schema = tool_call_schema([TREE], ToolFormat.HERMES).frames[0].schema
    properties = schema["$defs"]["tree"]["properties"]
    assert properties["$ref"] == {"const": {"$ref": "#/x"}}
    assert properties["root"] == {"$ref": "#/$defs/tree/$defs/node"}


def test_arguments_are_an_object_whatever_the_parameters_say() -> None:
    tool = Tool("f", {"properties": {"a": {}}})
    grammar = tool_call_schema([tool], ToolFormat.MISTRAL_ARGS)
    assert grammar.frames[0].schema == {"type": "object", "properties": {"a": {}}}


def test_tool_without_parameters_takes_none() -> None:
    schema = tool_call_schema([NOW], ToolFormat.MISTRAL_ARGS).frames[0].schema
    assert schema == {"type": "object", "properties": {}, "additionalProperties": False}


def test_name_with_a_slash_is_referred_to_as_json_pointers_do() -> None:
    schema = tool_call_schema([Tool("a/b~c", {})], ToolFormat.LLAMA3).frames[0].schema
    assert look_up(schema, schema["properties"]["parameters"]["$ref"])["type"] == "object"


def test_choice_of_a_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidValue, match="`later` must be .* `weather`, `now`"):
        choose_tools([WEATHER, NOW], "later")
    with pytest.raises(InvalidValue, match="`tools` is empty"):
        choose_tools([])
