"""Errors about a chat's fields, said in the words of another route."""

from __future__ import annotations

import pytest

from deepinfer.errors import InvalidValue, RequestError
from deepinfer.server.param_names import renaming_params

NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "n": "count"}
NAMES["tools[].function.parameters"] = "tools[].input_schema"


@pytest.mark.parametrize(
    ("message", "param", "expected"),
    [
        ("`messages[0].content` is bad", "messages[0].content", "input[0].content"),
        ("`max_tokens` is 3", "max_tokens", "max_output_tokens"),
        ("`name` is bad", "name", "name"),
        (
            "`tools[12].function.parameters.not` is bad",
            "tools[12].function.parameters.not",
            "tools[12].input_schema.not",
        ),
        ("`tools[1].function.name` is bad", "tools[1].function.name", "tools[1].function.name"),
        ("no field at all", None, None),
    ],
)
def test_errors_are_renamed(message: str, param: str | None, expected: str | None) -> None:
    with pytest.raises(RequestError) as caught, renaming_params(NAMES):
        raise InvalidValue(message, param=param)
    assert caught.value.param == expected
    assert expected is None or f"`{expected}`" in caught.value.message
