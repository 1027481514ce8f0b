"""The promises of `deepinfer/backends/base.py`, asked of every backend alike."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.engine import EngineOptions
from deepinfer.errors import DeepInferError, UnsupportedParameter
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenChunk,
)
from deepinfer.manifest import EngineFolder
from deepinfer.runtime.queue import AdmissionQueue
from tests.building import BuildEngine
from tests.contract.double.guided import REFUSED_MARK
from tests.contract.installing import installed_double, make_double_root
from tests.engines import make_simulated_engine

MAX_SEQ_LEN = 256
NUM_BLOCKS = 12  # of 32 tokens: too few for full batches, so that admission has to wait
PROMPT_IDS = range(10, 200)


# What the recorded interface of TensorRT-LLM leaves open, decided the other way.
OTHER_WAY = {
    "end_id_stays_in_token_ids": True,
    "min_tokens_holds_back_stop_ids": True,
    "idle_executor_writes_statistics": True,
    "unseeded_requests_repeat": False,
    "grammar_errors_end_the_batch": False,
}
LIBRARIES: dict[str, tuple[str, dict[str, bool]]] = {
    "openvino": ("openvino", {}),
    "simulated": ("simulated", {}),
    "tensorrt-llm as recorded": ("tensorrt-llm", {}),
    "tensorrt-llm the other way": ("tensorrt-llm", OTHER_WAY),
}


@pytest.fixture(scope="module", params=LIBRARIES.values(), ids=LIBRARIES)
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The backend's name, while its library can be imported: TensorRT-LLM as a double."""
    name, assumptions = request.param
    if name != "tensorrt-llm":
        yield name
        return
    root = make_double_root(tmp_path_factory.mktemp("double"))
    with installed_double(root, assumptions=assumptions):
        yield name


@pytest.fixture(scope="module")
def engine(
    library: str, tmp_path_factory: pytest.TempPathFactory, build_engine: BuildEngine
) -> EngineFolder:
    if library == "simulated":
        settings: dict[str, str | int | bool] = {"num_blocks": NUM_BLOCKS}
        folder: Path = tmp_path_factory.mktemp("simulated")
        return make_simulated_engine(folder, settings=settings, max_seq_len=MAX_SEQ_LEN)
    limits = ("--max-seq-len", str(MAX_SEQ_LEN), "--max-batch-size", "8")
    if library == "tensorrt-llm":
        return build_engine("llama", "fp8", *limits, "--target", "rtx5090").engine
    return build_engine("llama", "fp32", *limits).engine


@pytest.fixture(scope="module")
def backend(engine: EngineFolder) -> Iterator[Backend]:
    cache_bytes = engine.manifest.kv_bytes_per_token * 32 * NUM_BLOCKS
    loaded = load_backend(engine, EngineOptions(kv_cache_bytes=cache_bytes), lambda *_: None)
    yield loaded
    loaded.close()


def make_request(
    name: str, prompt: Iterable[int] = (10, 11, 12), max_tokens: int = 8, **sampling: object
) -> GenerationRequest:
    values = {"temperature": 0.0, "ignore_eos": True} | sampling
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, **values),  # type: ignore[arg-type]
    )


def random_request(name: str, rng: random.Random) -> GenerationRequest:
    """Half of them fill their blocks to the last token, where counting goes wrong first."""
    total = rng.choice([32, 64, 128]) if rng.random() < 0.5 else rng.randint(2, 160)
    prompt_len = rng.randint(1, total - 1)
    return make_request(
        name,
        rng.choices(PROMPT_IDS, k=prompt_len),
        total - prompt_len,
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randrange(2**63),
    )


def run(backend: Backend, requests: Iterable[GenerationRequest]) -> dict[str, list[TokenChunk]]:
    """Admit as the host does, and return each request's chunks in the order of their arrival."""
    queue = AdmissionQueue(backend.capacity, max_waiting=1000, max_waiting_tokens=10**6)
    requests = list(requests)
    queue.put(requests)
    chunks: dict[str, list[TokenChunk]] = {request.request_id: [] for request in requests}
    while queue.num_waiting or queue.num_admitted:
        for request in queue.admit():
            backend.add(request)
        for chunk in backend.step():
            chunks[chunk.request_id].append(chunk)
            if chunk.finish_reason is not None:
                queue.release(chunk.request_id)
    return chunks


def tokens(chunks: Iterable[TokenChunk]) -> tuple[int, ...]:
    return tuple(token_id for chunk in chunks for token_id in chunk.token_ids)


def test_exactly_the_last_chunk_has_a_finish_reason(backend: Backend) -> None:
    chunks = run(backend, [make_request("a", max_tokens=20)])["a"]
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert len(tokens(chunks)) == 20


def test_stop_ends_with_the_stop_token(backend: Backend) -> None:
    free = tokens(run(backend, [make_request("a", max_tokens=8)])["a"])
    stop = free[3]
    chunks = run(backend, [make_request("b", max_tokens=8, stop_token_ids=(stop,))])["b"]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert tokens(chunks) == free[: free.index(stop) + 1]


def test_eos_ends_unless_ignored(backend: Backend, engine: EngineFolder) -> None:
    eos = engine.manifest.tokens.eos_token_ids[0]
    for prompt_id in PROMPT_IDS:
        prompt = (prompt_id, eos, prompt_id)
        ended = run(backend, [make_request("a", prompt, 64, ignore_eos=False)])["a"]
        if eos in tokens(ended):
            break
    else:
        pytest.skip("no prompt of this random model leads to an EOS")
    assert ended[-1].finish_reason is FinishReason.STOP
    assert tokens(ended)[-1] == eos and eos not in tokens(ended)[:-1]
    ignored = tokens(run(backend, [make_request("b", prompt, 64)])["b"])
    assert len(ignored) == 64 and ignored[: len(tokens(ended))] == tokens(ended)


