"""The estimates against what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deepinfer.compiler import memory
from tests.compiler.planning import LLAMA, QWEN

MIB = 2**20


@pytest.mark.parametrize(
    ("precision", "measured_bytes"),
    [("bf16", 945 * MIB), ("int8", 476 * MIB), ("int4", 311 * MIB)],
)
def test_weights_of_half_a_billion_parameters(precision: str, measured_bytes: int) -> None:
    assert memory.cpu_weight_bytes(QWEN, precision) == pytest.approx(measured_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("precision", "measured_bytes"), [("int8", 7296), ("bf16", 12_288), ("fp32", 24_576)]
)
def test_kv_cache_of_half_a_billion_parameters(precision: str, measured_bytes: int) -> None:
    found = memory.cpu_kv_bytes_per_token(QWEN.dims, precision, has_scales_by_channel=True)
    assert found == measured_bytes


def test_wider_heads_pay_less_for_scales() -> None:
    # Shapes that the CPU plugin reports for head_dim 16: [40, 16] keys and [32, 24] values a block.
    dims = replace(QWEN.dims, num_layers=1, num_kv_heads=1, head_dim=16)
    by_channel = memory.cpu_kv_bytes_per_token(dims, "int8", has_scales_by_channel=True)
    assert by_channel == (40 * 16 + 32 * 24) // 32
    assert memory.cpu_kv_bytes_per_token(dims, "int8") == 24 + 24
    assert memory.cpu_kv_bytes_per_token(LLAMA.dims, "int8") == 32 * 8 * (136 + 136)


def test_weights_that_keep_their_type_need_less_memory_to_build() -> None:
    kept = memory.cpu_build_memory_bytes(QWEN, "bf16", 10**9)
    widened = memory.cpu_build_memory_bytes(QWEN, "fp32", 10**9)
    assert widened - kept > 4 * QWEN.num_parameters


def test_experts_are_exported_wide() -> None:
    num_experts = 300_000_000
    moe = replace(QWEN, weights=replace(QWEN.weights, expert_parameters=num_experts))
    added = memory.export_bytes(moe, "bf16") - memory.export_bytes(QWEN, "bf16")
    assert added == 2 * num_experts
