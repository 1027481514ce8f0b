"""Stop strings: the first complete one wins, whatever the chunks; nothing of it is given out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.stop import StopMatcher

quick = settings(deadline=None, max_examples=100)

# Two letters make matches, near matches and overlaps common.
some_text = st.text("ab", max_size=40) | st.text(max_size=20)
some_stops = st.lists(st.text("ab", min_size=1, max_size=6) | st.text(min_size=1), max_size=5)
some_sizes = st.lists(st.integers(0, 5), max_size=30)


def first_match(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The rule, word for word: the text before the first complete stop string, and that string."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    pieces, start = [], 0
    for size in [*sizes, len(text)]:
        pieces.append(text[start : start + size])
        start += size
    return pieces


def longest_beginning(text: str, stops: list[str]) -> int:
    lengths = range(max(map(len, stops), default=1) - 1, 0, -1)
    ends = (text[-length:] for length in lengths if length <= len(text))
    return next((len(end) for end in ends if any(stop.startswith(end) for stop in stops)), 0)


@quick
@given(text=some_text, stops=some_stops, sizes=some_sizes)
def test_result_follows_the_rule_however_the_text_comes(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces_of(text, sizes))
    assert (shown + matcher.finish(), matcher.matched) == first_match(text, stops)


@quick
@given(before=some_text, after=some_text, stops=some_stops.filter(bool), data=st.data())
def test_nothing_of_a_stop_string_is_given_out_at_any_time(
    before: str, after: str, stops: list[str], data: st.DataObject
) -> None:
    text = before + data.draw(st.sampled_from(stops)) + after
    expected, matched = first_match(text, stops)
    matcher, shown = StopMatcher(stops), ""
    for char in text:
        shown += matcher.push(char)
        assert expected.startswith(shown)
    assert shown == expected
    assert matcher.matched == matched
    assert not any(stop in shown for stop in stops)


@quick
@given(text=some_text, stops=some_stops)
def test_only_a_possible_beginning_is_held_back(text: str, stops: list[str]) -> None:
    text, _ = first_match(text, stops)
    matcher, shown = StopMatcher(stops), ""
    for length, char in enumerate(text, start=1):
        shown += matcher.push(char)
        if matcher.matched is None:
            assert shown == text[: length - longest_beginning(text[:length], stops)]


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "matched"),
    [
        pytest.param([], ["any", "", "thing"], ["any", "", "thing"], None, id="none"),
        pytest.param(["###"], ["a#", "#", "#b"], ["a", "", ""], "###", id="across-pieces"),
        pytest.param(["###"], ["a##", "b"], ["a", "##b"], None, id="near-miss-is-given-back"),
        pytest.param(["aab"], ["aa", "ab"], ["", "a"], "aab", id="begins-within-a-near-miss"),
        pytest.param(["cd", "abcde"], ["abcde"], ["ab"], "cd", id="first-complete-wins"),
        pytest.param(["b", "ab"], ["xab"], ["x"], "ab", id="longest-of-one-end-wins"),
        pytest.param(["a", "ab"], ["xab"], ["x"], "a", id="shorter-is-complete-first"),
        pytest.param(["xabc", "bd"], ["xab", "d"], ["", "xa"], "bd", id="other-within-held"),
        pytest.param(["\n\n"], ["x\n", "\n"], ["x", ""], "\n\n", id="line-breaks"),
        pytest.param(["[.]"], ["a[", ".]"], ["a", ""], "[.]", id="not-a-pattern"),
        pytest.param(["é🎉"], ["né", "🎉"], ["n", ""], "é🎉", id="beyond-ascii"),
        pytest.param(["x", "x"], ["ax"], ["a"], "x", id="twice-the-same"),
    ],
)
def test_stop_strings(
    stops: list[str], pieces: list[str], shown: list[str], matched: str | None
) -> None:
    matcher = StopMatcher(stops)
    assert [matcher.push(piece) for piece in pieces] == shown
    assert matcher.matched == matched


def test_text_after_a_match_is_swallowed() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("a stop b") == "a "
    assert matcher.push("more stop") == ""
    assert matcher.finish() == ""


def test_beginning_at_the_end_of_the_text_is_given_out_at_last() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("text<|en") == "text"
    assert matcher.finish() == "<|en"
    assert matcher.finish() == ""
    assert matcher.matched is None