def test_batch_at_full_capacity_gives_each_request_its_own_tokens(backend: Backend) -> None:
    rng = random.Random(7)
    requests = [random_request(str(i), rng) for i in range(40)]
    together = run(backend, requests)
    for request in requests:
        chunks = together[request.request_id]
        assert chunks[-1].finish_reason is FinishReason.LENGTH, chunks[-1].message
        assert len(tokens(chunks)) == request.sampling.max_tokens
    for request in requests[:10]:
        alone = run(backend, [request])[request.request_id]
        assert tokens(alone) == tokens(together[request.request_id])


def test_seed_repeats_and_another_seed_differs(engine: EngineFolder, backend: Backend) -> None:
    if engine.manifest.backend.name == "simulated":
        pytest.skip("a script is not sampled")
    seeds = [1, 1, 2, 2**40 + 1]
    requests = [
        make_request(str(i), max_tokens=24, temperature=1.0, seed=seed)
        for i, seed in enumerate(seeds)
    ]
    answers = [tokens(chunks) for chunks in run(backend, requests).values()]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


def test_prompt_with_the_emitted_tokens_goes_on_where_it_was(backend: Backend) -> None:
    prompt = (20, 21, 22, 23)
    whole = tokens(run(backend, [make_request("a", prompt, 24)])["a"])
    rest = tokens(run(backend, [make_request("b", prompt + whole[:10], 14)])["b"])
    if len(set(whole)) > len(prompt):  # a script that repeats its prompt would start anew
        assert rest == whole[10:]


def test_cancel_frees_the_cache_by_the_next_step(backend: Backend) -> None:
    rng = random.Random(3)
    for i in range(30):
        prompt = rng.choices(PROMPT_IDS, k=rng.randint(1, 100))
        backend.add(make_request(f"cancelled-{i}", prompt, 60))
        for _ in range(rng.randint(0, 4)):
            backend.step()
        backend.cancel(f"cancelled-{i}")
        assert backend.step() == []
        assert backend.num_used_blocks == 0
    backend.add(make_request("after", max_tokens=4))
    backend.step()
    assert backend.num_used_blocks == 1
    backend.cancel("after")
    backend.step()


def test_cancel_of_an_unknown_request_is_no_error(backend: Backend) -> None:
    backend.cancel("nobody")
    assert tokens(run(backend, [make_request("a")])["a"])


def test_request_that_cannot_be_added_harms_no_other(
    engine: EngineFolder, backend: Backend
) -> None:
    alone = tokens(run(backend, [make_request("a", max_tokens=30)])["a"])
    backend.add(make_request("b", max_tokens=30))
    first = backend.step()
    if engine.manifest.backend.name != "simulated":
        with pytest.raises(DeepInferError):
            backend.add(make_request("bad", max_tokens=2, min_tokens=3))
    rest: list[TokenChunk] = []
    while not rest or rest[-1].finish_reason is None:
        rest += backend.step()
    assert tokens(first + rest) == alone


def test_min_tokens_holds_back_the_end(backend: Backend) -> None:
    free = tokens(run(backend, [make_request("a", max_tokens=8)])["a"])
    held = make_request("b", max_tokens=12, min_tokens=8, stop_token_ids=(free[0],))
    assert len(tokens(run(backend, [held])["b"])) >= 8


def test_parameters_without_a_counterpart_are_refused_by_name(
    engine: EngineFolder, backend: Backend
) -> None:
    refused = {
        "openvino": {"logit_bias"},
        "tensorrt-llm": {"logprobs", "echo"},
        "simulated": set(),
    }[engine.manifest.backend.name]
    asked = {
        "logit_bias": {"logit_bias": {20: 1.0}},
        "logprobs": {"num_log_probs": 2},
        "echo": {"num_log_probs": 0, "with_prompt_log_probs": True},
        "response_format": {"grammar": Grammar("json")},
    }
    for param, sampling in asked.items():
        request = make_request("a", **sampling)
        if param not in refused:
            backend.check(request)
            continue
        with pytest.raises(UnsupportedParameter) as caught:
            backend.check(request)
        assert caught.value.param == param


def test_grammar_that_does_not_compile_names_its_field(
    engine: EngineFolder, backend: Backend
) -> None:
    if engine.manifest.backend.name == "simulated":
        return  # its tokens are made up, whatever the grammar
    grammar = Grammar("ebnf", f'root ::= "a" b  {REFUSED_MARK}', param="guided_grammar")
    (*_, last) = run(backend, [make_request("a", grammar=grammar)])["a"]
    assert last.finish_reason is FinishReason.ERROR and last.refused_param == "guided_grammar"
    assert last.message is not None and "not defined" in last.message and "/" not in last.message
    assert tokens(run(backend, [make_request("b")])["b"])


def test_log_probability_comes_with_each_token(engine: EngineFolder, backend: Backend) -> None:
    answers = run(backend, [make_request("a", num_log_probs=0), make_request("b")])
    scores = [score for chunk in answers["a"] for score in chunk.log_probs]
    assert len(scores) == len(tokens(answers["a"])) == 8
    assert all(score.log_prob <= 0 and score.top == () for score in scores)
    assert [chunk.log_probs for chunk in answers["b"]] == [()] * len(answers["b"])


def test_idle_backend_costs_no_cpu(backend: Backend) -> None:
    run(backend, [make_request("a")])
    before = time.process_time()
    time.sleep(0.5)  # the time that the claim is about, not a synchronisation
    assert time.process_time() - before < 0.1
