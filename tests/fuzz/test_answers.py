"""What models write, and worse: stop strings and calls of tools in text of all of Unicode."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.stop import StopMatcher
from deepinfer.text.tokenizer import Tokenizer
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_choice import open_parser
from tests.text import samples
from tests.text.tool_answers import collect, joined, pieces_of, read

always = settings(derandomize=True, deadline=None, max_examples=300)
some_sizes = st.lists(st.integers(0, 7), max_size=60)
FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<function=f>"),
    *("</function>", "<parameter=x>", "</parameter>", "<arg_key>", "</arg_key>", "<arg_value>"),
    *('{"name": "f", "arguments": {"a": [1, "}"]}}', '{"name":', "[{", "}]", "\\", '"', "\n", " "),
)
answers = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)


def find_naively(text: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first; of several, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@always
@given(
    text=st.text(alphabet=st.sampled_from("ab") | st.characters(), max_size=60),
    stops=st.lists(st.text("ab", min_size=1, max_size=5) | st.text(min_size=1, max_size=2)),
    sizes=some_sizes,
)
def test_stop_strings_are_those_of_a_naive_search(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher = StopMatcher(stops)
    given_out = "".join(map(matcher.push, pieces_of(text, sizes))) + matcher.finish()
    assert given_out == find_naively(text, stops)


@pytest.mark.parametrize("tool_format", ToolFormat)
@always
@given(text=answers, sizes=some_sizes)
def test_no_character_of_an_answer_is_lost(
    tool_format: ToolFormat, text: str, sizes: list[int]
) -> None:
    events = read(open_parser(tool_format), pieces_of(text, sizes))
    assert joined(events) == joined(read(open_parser(tool_format), [text]))
    answer = collect(events)
    for _, arguments in answer.calls:
        assert isinstance(json.loads(arguments), dict)
    if not answer.calls:
        # White space around calls belongs to the format, and may go with none of them there.
        assert answer.content.split() == text.split()


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "metaspace", "wordpiece"])
@always
@given(ids=st.lists(st.integers(0, 400), max_size=60), sizes=some_sizes)
def test_any_tokens_have_the_same_text_however_they_come(
    family: str, ids: list[int], sizes: list[int]
) -> None:
    tokenizer = Tokenizer(samples.copy_of(getattr(samples, family)()), {})
    detokenizer, text, start = tokenizer.detokenizer(), "", 0
    for size in [*sizes, len(ids)]:
        text += detokenizer.push(ids[start : start + size])
        start += size
    text += detokenizer.finish()
    assert text == tokenizer.decode(ids)
    text.encode()
