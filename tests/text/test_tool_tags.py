"""Calls whose arguments are written between tags: made JSON by the types that the tools declare."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.parameter_types import ANY, types_of_parameter
from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallStarted,
    Content,
    ToolFormat,
)
from deepinfer.text.tool_choice import open_parser
from deepinfer.text.tool_schema import Tool
from tests.text.tool_answers import Answer, collect, joined, pieces_of, read

quick = settings(deadline=None, max_examples=150)

QWEN_CODER, GLM = ToolFormat.QWEN_CODER, ToolFormat.GLM
BOTH = pytest.mark.parametrize("tool_format", [QWEN_CODER, GLM])

PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "unit": {"$ref": "#/$defs/Unit"},
    "days": {"type": "integer"},
    "share": {"type": "number"},
    "is_on": {"type": "boolean"},
    "places": {"type": "array", "items": {"type": "string"}},
    "filter": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "size": {"type": ["integer", "string"]},
    "anything": {},
}
ROOT: dict[str, Any] = {
    "type": "object",
    "properties": PROPERTIES,
    "$defs": {"Unit": {"enum": ["C", "F"]}},
}
TOOLS = [Tool("f", ROOT)]


def write(tool_format: ToolFormat, arguments: dict[str, str], name: str = "f") -> str:
    """As the models' chat templates do."""
    if tool_format is QWEN_CODER:
        parts = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()]
        return f"<tool_call>\n<function={name}>\n{''.join(parts)}</function>\n</tool_call>"
    parts = [
        f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for key, value in arguments.items()
    ]
    return f"<tool_call>{name}\n{''.join(parts)}</tool_call>"


def answer_of(tool_format: ToolFormat, text: str) -> Answer:
    answer = collect(read(open_parser(tool_format, TOOLS), [text]))
    assert collect(read(open_parser(tool_format, TOOLS), text)) == answer
    return answer


