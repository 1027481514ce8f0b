"""Cumulative outputs of TensorRT-LLM become chunks of new tokens, each token exactly once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.backends.tensorrt_stream import TokenStream, merge_chunks
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenChunk,
    TokenLogProbs,
)

EOS = 1


def make_stream(
    watched_ids: tuple[int, ...] = (), end_id: int | None = EOS, **sampling: Any
) -> TokenStream:
    request = GenerationRequest(
        request_id="a",
        prompt_token_ids=(5, 6),
        sampling=SamplingParams(**{"max_tokens": 100} | sampling),
    )
    return TokenStream(request, end_id, frozenset(watched_ids))


@given(st.lists(st.integers(2, 9), min_size=1, max_size=30), st.data())
def test_each_token_leaves_once_whenever_the_output_is_looked_at(
    token_ids: list[int], data: st.DataObject
) -> None:
    looks = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=10)))
    stream = make_stream()
    chunks = [stream.advance(token_ids[:length]) for length in looks]
    chunks.append(stream.advance(token_ids, "length"))
    emitted = [token_id for chunk in chunks if chunk for token_id in chunk.token_ids]
    assert emitted == token_ids
    reasons = [chunk.finish_reason for chunk in chunks if chunk]
    assert reasons == [None] * (len(reasons) - 1) + [FinishReason.LENGTH]


def test_output_without_news_is_no_chunk() -> None:
    stream = make_stream()
    assert stream.advance([]) is None
    assert stream.advance([7]) is not None
    assert stream.advance([7]) is None
    assert not stream.is_ended


STOPS = {
    "EOS kept by the library": ([7, 8], None, (7, 8, EOS)),
    "EOS among the tokens": ([7, 8, EOS], None, (7, 8, EOS)),
    "stop token among the tokens": ([7, 9], 9, (7, 9)),
    "stop token kept by the library": ([7], 9, (7, 9)),
    "EOS alone": ([], None, (EOS,)),
}


@pytest.mark.parametrize("final, stop_reason, expected", STOPS.values(), ids=STOPS)
def test_stop_ends_with_the_token_that_ended_it(
    final: list[int], stop_reason: int | None, expected: tuple[int, ...]
) -> None:
    chunk = make_stream().advance(final, "stop", stop_reason)
    assert chunk == TokenChunk("a", expected, FinishReason.STOP)


def test_stop_token_that_left_already_is_not_sent_again() -> None:
    stream = make_stream()
    assert stream.advance([7, EOS]) == TokenChunk("a", (7, EOS))
    assert stream.advance([7, EOS], "stop") == TokenChunk("a", (), FinishReason.STOP)


def test_watched_token_ends_the_sequence_before_the_library_does() -> None:
    stream = make_stream(watched_ids=(9,), min_tokens=2)
    assert stream.advance([9]) == TokenChunk("a", (9,))
    assert stream.advance([9, 9]) == TokenChunk("a", (9,))
    chunk = stream.advance([9, 9, 9, 4])
    assert chunk == TokenChunk("a", (9,), FinishReason.STOP)
    assert stream.is_ended


def test_watched_token_counts_in_a_late_look_at_the_final_output() -> None:
    chunk = make_stream(watched_ids=(9,), min_tokens=1).advance([9, 4, 9, 5], "length")
    assert chunk == TokenChunk("a", (9, 4, 9), FinishReason.STOP)


def test_log_probabilities_leave_with_their_tokens() -> None:
    stream = make_stream(num_log_probs=0)
    first = stream.advance([7], None, None, [-0.5])
    assert first == TokenChunk("a", (7,), log_probs=(TokenLogProbs(-0.5),))
    last = stream.advance([7, 8], "stop", None, [-0.5, -0.25])
    scores = (TokenLogProbs(-0.25),)
    assert last == TokenChunk("a", (8, EOS), FinishReason.STOP, log_probs=scores)


def test_alternatives_are_the_likeliest_and_the_chosen_token_is_scored_though_it_is_none() -> None:
    entry = {7: SimpleNamespace(logprob=-3.0), 5: SimpleNamespace(logprob=-0.5)}
    entry[6] = SimpleNamespace(logprob=-0.9)
    chunk = make_stream(num_log_probs=2).advance([7], None, None, [entry])
    assert chunk is not None
    assert chunk.log_probs == (TokenLogProbs(-3.0, ((5, -0.5), (6, -0.9))),)


@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_end_that_nobody_asked_for_is_an_error(reason: str) -> None:
    chunk = make_stream().advance([7], reason)
    assert chunk is not None
    assert chunk.finish_reason is FinishReason.ERROR
    assert chunk.message is not None and reason in chunk.message


def test_chunks_of_one_request_are_merged_and_others_keep_their_order() -> None:
    chunks = [
        TokenChunk("a", (1,)),
        TokenChunk("b", (2,)),
        TokenChunk("a", (3, 4), FinishReason.LENGTH),
    ]
    assert merge_chunks(chunks) == [
        TokenChunk("a", (1, 3, 4), FinishReason.LENGTH),
        TokenChunk("b", (2,)),
    ]
