"""From a body to the sequences that the engine gets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deepinfer.engine import Capacity
from deepinfer.errors import ContextLengthExceeded, InvalidValue
from deepinfer.generation import SamplingParams
from deepinfer.runtime.client import EngineClient
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.names import EngineNames
from deepinfer.server.prepare import INLINE_CHARS, Plan, prepare_chat, prepare_completion
from deepinfer.server.schemas import CompletionBody
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from tests.server.serving import CONTEXT_LENGTH, make_echo_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ServedEngine:
    folder = make_echo_engine(tmp_path_factory.mktemp("prepare") / "echo")
    # Nothing here runs the engine, so its manifest is all that is needed of it.
    client = cast(EngineClient, SimpleNamespace(manifest=folder.manifest, capacity=None))
    text_side = folder.tokenizer_dir
    template = ChatTemplate.load(text_side)
    return ServedEngine(client, Tokenizer.load(text_side), template, EngineNames(("test/echo",)))


async def plan_of(engine: ServedEngine, **fields: Any) -> Plan:
    body = CompletionBody.model_validate({"prompt": "text", **fields})
    return await prepare_completion(engine, body, "id")


async def sampling_of(engine: ServedEngine, **fields: Any) -> SamplingParams:
    return (await plan_of(engine, **fields)).choices[0].request.sampling


async def test_every_sampling_parameter_arrives(engine: ServedEngine) -> None:
    sampling = await sampling_of(
        engine,
        max_tokens=7,
        min_tokens=3,
        temperature=0.25,
        top_p=0.5,
        top_k=40,
        min_p=0.125,
        frequency_penalty=-1.5,
        presence_penalty=1.5,
        repetition_penalty=1.25,
        seed=99,
        ignore_eos=True,
        stop_token_ids=[5, 6],
    )
    assert sampling == SamplingParams(
        max_tokens=7,
        min_tokens=3,
        temperature=0.25,
        top_p=0.5,
        top_k=40,
        min_p=0.125,
        frequency_penalty=-1.5,
        presence_penalty=1.5,
        repetition_penalty=1.25,
        seed=99,
        ignore_eos=True,
        stop_token_ids=(5, 6),
    )


@pytest.mark.parametrize("top_k", [-1, 0])
async def test_top_k_off_is_none(engine: ServedEngine, top_k: int) -> None:
    assert (await sampling_of(engine, top_k=top_k)).top_k is None


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-300])
async def test_temperature_near_zero_is_greedy(engine: ServedEngine, temperature: float) -> None:
    sampling = await sampling_of(engine, temperature=temperature)
    assert sampling.temperature == 0 and sampling.is_greedy


async def test_choices_are_dense_and_seeded_one_after_the_other(engine: ServedEngine) -> None:
    plan = await plan_of(engine, prompt=["a", "b"], n=3, seed=10)
    assert [choice.index for choice in plan.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.request.sampling.seed for choice in plan.choices] == [10, 11, 12] * 2
    assert len({choice.request.request_id for choice in plan.choices}) == 6
    assert plan.prompt_tokens == 2


async def test_seed_beyond_the_last_64_bit_number_wraps(engine: ServedEngine) -> None:
    plan = await plan_of(engine, n=2, seed=2**63 - 1)
    assert [choice.request.sampling.seed for choice in plan.choices] == [2**63 - 1, -(2**63)]


async def test_seed_is_random_when_none_is_given(engine: ServedEngine) -> None:
    # 20 draws of 63 bits: two are equal once in 5e16 runs.
    assert len({(await sampling_of(engine)).seed for _ in range(20)}) == 20


async def test_text_tokenised_in_a_thread_gives_the_same_tokens(engine: ServedEngine) -> None:
    text = "The capital of France 🎉 " * 200
    assert len(text) > INLINE_CHARS
    plan = await plan_of(engine, prompt=["short", text])
    expected = [engine.tokenizer.encode(t, add_special_tokens=True) for t in ("short", text)]
    assert [list(choice.request.prompt_token_ids) for choice in plan.choices] == expected


async def test_prompt_beyond_the_context_is_refused(engine: ServedEngine) -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        await plan_of(engine, prompt=[5] * 9120)
    assert refused.value.message == (
        "This model's maximum context length is 4096 tokens; the prompt is too long: it has 9,120, "
        "which may be at most 4,095"
    )


async def test_explicit_max_tokens_says_what_would_fit(engine: ServedEngine) -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        await plan_of(engine, prompt=[5] * 100, max_tokens=4000)
    assert refused.value.message == (
        "This model's maximum context length is 4096 tokens; the prompt has 100 and max_tokens is "
        "4,000, which may be at most 3,996"
    )
    assert (await sampling_of(engine, prompt=[5] * 100, max_tokens=3996)).max_tokens == 3996


@pytest.mark.parametrize(
    ("prompt_len", "expected"), [(1, 512), (3584, 512), (3585, 511), (4095, 1)]
)
async def test_default_max_tokens_is_cut_to_what_fits(
    engine: ServedEngine, prompt_len: int, expected: int
) -> None:
    assert (await sampling_of(engine, prompt=[5] * prompt_len)).max_tokens == expected


@pytest.mark.parametrize("prompt_len", [1, 3585, 4095])
async def test_max_tokens_of_minus_one_is_what_fits(engine: ServedEngine, prompt_len: int) -> None:
    sampling = await sampling_of(engine, prompt=[5] * prompt_len, max_tokens=-1)
    assert sampling.max_tokens == 4096 - prompt_len


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_chat_takes_minus_one_by_both_names(engine: ServedEngine, field: str) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}], field: -1}
    plan = await prepare_chat(engine, ChatBody.model_validate(fields), "id")
    request = plan.choices[0].request
    assert request.sampling.max_tokens == 4096 - len(request.prompt_token_ids)


@pytest.mark.parametrize(
    ("setting", "expected"), [(None, 512), (0, 4086), (7, 7), (1000, 1000), (5000, 4086)]
)
async def test_operator_sets_the_default_of_max_tokens(
    engine: ServedEngine, setting: int | None, expected: int
) -> None:
    engine = replace(engine, default_max_tokens=setting)
    assert (await sampling_of(engine, prompt=[5] * 10)).max_tokens == expected
    assert (await sampling_of(engine, prompt=[5] * 10, max_tokens=20)).max_tokens == 20


@pytest.mark.parametrize(("setting", "most"), [(None, 4096), (0, 4096), (7, 7)])
async def test_route_without_a_promised_default_has_what_fits(
    engine: ServedEngine, setting: int | None, most: int
) -> None:
    engine = replace(engine, default_max_tokens=setting)
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    plan = await prepare_chat(engine, body, "id", default_max_tokens=None)
    request = plan.choices[0].request
    assert request.sampling.max_tokens == min(most, 4096 - len(request.prompt_token_ids))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 1000, "n": 2}, 2000),
        ({}, 512),
        ({"max_tokens": -1, "n": 2, "prompt": ["a", "b"]}, 4 * 512),
        ({"max_tokens": 0, "echo": True}, 0),
    ],
)
async def test_limit_of_a_key_holds_little_for_an_answer_without_a_limit(
    engine: ServedEngine, fields: dict[str, Any], expected: int
) -> None:
    assert (await plan_of(engine, **fields)).reserved_tokens == expected


async def test_kv_cache_smaller_than_the_context_is_what_fits(engine: ServedEngine) -> None:
    capacity = Capacity(1, num_blocks=4, tokens_per_block=32, guesses_per_sequence=3)
    client = SimpleNamespace(manifest=engine.manifest, capacity=capacity)
    small = replace(engine, client=cast(EngineClient, client))
    assert (await sampling_of(small, prompt=[5] * 10)).max_tokens == 4 * 32 - 3 - 10
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 125 tokens"):
        await plan_of(small, prompt=[5] * 125)


async def test_huge_fan_out_of_a_long_prompt_is_refused(engine: ServedEngine) -> None:
    prompts = [[5] * (CONTEXT_LENGTH - 1)] * 1000
    with pytest.raises(InvalidValue) as refused:
        await plan_of(engine, prompt=prompts, n=1, max_tokens=1)
    assert refused.value.param == "n" and "4,000,000" in refused.value.message


async def test_chat_prompt_is_the_rendered_template(engine: ServedEngine) -> None:
    body = ChatBody.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    plan = await prepare_chat(engine, body, "id")
    rendered = "<s>user: hi\n<s>assistant:"
    expected = engine.tokenizer.encode(rendered, add_special_tokens=False)
    assert plan.choices[0].request.prompt_token_ids == tuple(expected)
    assert engine.tokenizer.bos_token_id in expected