VALUES = {
    "text": ("text", 'Zoë says "hi"\n\t{x: 1} \\ </b>', 'Zoë says "hi"\n\t{x: 1} \\ </b>'),
    "text that looks like a number": ("text", "12", "12"),
    "text that looks like nothing": ("text", "null", "null"),
    "no text": ("text", "", ""),
    "text with space around it": ("text", "  a ", "  a "),
    "text with line breaks around it": ("text", "\na\n\n", "\na\n\n"),
    "enum by reference": ("unit", "C", "C"),
    "integer": ("days", "-12", -12),
    "integer with space around it": ("days", " 3 \n", 3),
    "large integer": ("days", "123456789012345678901", 123456789012345678901),
    "word for an integer": ("days", "three", "three"),
    "quoted integer": ("days", '"3"', "3"),
    "number": ("share", "1.5e-3", 1.5e-3),
    "no number of JSON": ("share", "NaN", "NaN"),
    "boolean": ("is_on", "true", True),
    "boolean as Python writes it": ("is_on", "False", False),
    "array": ("places", '["Paris",\n "Rome"]', ["Paris", "Rome"]),
    "array that is none": ("places", "[Paris", "[Paris"),
    "too deep an array": ("places", "[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
    "object": ("filter", '{"a": {"b": null}}', {"a": {"b": None}}),
    "null": ("filter", "null", None),
    "null as Python writes it": ("filter", "None", None),
    "optional text": ("note", "a note", "a note"),
    "optional text that looks like a number": ("note", "7", "7"),
    "optional text that is left out": ("note", "null", None),
    "one of two types": ("size", "7", 7),
    "the other of two types": ("size", "7.5", "7.5"),
    "unknown type, a number": ("anything", "1.0", 1.0),
    "unknown type, words": ("anything", 'say "it"', 'say "it"'),
    "unknown type, quoted": ("anything", '"it"', '"it"'),
    "unknown parameter": ("other", "[1]", [1]),
}


@BOTH
@pytest.mark.parametrize(("key", "value", "expected"), VALUES.values(), ids=VALUES)
def test_value_has_the_type_that_the_tool_declares(
    tool_format: ToolFormat, key: str, value: str, expected: object
) -> None:
    (call,) = answer_of(tool_format, write(tool_format, {key: value})).calls
    found = json.loads(call[1])
    assert found == {key: expected} and type(found[key]) is type(expected)


@BOTH
def test_calls_and_words_are_told_apart(tool_format: ToolFormat) -> None:
    first = write(tool_format, {"text": "a", "days": "1"})
    text = f"I look.\n\n{first}\n{write(tool_format, {}, name='now')}\n"
    calls = [("f", '{"text": "a", "days": 1}'), ("now", "{}")]
    assert answer_of(tool_format, text) == Answer("I look.", calls)


SPELLINGS = {
    "Qwen on one line": (
        QWEN_CODER,
        "<tool_call><function=f><parameter=text>a</parameter></function></tool_call>",
    ),
    "Qwen without its first tag": (
        QWEN_CODER,
        "<function=f>\n<parameter=text>\na\n</parameter>\n</function>\n</tool_call>",
    ),
    "Qwen without its last tag": (
        QWEN_CODER,
        "<tool_call>\n<function=f>\n<parameter=text>\na\n</parameter>\n</function>",
    ),
    "GLM on one line": (
        GLM,
        "<tool_call>f<arg_key>text</arg_key><arg_value>a</arg_value></tool_call>",
    ),
    "GLM with spaces": (
        GLM,
        "<tool_call> f <arg_key>text</arg_key> <arg_value>a</arg_value> </tool_call>",
    ),
}


@pytest.mark.parametrize(("tool_format", "text"), SPELLINGS.values(), ids=SPELLINGS)
def test_white_space_between_tags_means_nothing(tool_format: ToolFormat, text: str) -> None:
    assert answer_of(tool_format, text) == Answer("", [("f", '{"text": "a"}')])


NO_CALLS = {
    "Qwen: no function": (QWEN_CODER, "<tool_call>\nf\n</tool_call>"),
    "Qwen: JSON": (QWEN_CODER, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
    "Qwen: a tag in prose": (QWEN_CODER, "It writes <function=f> and <function=g>."),
    "Qwen: no name": (QWEN_CODER, "<tool_call><function=></function></tool_call>"),
    "Qwen: no key": (QWEN_CODER, "<tool_call><function=f><parameter=>1</parameter></function>"),
    "Qwen: words between": (QWEN_CODER, "<tool_call><function=f>So: <parameter=a>"),
    "Qwen: no end": (QWEN_CODER, "<tool_call><function=f><parameter=a>1</parameter>"),
    "GLM: words": (GLM, "<tool_call> is a tag"),
    "GLM: no value": (GLM, "<tool_call>f<arg_key>a</arg_key></tool_call>"),
    "GLM: value without a key": (GLM, "<tool_call>f<arg_value>1</arg_value></tool_call>"),
    "GLM: no end": (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value>"),
}


@pytest.mark.parametrize(("tool_format", "text"), NO_CALLS.values(), ids=NO_CALLS)
def test_what_is_no_call_is_content(tool_format: ToolFormat, text: str) -> None:
    assert answer_of(tool_format, text) == Answer(text, [])


@BOTH
def test_text_comes_as_it_is_written(tool_format: ToolFormat) -> None:
    before, after = write(tool_format, {"text": "|"}).split("|")
    parser = open_parser(tool_format, TOOLS)
    assert parser.feed(before) == [CallStarted(0, "f"), ArgumentsDelta(0, '{"text": "')]
    for word in ("print", '("', " </p> ", "é"):
        assert parser.feed(word) == [ArgumentsDelta(0, json.dumps(word, ensure_ascii=False)[1:-1])]
    assert joined(parser.feed(after))[0] == ArgumentsDelta(0, '"}')


@BOTH
def test_call_that_breaks_off_is_given_back(tool_format: ToolFormat) -> None:
    parser = open_parser(tool_format, TOOLS)
    text = write(tool_format, {"text": "abc"}).partition(
        "c\n" if tool_format is QWEN_CODER else "c<"
    )[0]
    assert parser.feed(text)[0] == CallStarted(0, "f")
    assert parser.close() == [CallBroken(0), Content(text)]


some_texts = st.text() | st.sampled_from(
    ["\n", "\n\n", "</", "</p>", "<arg_key>", "</parameter", "<"]
)


@BOTH
@given(texts=st.lists(some_texts, max_size=3), sizes=st.lists(st.integers(0, 6), max_size=40))
@quick
def test_any_text_arrives_to_the_letter_however_it_is_cut(
    tool_format: ToolFormat, texts: list[str], sizes: list[int]
) -> None:
    text = "".join(texts)
    pieces = pieces_of(write(tool_format, {"text": text, "days": "3"}), sizes)
    (call,) = collect(read(open_parser(tool_format, TOOLS), pieces)).calls
    assert json.loads(call[1]) == {"text": text, "days": 3}


@BOTH
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc é"), inner),
    )
)
@quick
def test_any_value_but_a_text_is_what_its_json_says(tool_format: ToolFormat, value: object) -> None:
    (call,) = answer_of(tool_format, write(tool_format, {"anything": json.dumps(value)})).calls
    assert json.loads(call[1]) == {"anything": value}


TYPES: dict[str, tuple[object, set[str]]] = {
    "one": ({"type": "string"}, {"string"}),
    "several": ({"type": ["string", "null"]}, {"string", "null"}),
    "constant": ({"const": 1}, {"integer"}),
    "values": ({"enum": ["a", None, 1.5, True]}, {"string", "null", "number", "boolean"}),
    "either": ({"oneOf": [{"type": "integer"}, {"const": "a"}]}, {"integer", "string"}),
    "reference": ({"$ref": "#/$defs/Unit"}, {"string"}),
    "wrapped reference": ({"allOf": [{"$ref": "#/$defs/Unit"}], "title": "U"}, {"string"}),
    "reference to itself": ({"$ref": "#/properties/x"}, set(ANY)),
    "reference to nothing": ({"$ref": "#/$defs/gone/there"}, set(ANY)),
    "reference that is none": ({"$ref": 7}, set(ANY)),
    "unknown type": ({"type": "date"}, set(ANY)),
    "type that is none": ({"type": 5}, set(ANY)),
    "branches that are none": ({"anyOf": 5}, set(ANY)),
    "anything": (True, set(ANY)),
    "nothing said": ({"description": "x"}, set(ANY)),
}


@pytest.mark.parametrize(("schema", "expected"), TYPES.values(), ids=TYPES)
def test_types_are_what_the_schema_says(schema: object, expected: set[str]) -> None:
    root = {"properties": {"x": schema}, "$defs": ROOT["$defs"]}
    assert types_of_parameter(root, "x") == expected


def test_parameter_that_is_not_named_has_the_type_of_the_others() -> None:
    assert types_of_parameter({"additionalProperties": {"type": "string"}}, "x") == {"string"}
    assert types_of_parameter({"properties": 5}, "x") == ANY
