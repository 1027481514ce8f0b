"""What TensorRT-LLM is told of an engine that is served with fewer tokens than were compiled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepinfer.backends.tensorrt_llm import TensorRtLlmBackend
from deepinfer.backends.tensorrt_settings import BuiltEngine, measured_capacity
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import EngineError
from deepinfer.generation import FinishReason
from deepinfer.manifest import EngineFolder
from deepinfer.serving_limits import with_max_seq_len
from tests.backends.tensorrt import make_tensorrt_engine
from tests.backends.test_promises import make_request, run
from tests.building import BuildEngine
from tests.contract.installing import installed_double

COMPILED = 256


@pytest.fixture(scope="module", params=[True, False], ids=["as recorded", "the other way"])
def engine(
    request: pytest.FixtureRequest, double_root: Path, build_engine: BuildEngine
) -> Iterator[EngineFolder]:
    """For one sequence at a time, so that its KV cache is the smallest there is."""
    assumptions = {"small_cache_lowers_max_seq_len": request.param}
    flags = ("--max-seq-len", str(COMPILED), "--max-batch-size", "1", "--target", "rtx5090")
    with installed_double(double_root, assumptions=assumptions):
        yield build_engine("llama", "fp8", *flags).engine


def load(engine: EngineFolder, **options: Any) -> TensorRtLlmBackend:
    return TensorRtLlmBackend.load(engine, EngineOptions(**options), lambda *_: None)


@pytest.mark.parametrize("max_seq_len", [COMPILED, 200, 128, 33, 32, 2])
def test_answer_may_fill_a_sequence_of_any_lower_limit(
    engine: EngineFolder, max_seq_len: int
) -> None:
    """The executor cuts answers short where its cache holds no sequence of the compiled length."""
    backend = load(with_max_seq_len(engine, max_seq_len))
    try:
        blocks = -(-max_seq_len // 32)
        assert backend.capacity == Capacity(1, num_blocks=blocks, tokens_per_block=32)
        assert backend._llm.args.max_seq_len == max_seq_len
        assert backend._llm.args.max_input_len == max_seq_len - 1
        for prompt_len in {1, max_seq_len // 2, max_seq_len - 1}:
            request = make_request("a", range(10, 10 + prompt_len), max_seq_len - prompt_len)
            chunks = run(backend, [request])["a"]
            num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
            assert (num_tokens, chunks[-1].finish_reason) == (
                max_seq_len - prompt_len,
                FinishReason.LENGTH,
            )
    finally:
        backend.close()


def test_cache_within_a_budget_holds_what_the_lower_limit_needs(engine: EngineFolder) -> None:
    block_bytes = 32 * engine.manifest.kv_bytes_per_token
    with pytest.raises(EngineError) as refused:
        load(engine, kv_cache_bytes=4 * block_bytes)
    assert "256 tokens" in refused.value.message and "--max-seq-len" in str(refused.value.hint)
    backend = load(with_max_seq_len(engine, 128), kv_cache_bytes=4 * block_bytes)
    assert backend.capacity.num_blocks == 4
    backend.close()


MEASURED = {
    # blocks of 32 tokens that the GPU holds, compiled length, served length, what it allows
    "all": (16, 512, 512, None),
    "less than was compiled": (15, 512, 512, 449),
    "a block more than the lower limit": (5, 512, 128, None),
    "no more than the lower limit": (4, 512, 128, 97),
}


@pytest.mark.parametrize(
    ("num_blocks", "compiled", "served", "allowed"), MEASURED.values(), ids=MEASURED
)
def test_gpu_that_holds_too_little_names_the_limit_that_it_allows(
    tmp_path: Path, num_blocks: int, compiled: int, served: int, allowed: int | None
) -> None:
    manifest = with_max_seq_len(make_tensorrt_engine(tmp_path), served).manifest
    assert manifest.limits.max_seq_len == served
    built = BuiltEngine(manifest.limits, compiled, 512, ())
    planned = Capacity(8, num_blocks=8 * -(-served // 32), tokens_per_block=32)
    stats = {"kvCacheStats": {"maxNumBlocks": num_blocks, "tokensPerBlock": 32}}
    if allowed is None:
        assert measured_capacity(manifest, built, planned, stats).num_blocks == num_blocks
        return
    with pytest.raises(EngineError) as refused:
        measured_capacity(manifest, built, planned, stats)
    assert f"one sequence may have {allowed}" in refused.value.message
    assert f"`--max-seq-len {allowed}`" in str(refused.value.hint)
