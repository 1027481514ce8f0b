"""A prompt that the prefix cache holds to its last token is answered as it was the first time.

The library computes the last token of such a prompt anew and writes it into the cached block. With
8-bit keys that are scaled by channel that changed the block's other keys too, each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino_settings import allows_prefix_cache
from deepinfer.backends.openvino_speculation import Speculation
from deepinfer.engine import EngineOptions
from deepinfer.manifest import EngineFolder
from tests.backends.test_promises import make_request, run, tokens
from tests.building import BuildEngine

NUM_REPEATS = 6
ENGINES = {  # architecture and flags; the keys of qwen2 have biases
    "scaled by token": ("llama", ()),
    "scaled by channel": ("qwen2", ("--kv-cache-precision", "int8")),
    "16 bits": ("qwen2", ()),
}
CACHES = {"scaled by token": "u8", "scaled by channel": "u8", "16 bits": "f16"}


@dataclass(frozen=True)
class Loaded:
    engine: EngineFolder
    backend: Backend


@pytest.fixture(scope="module", params=ENGINES)
def loaded(request: pytest.FixtureRequest, build_engine: BuildEngine) -> Iterator[Loaded]:
    architecture, flags = ENGINES[request.param]
    limits = ("--max-seq-len", "256", "--max-batch-size", "8")
    engine = build_engine(architecture, "int8", *limits, *flags).engine
    assert engine.manifest.backend.settings["kv_cache_precision"] == CACHES[request.param]
    backend = load_backend(engine, EngineOptions(kv_cache_bytes=2**24), lambda *_: None)
    yield Loaded(engine, backend)
    backend.close()


@pytest.mark.parametrize("prompt_len", [32, 64, 96])
def test_repeated_prompt_of_whole_blocks_is_answered_alike(loaded: Loaded, prompt_len: int) -> None:
    rng = random.Random(prompt_len)
    prompt = [rng.randrange(10, 300) for _ in range(prompt_len)]

    def ask(*prompts: list[int]) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Tokens and their log probabilities, of requests that run together."""
        requests = [
            make_request(str(i), prompt, 16, num_log_probs=0) for i, prompt in enumerate(prompts)
        ]
        chunks = run(loaded.backend, requests)
        return [
            (
                tuple(tokens(chunks[str(i)])),
                tuple(entry.log_prob for chunk in chunks[str(i)] for entry in chunk.log_probs),
            )
            for i in range(len(prompts))
        ]

    first = ask(prompt)[0]
    # The second reads its last token alone, where the first read all at once: sums may differ in
    # their last bits. From then on nothing does.
    repeated = [ask(prompt)[0] for _ in range(NUM_REPEATS)]
    beside = [
        answer
        for _ in range(NUM_REPEATS)
        for answer in ask(prompt, [*prompt, 7, 8, 9], prompt, [*prompt, 10])[::2]
    ]
    afterwards = ask(prompt)[0]
    assert {answer for answer, _ in (first, *repeated, *beside, afterwards)} == {first[0]}
    assert {log_probs for _, log_probs in (*repeated, afterwards)} == {repeated[0][1]}


def test_prefix_cache_is_used_where_it_changes_no_answer(loaded: Loaded) -> None:
    manifest = loaded.engine.manifest
    mode = manifest.backend.settings.get("key_cache_quant_mode")
    assert allows_prefix_cache(manifest, Speculation(0)) is (mode != "BY_CHANNEL")
    assert not allows_prefix_cache(manifest, Speculation(4))


def test_engine_that_does_not_say_how_its_keys_are_scaled_goes_without(loaded: Loaded) -> None:
    manifest = loaded.engine.manifest
    kept = {k: v for k, v in manifest.backend.settings.items() if k != "key_cache_quant_mode"}
    older = manifest.model_copy(
        update={"backend": manifest.backend.model_copy(update={"settings": kept})}
    )
    is_quantized = kept["kv_cache_precision"] == "u8"
    assert allows_prefix_cache(older, Speculation(0)) is not is_quantized
