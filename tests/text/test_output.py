"""One choice: its text, its finish and its count, the same streamed or not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.generation import FinishReason, TokenChunk
from deepinfer.text.output import OutputText
from deepinfer.text.stop import StopMatcher
from deepinfer.text.tokenizer import Tokenizer
from tests.text import samples

TOKENIZER = Tokenizer(samples.byte_fallback(), {"eos_token": "</s>"})
EOS = TOKENIZER.eos_token_id
assert EOS is not None


def output(*stop: str) -> OutputText:
    return OutputText(TOKENIZER.detokenizer(), StopMatcher(stop))


def encoded(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def chunk(*token_ids: int, finish: FinishReason | None = None) -> TokenChunk:
    return TokenChunk("request", token_ids, finish)


def test_eos_is_counted_and_not_shown() -> None:
    choice = output()
    assert choice.push(chunk(*encoded("dad"))) == "dad"
    assert choice.finish_reason is None
    assert choice.push(chunk(EOS, finish=FinishReason.STOP)) == ""
    assert choice.finish_reason is FinishReason.STOP
    assert choice.completion_tokens == len(encoded("dad")) + 1


def test_stop_token_with_a_text_is_not_shown() -> None:
    choice = output()
    assert choice.push(chunk(*encoded("no dad"), finish=FinishReason.STOP)) == "no da"
    assert choice.completion_tokens == len(encoded("no dad"))


def test_last_token_at_the_length_limit_is_shown() -> None:
    choice = output()
    assert choice.push(chunk(*encoded("no dad"), finish=FinishReason.LENGTH)) == "no dad"
    assert choice.finish_reason is FinishReason.LENGTH
    assert choice.completion_tokens == len(encoded("no dad"))


@pytest.mark.parametrize("finish", [FinishReason.CANCELLED, FinishReason.ERROR])
def test_finish_without_an_answer_is_passed_on(finish: FinishReason) -> None:
    choice = output("done")
    assert choice.push(chunk(*encoded("a do"))) == "a "
    assert choice.push(chunk(finish=finish)) == "do"
    assert choice.finish_reason is finish


def test_stop_string_split_across_tokens_ends_the_choice() -> None:
    choice = output("end")
    shown = [choice.push(chunk(token_id)) for token_id in encoded("abend")]
    assert "".join(shown) == "ab"
    assert choice.finish_reason is FinishReason.STOP


def test_tokens_after_a_stop_string_are_neither_shown_nor_counted() -> None:
    choice = output("end")
    whole = encoded("abend as past")
    assert choice.push(chunk(*whole)) == "ab"
    assert choice.completion_tokens == len(encoded("abend"))
    assert choice.push(chunk(*whole, finish=FinishReason.LENGTH)) == ""
    assert choice.finish_reason is FinishReason.STOP
    assert choice.completion_tokens == len(encoded("abend"))


def test_stop_string_in_the_last_chunk_wins_over_the_length_limit() -> None:
    choice = output("end")
    assert choice.push(chunk(*encoded("abend"), finish=FinishReason.LENGTH)) == "ab"
    assert choice.finish_reason is FinishReason.STOP


def test_text_that_is_watched_ends_with_the_piece_that_is_the_last() -> None:
    choice, seen = output("never"), list[str]()

    def ends_answer(text: str) -> bool:
        seen.append(text)
        return "".join(seen).endswith("dad")

    choice.watch(ends_answer)
    text = "no dad, no son"
    shown = choice.push(chunk(*encoded(text), finish=FinishReason.LENGTH))
    assert shown == "".join(seen) == "no dad"
    assert choice.finish_reason is FinishReason.STOP
    assert choice.completion_tokens == len(encoded("no dad"))


def test_stop_token_that_would_complete_a_stop_string_does_not() -> None:
    """The stop token has no text, so what was held back is text."""
    choice = output("end")
    assert choice.push(chunk(*encoded("aben"))) == "ab"
    assert choice.push(chunk(*encoded("xd")[-1:], finish=FinishReason.STOP)) == "en"


def test_character_cut_off_by_the_length_limit_is_dropped() -> None:
    choice = output()
    cut = encoded("a🚀")[:-1]
    assert choice.push(chunk(*cut, finish=FinishReason.LENGTH)) == "a"
    assert choice.completion_tokens == len(cut)


@settings(deadline=None, max_examples=60)
@given(
    token_ids=st.lists(st.integers(0, 290), max_size=30),
    sizes=st.lists(st.integers(1, 4), max_size=30),
    stop=st.lists(st.text("abcde \n", min_size=1, max_size=3), max_size=3),
    finish=st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]),
)
def test_text_finish_and_count_do_not_depend_on_the_chunks(
    token_ids: list[int], sizes: list[int], stop: list[str], finish: FinishReason
) -> None:
    token_ids.append(EOS)
    whole, parts = output(*stop), output(*stop)
    expected = whole.push(chunk(*token_ids, finish=finish))
    text, rest = "", token_ids
    for size in sizes:
        if len(rest) > size:
            text += parts.push(chunk(*rest[:size]))
            rest = rest[size:]
    text += parts.push(chunk(*rest, finish=finish))
    assert text == expected
    assert parts.finish_reason == whole.finish_reason
    assert parts.completion_tokens == whole.completion_tokens
