"""JSON followed a character at a time: what `json` takes is taken, and nothing else."""

from __future__ import annotations

import json
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.tool_formats.arguments import StringArguments
from deepinfer.text.tool_formats.json_follower import MAX_DEPTH, JsonFollower, Start

quick = settings(deadline=None, max_examples=400)

PARTS = ["{", "}", "[", "]", ",", ":", '"', '"a"', "\\", "u00e9", "\n", " ", "é", "/", "n", "\x1f"]
NUMBERS = ["0", "12", "-", ".", "e", "E", "+", "1.5", "true", "false", "null", "nul", "NaN", "Inf"]
some_texts = st.lists(st.sampled_from(PARTS + NUMBERS), max_size=12).map("".join)
some_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
).filter(lambda value: "Infinity" not in json.dumps(value))


def refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def is_taken(text: str) -> bool:
    follower = JsonFollower()
    return all(map(follower.accept, text)) and follower.can_end


@given(text=some_texts)
@quick
def test_text_is_taken_where_json_takes_it(text: str) -> None:
    assert is_taken(text) == is_json(text)


@given(value=some_values, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
@quick
def test_every_value_is_taken_and_is_whole_at_its_end_only(
    value: object, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    follower = JsonFollower()
    for char in text[:-1]:
        assert not follower.is_complete
        assert follower.accept(char)
    assert follower.accept(text[-1]) and follower.can_end


@given(value=some_values, place=st.integers(0, 200), char=st.sampled_from('{}[],:"\\x0-\n'))
@quick
def test_slip_of_the_pen_is_noticed_where_json_notices_it(
    value: object, place: int, char: str
) -> None:
    text = json.dumps(value)
    slipped = text[: place % len(text)] + char + text[place % len(text) + 1 :]
    assert is_taken(slipped) == is_json(slipped)


def test_nesting_has_a_bound() -> None:
    assert is_taken("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert not is_taken("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "null"])
def test_object_follower_takes_nothing_else(text: str) -> None:
    assert not JsonFollower(Start.OBJECT).accept(text[0])


@pytest.mark.parametrize(
    "text",
    [r'"{}\ud83d"', r'"{\"a\": \"\ud83dx\"}"', r'"{\"a\": \"\udc00\"}"', r'"{}{}"', r'"{"', '"x"'],
)
def test_string_that_does_not_say_an_object_is_refused(text: str) -> None:
    arguments = StringArguments()
    assert not all(map(arguments.accept, text))
