"""How one request goes on in another life of the engine: what is submitted, what is new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.generation import FinishReason, Grammar, TokenChunk
from deepinfer.runtime.handle import GenerationHandle
from deepinfer.runtime.resume import Diverged, ResumableRequest
from tests.runtime.running import request

PROMPT = (5, 6, 7)
ANSWER = (11, 12, 13, 14, 15, 16)


def resumable(**sampling: object) -> ResumableRequest:
    asked = request("a", PROMPT, len(ANSWER), seed=2**63 - 2, **sampling)
    made = ResumableRequest(asked, GenerationHandle(), max_input_len=100)
    made.is_admitted = True
    return made


def emit(
    flying: ResumableRequest, *token_ids: int, reason: FinishReason | None = None
) -> tuple[int, ...]:
    new = flying.accept(TokenChunk(flying.wire_id, token_ids, reason))
    return () if new is None else new.token_ids


def test_continued_request_asks_for_the_rest() -> None:
    flying = resumable(min_tokens=3)
    emit(flying, *ANSWER[:2])
    flying.interrupt(0, was_alone=True)
    again = flying.resume()
    assert again.request_id == "a~1"
    assert again.prompt_token_ids == PROMPT + ANSWER[:2]
    assert again.sampling.max_tokens == len(ANSWER) - 2
    assert again.sampling.min_tokens == 1
    assert again.sampling.seed == -(2**63)  # the next one after the largest, wrapped


def test_waiting_request_is_submitted_as_it_was() -> None:
    flying = resumable()
    flying.is_admitted = False
    flying.interrupt(0, was_alone=True)
    assert flying.resume().sampling == flying.request.sampling
    assert (flying.num_interruptions, flying.blames) == (0, set())


@pytest.mark.parametrize(
    "sampling",
    [{"grammar": Grammar("regex", "a")}, {"frequency_penalty": 1.0}, {"presence_penalty": -1.0}],
    ids=["grammar", "frequency", "presence"],
)
def test_what_the_sampler_must_see_again_is_replayed(sampling: dict[str, object]) -> None:
    flying = resumable(**sampling)
    emit(flying, *ANSWER[:3])
    flying.interrupt(0, was_alone=True)
    assert flying.resume().prompt_token_ids == PROMPT
    assert emit(flying, *ANSWER[:2]) == ()
    assert emit(flying, *ANSWER[2:5]) == ANSWER[3:5]
    assert emit(flying, ANSWER[5], reason=FinishReason.LENGTH) == ANSWER[5:]


def test_prompt_that_would_outgrow_what_the_engine_reads_is_replayed() -> None:
    flying = resumable()
    flying.max_input_len = 4
    emit(flying, *ANSWER[:2])
    flying.interrupt(0, was_alone=True)
    assert flying.resume().prompt_token_ids == PROMPT


def test_replay_that_diverges_goes_on_from_the_tokens_so_far() -> None:
    flying = resumable(frequency_penalty=1.0)
    emit(flying, *ANSWER[:2])
    flying.interrupt(0, was_alone=True)
    flying.resume()
    with pytest.raises(Diverged):
        emit(flying, ANSWER[0], 99)
    assert flying.can_continue
    assert flying.resume().prompt_token_ids == PROMPT + ANSWER[:2]


def test_grammar_that_diverges_cannot_go_on() -> None:
    flying = resumable(grammar=Grammar("regex", "a"))
    emit(flying, *ANSWER[:2])
    flying.interrupt(0, was_alone=True)
    flying.resume()
    with pytest.raises(Diverged):
        emit(flying, 99)
    assert not flying.can_continue


def test_only_a_life_without_a_new_token_is_blamed() -> None:
    flying = resumable(grammar=Grammar("regex", "a"))
    emit(flying, ANSWER[0])
    flying.interrupt(0, was_alone=True)
    assert not flying.is_suspect
    flying.resume()
    flying.is_admitted = True
    emit(flying, ANSWER[0])  # what was known already
    flying.interrupt(1, was_alone=True)
    assert (flying.num_interruptions, flying.blames) == (2, {1})
    assert flying.is_suspect


@given(st.lists(st.integers(0, 6), max_size=5), st.booleans(), st.integers(1, 3))
def test_whatever_the_deaths_each_token_comes_once(
    deaths: list[int], is_replayed: bool, width: int
) -> None:
    """`deaths` are the numbers of tokens that each life of the engine gives before it ends."""
    flying = resumable(presence_penalty=1.0) if is_replayed else resumable()
    asked = flying.request
    seen: tuple[int, ...] = ()
    for num_tokens in [*deaths, len(ANSWER)]:
        flying.is_admitted = True
        start = len(asked.prompt_token_ids) - len(PROMPT)
        rest = ANSWER[start : start + num_tokens]
        for i in range(0, len(rest), width):
            seen += emit(flying, *rest[i : i + width])
        if seen == ANSWER:
            return
        flying.interrupt(0, was_alone=True)
        asked = flying.resume()
    raise AssertionError(f"only {seen} came")
