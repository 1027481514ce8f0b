"""Requests to the double: what is checked of them, and what comes back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.double.record import message
from tests.contract.loading import END_ID, LIMITS, PROMPT, Loader, ids, loader_on, params

# SamplingParams


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"top_k": -1}, "require top_k >= 0, got top_k=-1"),
        ({"top_p": 1.5}, "require 0 <= top_p <= 1, got top_p=1.5"),
        ({"temperature": -0.1}, "require temperature >= 0"),
        ({"n": 2, "best_of": 1, "temperature": 1.0}, "cannot be less than n"),
        ({"n": 2}, "Greedy decoding in the LLM API does not allow multiple returns"),
        ({"truncate_prompt_tokens": 0}, "require truncate_prompt_tokens >= 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_sampling_is_refused(double: Path, values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        params(**values)


def test_greedy_sequences_are_allowed_by_the_environment(
    double: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_ALLOW_N_GREEDY_DECODING", "1")
    assert params(n=2).best_of == 2


def test_only_one_guide_is_allowed(double: Path) -> None:
    from tensorrt_llm.llmapi import GuidedDecodingParams

    with pytest.raises(ValueError, match="Only one guide can be used for a request, but got 2"):
        params(guided_decoding=GuidedDecodingParams(json_object=True, regex="a"))


def test_sampling_has_slots_keywords_and_a_padding_like_its_end(double: Path) -> None:
    from tensorrt_llm.llmapi import SamplingParams

    sampling = params()
    assert sampling.pad_id == END_ID
    with pytest.raises(AttributeError):
        sampling.logit_bias = {}
    with pytest.raises(TypeError):
        SamplingParams(1)
    with pytest.raises(TypeError):
        SamplingParams(logit_bias={})


# What is checked of a request


@pytest.mark.parametrize(
    ("inputs", "sampling", "error", "text"),
    [
        ((1, 2), {}, TypeError, "The inputs must be type str or list of int, but got"),
        (PROMPT, {"seed": -1}, TypeError, "random_seed"),
        (PROMPT, {"stop": ["x"]}, RuntimeError, "SamplingParams.stop .* is not processed by tok"),
        (PROMPT, {"bad": ["x"]}, RuntimeError, "SamplingParams.bad .* is not processed by tok"),
        (PROMPT, {"max_tokens": 254}, ValueError, r"prompt length \(3.0\).*max_seq_len \(256\)"),
        (PROMPT, {"logprobs": 1}, ValueError, "requires `gather_generation_logits=True` to be"),
        (PROMPT, {"prompt_logprobs": 1}, ValueError, "requires `gather_context_logits=True` in"),
        (PROMPT, {"n": 5, "top_p": 0.9}, ValueError, r"\(5\) cannot exceed max_batch_size \(4\)"),
        (PROMPT, {"n": 2, "use_beam_search": True}, ValueError, "cannot exceed max_beam_width"),
    ],
    ids=["inputs", "seed", "stop", "bad", "length", "logprobs", "prompt logprobs", "n", "beams"],
)
def test_request_is_refused_when_it_is_made(
    llm: Any, inputs: Any, sampling: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        llm.generate_async(inputs, params(**sampling))


def test_sampling_of_another_type_is_refused(llm: Any) -> None:
    with pytest.raises(TypeError, match="The sampling_params must be type SamplingParams or None"):
        llm.generate_async(PROMPT, {"max_tokens": 1})


def test_missing_end_needs_a_tokenizer(load: Loader, engine_dir: Path) -> None:
    bare = load(engine_dir, skip_tokenizer_init=True, **LIMITS)
    with pytest.raises(ValueError, match="tokenizer is required to reset end_id if it is None"):
        bare.generate_async(PROMPT, params(end_id=None))
    with pytest.raises(ValueError, match="tokenizer is required"):
        bare.generate_async("text", params())


def test_end_of_the_tokenizer_is_taken_and_stops_are_tokenised(llm: Any) -> None:
    sampling = params(end_id=None, stop=["the"])
    llm.generate(PROMPT, sampling)
    assert sampling.end_id == llm.tokenizer.eos_token_id
    assert sampling._stop_word_ids == [llm.tokenizer.encode_plain("the")]


@pytest.mark.parametrize(
    ("prompt", "sampling", "text"),
    [
        ([], {}, "Input token list is empty"),
        ([9999999], {}, "below the vocabulary size"),
        (PROMPT, {"embedding_bias": [0.0] * 7}, "embeddingBias has 7 elements"),
    ],
    ids=["empty", "vocabulary", "bias"],
)
def test_request_is_refused_by_the_executor(
    llm: Any, prompt: list[int], sampling: dict[str, Any], text: str
) -> None:
    from tensorrt_llm.executor.utils import RequestError

    result = llm.generate_async(prompt, params(**sampling))
    with pytest.raises(RequestError, match=text):
        result.result()
    assert ids(llm, max_tokens=2)


def test_chunked_prefill_leaves_the_length_to_the_executor(load: Loader, engine_dir: Path) -> None:
    chunked = load(engine_dir, enable_chunked_prefill=True, **LIMITS)
    assert len(ids(chunked, max_tokens=1000)) == 256 - len(PROMPT)
    with pytest.raises(RuntimeError, match="Prompt length .* exceeds maximum input length"):
        ids(chunked, [5] * 256)


def test_limit_above_the_engine_fails_every_request(load: Loader, engine_dir: Path) -> None:
    loaded = load(engine_dir)
    with pytest.raises(RuntimeError, match="max_num_tokens 8192 .* engine was built with 512"):
        ids(loaded)


def test_no_limit_on_tokens_fills_the_sequence(llm: Any) -> None:
    assert len(ids(llm, max_tokens=None)) == 256 - len(PROMPT)


# What comes back


async def test_outputs_are_cumulative_and_one_object(llm: Any) -> None:
    result = llm.generate_async(PROMPT, params(max_tokens=5), streaming=True)
    seen, lengths, diffs = [], [], []
    async for step in result:
        seen.append(step)
        lengths.append(step.outputs[0].length)
        diffs += step.outputs[0].token_ids_diff
    assert all(step is result for step in seen)
    assert lengths == [1, 2, 3, 4, 5] and diffs == result.outputs[0].token_ids
    assert result.finished and result.outputs[0].finish_reason == "length"
    assert await result is result


async def test_without_streaming_there_is_one_step(llm: Any) -> None:
    result = llm.generate_async(PROMPT, params(max_tokens=5))
    assert [step.outputs[0].length async for step in result] == [5]


def test_reading_needs_the_loop_in_which_the_request_was_made(llm: Any) -> None:
    result = llm.generate_async(PROMPT, params())
    with pytest.raises(AssertionError, match="The asyncio event loop was not present"):
        asyncio.run(result.aresult())
    assert result.result().finished


def test_reading_without_a_loop_iterates(llm: Any) -> None:
    result = llm.generate_async(PROMPT, params(max_tokens=3), streaming=True)
    assert [step.outputs[0].length for step in result] == [1, 2, 3]


def test_results_are_made_by_the_library_only(double: Path) -> None:
    from tensorrt_llm.llmapi import RequestOutput

    with pytest.raises(RuntimeError, match=message("result_not_constructible")):
        RequestOutput()


def test_end_id_is_not_among_the_tokens_unless_assumed(double_root: Path, engine_dir: Path) -> None:
    kept = {}
    for stays in (False, True):
        with loader_on(double_root, assumptions={"end_id_stays_in_token_ids": stays}) as load:
            llm = load(engine_dir, **LIMITS)
            free = ids(llm, max_tokens=8)
            output = llm.generate(PROMPT, params(end_id=free[3], ignore_eos=False)).outputs[0]
            kept[stays] = output.token_ids
            assert output.finish_reason == "stop" and output.stop_reason is None
    end = free.index(free[3])
    assert kept == {False: free[:end], True: free[: end + 1]}


def test_stop_token_is_removed_unless_it_is_asked_for(llm: Any) -> None:
    free = ids(llm, max_tokens=8)
    stop = {"stop_token_ids": [free[3]], "max_tokens": 8}
    output = llm.generate(PROMPT, params(**stop)).outputs[0]
    assert output.token_ids == free[: free.index(free[3])]
    assert (output.finish_reason, output.stop_reason) == ("stop", free[3])
    assert ids(llm, include_stop_str_in_output=True, **stop)[-1] == free[3]


def test_stop_string_cuts_the_text_and_ends_the_request(llm: Any) -> None:
    whole = llm.generate(PROMPT, params(detokenize=True, max_tokens=20)).outputs[0].text
    stop = whole[8:11]
    sampling = params(end_id=None, detokenize=True, max_tokens=20, stop=[stop])
    output = llm.generate(PROMPT, sampling).outputs[0]
    assert output.text == whole[: whole.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_minimum_holds_back_the_end_and_stop_tokens_only_if_assumed(
    double_root: Path, engine_dir: Path
) -> None:
    for held in (False, True):
        assumed = {"min_tokens_holds_back_stop_ids": held}
        with loader_on(double_root, assumptions=assumed) as load:
            llm = load(engine_dir, **LIMITS)
            free = ids(llm, max_tokens=1)
            least = {"min_tokens": 8, "max_tokens": 12}
            assert len(ids(llm, end_id=free[0], ignore_eos=False, **least)) >= 8
            stopped = ids(llm, stop_token_ids=free, include_stop_str_in_output=True, **least)
            assert (len(stopped) >= 8) == held


def test_bias_forces_and_bans(llm: Any) -> None:
    vocab_size = llm._executor.engine.vocab_size
    forced, banned = [0.0] * vocab_size, [0.0] * vocab_size
    forced[77] = 100.0
    assert ids(llm, embedding_bias=forced, max_tokens=3) == [77] * 3
    first = ids(llm, max_tokens=1)[0]
    banned[first] = -100.0
    assert ids(llm, embedding_bias=banned, max_tokens=1) != [first]
    assert ids(llm, bad_token_ids=[first], max_tokens=1) != [first]


def test_chosen_log_probabilities_are_plain_numbers(llm: Any) -> None:
    output = llm.generate(PROMPT, params(max_tokens=4, _return_log_probs=True)).outputs[0]
    assert len(output.logprobs) == 4
    assert all(isinstance(value, float) and value < 0 for value in output.logprobs)
    assert output.cumulative_logprob == pytest.approx(sum(output.logprobs))
    assert llm.generate(PROMPT, params(max_tokens=4)).outputs[0].logprobs == []


def test_top_log_probabilities_are_ranked(load: Loader, engine_dir: Path) -> None:
    llm = load(engine_dir, gather_generation_logits=True, **LIMITS)
    output = llm.generate(PROMPT, params(max_tokens=2, logprobs=3)).outputs[0]
    assert [sorted(item.rank for item in top.values()) for top in output.logprobs] == [
        [1, 2, 3]
    ] * 2
    assert all(token in top for token, top in zip(output.token_ids, output.logprobs, strict=True))


def test_seed_repeats_another_differs_and_none_is_a_seed_too(llm: Any) -> None:
    answers = [
        tuple(ids(llm, temperature=1.0, seed=seed, max_tokens=12))
        for seed in (1, 1, 2, 2**64 - 1, None, None)
    ]
    assert answers[0] == answers[1] and answers[4] == answers[5]
    assert len(set(answers)) == 4


def test_greedy_does_not_look_at_the_seed(llm: Any) -> None:
    assert ids(llm, seed=1, top_k=1) == ids(llm, seed=2, temperature=0.0) == ids(llm)


def test_prompt_with_its_answer_goes_on(llm: Any) -> None:
    whole = ids(llm, max_tokens=10)
    assert ids(llm, PROMPT + whole[:4], max_tokens=6) == whole[4:]


async def test_steps_of_several_sequences_interleave(llm: Any) -> None:
    sampling = params(n=2, temperature=1.0, seed=3, max_tokens=4)
    result = llm.generate_async(PROMPT, sampling, streaming=True)
    lengths = [tuple(output.length for output in step.outputs) async for step in result]
    assert len(lengths) == 8 and (1, 0) in lengths and lengths[-1] == (4, 4)
    assert result.outputs[0].token_ids != result.outputs[1].token_ids


def test_batch_is_a_list_and_one_prompt_is_not(llm: Any) -> None:
    results = llm.generate([PROMPT, {"prompt_token_ids": [5]}], params(max_tokens=2))
    assert [result.prompt_token_ids for result in results] == [PROMPT, [5]]
    assert llm.generate("text", params(max_tokens=2)).prompt == "text"


# Guided decoding


def test_guided_decoding_is_refused_unless_it_was_switched_on(llm: Any) -> None:
    from tensorrt_llm.llmapi import GuidedDecodingParams

    guide = GuidedDecodingParams(json_object=True)
    with pytest.raises(RuntimeError, match="no guided decoding backend is configured"):
        ids(llm, guided_decoding=guide)


def test_guided_decoding_gives_json(load: Loader, engine_dir: Path) -> None:
    from tensorrt_llm.llmapi import GuidedDecodingParams

    llm = load(engine_dir, guided_decoding_backend="xgrammar", **LIMITS)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    guide = GuidedDecodingParams(json=json.dumps(schema))
    output = llm.generate(PROMPT, params(guided_decoding=guide, ignore_eos=False)).outputs[0]
    assert json.loads(llm.tokenizer.decode(output.token_ids)) == {"n": 0}
    assert output.finish_reason == "stop"
    with pytest.raises(RuntimeError, match="Invalid guided decoding parameters"):
        ids(llm, guided_decoding=GuidedDecodingParams(json="{"))
