"""Grammars of forced calls whose arguments stand between tags: in their words, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.text.call_grammar import make_call_grammar
from deepinfer.text.free_text import text_rules
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_schema import Tool

QWEN_CODER, GLM = ToolFormat.QWEN_CODER, ToolFormat.GLM
BOTH = pytest.mark.parametrize("tool_format", [QWEN_CODER, GLM])


def rules_of(
    tool_format: ToolFormat, parameters: dict[str, Any], *, parallel: bool = False
) -> dict[str, str]:
    grammar = make_call_grammar([Tool("f", parameters)], tool_format, parallel=parallel)
    return dict(line.split(" ::= ", 1) for line in grammar.splitlines() if line)


def value_of(schema: object, **root: Any) -> str:
    """The expression for one required value."""
    parameters = {"properties": {"x": schema}, "required": ["x"], **root}
    call = rules_of(GLM, parameters)["call"]
    before, after = '<arg_value>" ', ' "</arg_value>'
    return call.partition(before)[2].partition(after)[0]


PARAMETERS = {"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}, "required": ["b"]}


def written(text: str) -> str:
    """A literal of a grammar as it is written in one."""
    return '"' + text.replace("\n", "\\U0000000a") + '"'


def test_call_of_qwen_in_full() -> None:
    rules = rules_of(QWEN_CODER, PARAMETERS)
    before, after = "<parameter=a>" + chr(10), chr(10) + "</parameter>" + chr(10)
    a = f"({written(before)} (text) {written(after)})?"
    assert rules["root"] == "call"
    assert rules["call"].startswith(
        f"({written('<tool_call>' + chr(10) + '<function=f>' + chr(10))} "
    )
    assert a in rules["call"]
    assert rules["call"].endswith(f"{written('</function>' + chr(10) + '</tool_call>')})")


def test_call_of_glm_in_full() -> None:
    a = f"({written('<arg_key>a</arg_key>' + chr(10) + '<arg_value>')} (text) "
    rules = rules_of(GLM, PARAMETERS, parallel=True)
    assert rules["root"] == f"call ({written(chr(10))} call)*"
    assert rules["call"].startswith(f"({written('<tool_call>f' + chr(10))} {a}")
    assert rules["call"].endswith(f"{written('</tool_call>')})")


VALUES: dict[str, tuple[object, str]] = {
    "text": ({"type": "string"}, "(text)"),
    "anything": ({}, "(text)"),
    "optional text": ({"anyOf": [{"type": "string"}, {"type": "null"}]}, '(text | "null")'),
    "nullable text": ({"type": ["string", "null"]}, '(text | "null")'),
    "words": ({"enum": ["a", "b c"]}, '("a" | "b c")'),
    "words or none": ({"enum": ["a", None]}, '("a" | "null")'),
    "words by reference": ({"$ref": "#/$defs/Unit"}, '("C" | "F")'),
    "optional words": (
        {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}], "default": None},
        '("C" | "F" | "null")',
    ),
    "integer": ({"type": "integer"}, "(c0v0s0)"),
    "integer or none": ({"type": ["integer", "null"]}, "(c0v0s0)"),
    "array of texts": ({"type": "array", "items": {"type": "string"}}, "(c0v0s0)"),
}


@pytest.mark.parametrize(("schema", "expected"), VALUES.values(), ids=VALUES)
def test_text_is_written_as_text_and_all_else_as_json(schema: object, expected: str) -> None:
    assert value_of(schema, **{"$defs": {"Unit": {"enum": ["C", "F"]}}}) == expected


REFUSED: dict[str, tuple[object, str]] = {
    "text or number": ({"type": ["string", "integer"]}, "beside other values than null"),
    "either of them": (
        {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "beside other values than null",
    ),
    "a word that reads like a number": ({"enum": ["1", 2]}, "reads like another value"),
    "a word that reads like null": ({"enum": ["None", None]}, "reads like another value"),
    "pattern": ({"type": "string", "pattern": "a"}, "not supported"),
    "pattern within JSON": (
        {"type": "array", "items": {"type": "string", "pattern": "^.*$"}},
        "beside `pattern`",
    ),
    "text twice": ({"oneOf": [{"type": "string"}, {"const": "a"}]}, "use anyOf"),
    "bounds without a type": ({"minLength": 1}, "beside other values than null"),
    "a word with the tag": ({"const": "</arg_value>"}, "must not hold `</arg_value>`"),
    "a key with the tag": (
        {"type": "object", "properties": {"</arg_value>": {}}, "required": ["</arg_value>"]},
        "must not hold `</arg_value>`",
    ),
    "reference to itself": ({"$ref": "#/properties/x"}, "without end"),
    "branches without end": ({"anyOf": [{"$ref": "#/properties/x"}, {"type": "string"}]}, "more"),
    "nothing": (False, "objects only"),
}


@pytest.mark.parametrize(("schema", "rule"), REFUSED.values(), ids=REFUSED)
def test_what_could_not_be_read_back_is_refused(schema: object, rule: str) -> None:
    with pytest.raises(SchemaRefused, match=rule) as caught:
        value_of(schema)
    assert caught.value.at.startswith(".properties.x")


@pytest.mark.parametrize("tool_format", [ToolFormat.MISTRAL_ARGS, QWEN_CODER, GLM])
def test_rules_of_several_tools_have_names_of_their_own(tool_format: ToolFormat) -> None:
    pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}]}
    tools = [Tool(name, {"properties": {"x": pair, "y": pair}}) for name in ("f", "g")]
    grammar = make_call_grammar(tools, tool_format, parallel=True)
    names = [line.split(" ::= ")[0] for line in grammar.splitlines() if line]
    assert len(names) == len(set(names))


@BOTH
@pytest.mark.parametrize(
    "parameters",
    [
        {"anyOf": [{"required": ["a"]}]},
        {"$ref": "#/$defs/x"},
        {"minProperties": 1},
        {"properties": 5},
        {"required": [5]},
        {"properties": {"a\nb": {}}},
        {"properties": {"": {}}},
        {"properties": {"a</arg_key>": {}}},
        {"properties": {str(number): {} for number in range(1_001)}},
    ],
    ids=lambda parameters: str(parameters)[:40],
)
def test_parameters_that_the_tags_cannot_hold_are_refused(
    tool_format: ToolFormat, parameters: dict[str, Any]
) -> None:
    with pytest.raises(SchemaRefused):
        rules_of(tool_format, parameters)


def test_required_parameter_that_is_not_described_is_written() -> None:
    assert value_of({}) == "(text)"
    assert "<arg_key>y</arg_key>" in rules_of(GLM, {"required": ["y"]})["call"]


def test_text_cannot_hold_its_tag() -> None:
    rules = dict(line.split(" ::= ", 1) for line in text_rules("</a>").splitlines())
    assert list(rules) == ["text", "tag1", "tag2", "tag3"]
    assert rules["tag1"].endswith(' | "/" tag2') and "[\\t\\n -.0-;=-" in rules["tag1"]
    assert rules["tag3"].startswith("[") and "=?-" in rules["tag3"] and "|" not in rules["tag3"]


def test_text_of_a_known_format_is_written_in_it() -> None:
    date = value_of({"type": "string", "format": "date"})
    assert "text" not in date and '"-"' in date
    assert value_of({"type": "string", "format": "unheard-of"}) == "(text)"
