"""The upper bounds against a pencil's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deepinfer.compiler.plan_types import Roofline
from deepinfer.compiler.roofline import find_roofline
from deepinfer.compiler.targets import GpuModel, find_gpu_model
from deepinfer.manifest import Parallelism
from tests.compiler.planning import LLAMA, with_dims


@pytest.fixture
def rtx5090() -> GpuModel:
    model = find_gpu_model("rtx5090")
    assert model is not None
    return model


def bound(
    model: GpuModel, precision: str, batch_size: int = 1, kv_bytes: int = 0, **sizes: int
) -> Roofline:
    return find_roofline(model, LLAMA, precision, batch_size, kv_bytes, Parallelism(**sizes))


@pytest.mark.parametrize(
    ("precision", "gigabytes_read"),
    # Layers of 6.98B parameters, and an LM head of 0.525B in 16 bits; the embedding is looked up.
    [("fp8", 6.98 + 1.05), ("nvfp4", 3.93 + 1.05), ("bf16", 13.96 + 1.05)],
)
def test_one_stream_is_bound_by_reading_the_weights(
    rtx5090: GpuModel, precision: str, gigabytes_read: float
) -> None:
    found = bound(rtx5090, precision).decode_tokens_per_s
    assert found == pytest.approx(1792 / gigabytes_read, rel=0.01)


def test_prompts_are_bound_by_arithmetic(rtx5090: GpuModel) -> None:
    found = bound(rtx5090, "fp8").prefill_tokens_per_s
    assert found == pytest.approx(419e12 / (2 * 6.98e9), rel=0.01)
    assert bound(rtx5090, "bf16").prefill_tokens_per_s == pytest.approx(found / 2, rel=0.01)


def test_full_batch_reads_weights_once_and_every_cache(rtx5090: GpuModel) -> None:
    empty = bound(rtx5090, "fp8", 16)
    assert empty.full_batch_tokens_per_s == pytest.approx(16 * empty.decode_tokens_per_s, rel=0.01)
    full = bound(rtx5090, "fp8", 16, 8_030_000_000)
    assert full.full_batch_tokens_per_s == pytest.approx(
        empty.full_batch_tokens_per_s / 2, rel=0.01
    )


def test_large_batch_is_bound_by_arithmetic_too(rtx5090: GpuModel) -> None:
    found = bound(rtx5090, "fp8", 4096).full_batch_tokens_per_s
    assert found == pytest.approx(1 / (2 * 6.98e9 / 419e12 + 2 * 0.525e9 / 209.5e12), rel=0.01)


def test_pipeline_helps_many_streams_and_tensor_parallel_one_as_well(rtx5090: GpuModel) -> None:
    single = bound(rtx5090, "fp8", 8)
    pipeline = bound(rtx5090, "fp8", 8, pipeline_parallel_size=2)
    tensor = bound(rtx5090, "fp8", 8, tensor_parallel_size=2)
    assert pipeline.decode_tokens_per_s == single.decode_tokens_per_s
    assert tensor.decode_tokens_per_s == pytest.approx(2 * single.decode_tokens_per_s, rel=0.01)
    assert tensor.full_batch_tokens_per_s == pipeline.full_batch_tokens_per_s
    assert pipeline.full_batch_tokens_per_s == pytest.approx(
        2 * single.full_batch_tokens_per_s, rel=0.01
    )


def test_token_reads_only_the_experts_that_it_meets(rtx5090: GpuModel) -> None:
    moe = with_dims(LLAMA, num_experts=8, num_experts_per_token=2, expert_intermediate_size=100)
    experts = 6_000_000_000
    moe = replace(moe, weights=replace(moe.weights, expert_parameters=experts))
    found = find_roofline(rtx5090, moe, "fp8", 1, 0, Parallelism()).decode_tokens_per_s
    assert found == pytest.approx(1792e9 / (6.98e9 - 0.75 * experts + 1.05e9), rel=0.01)
