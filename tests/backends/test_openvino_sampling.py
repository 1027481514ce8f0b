"""That the CPU backend's library applies each sampling parameter, and as others define it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.engine import EngineOptions
from tests.backends.test_promises import make_request, run, tokens
from tests.building import BuildEngine, BuiltEngine

PROMPT = (20, 21, 22, 23, 24)
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def built(build_engine: BuildEngine) -> BuiltEngine:
    return build_engine("llama", "fp32")


@pytest.fixture(scope="module")
def backend(built: BuiltEngine) -> Iterator[Backend]:
    loaded = load_backend(built.engine, EngineOptions(kv_cache_bytes=2**26), lambda *_: None)
    yield loaded
    loaded.close()


def generate(backend: Backend, **sampling: object) -> tuple[int, ...]:
    return tokens(run(backend, [make_request("a", PROMPT, NUM_TOKENS, **sampling)])["a"])


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-4},
    ],
    ids=str,
)
def test_narrowest_sampling_is_greedy(backend: Backend, sampling: dict[str, float]) -> None:
    assert generate(backend, **{"temperature": 1.0, "seed": 5} | sampling) == generate(backend)


@pytest.mark.parametrize(
    "sampling",
    [{"top_k": 5}, {"top_p": 0.3}, {"min_p": 0.3}, {"temperature": 0.4}],
    ids=str,
)
def test_narrower_sampling_takes_likelier_tokens(
    backend: Backend, sampling: dict[str, float]
) -> None:
    # Random weights like many tokens about equally, so a narrower choice shows in the first token.
    def first_tokens(**values: float) -> set[int]:
        requests = [
            make_request(str(seed), PROMPT, 1, **{"temperature": 1.0, "seed": seed} | values)
            for seed in range(60)
        ]
        return {tokens(chunks)[0] for chunks in run(backend, requests).values()}

    assert 2 <= len(first_tokens(**sampling)) < len(first_tokens()) / 1.5


def test_repetition_penalty_is_that_of_transformers(backend: Backend, built: BuiltEngine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(built.checkpoint, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        repetition_penalty=1.3,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(PROMPT) :].tolist()
    assert list(generate(backend, repetition_penalty=1.3)) == expected
    assert list(generate(backend)) != expected


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_penalty_changes_what_repeats(backend: Backend, penalty: str) -> None:
    free = generate(backend)
    assert generate(backend, **{penalty: 2.0}) != free
    assert generate(backend, **{penalty: -2.0}) != free
