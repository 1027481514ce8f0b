"""Plans of engines for GPUs that take LoRA adapters by request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deepinfer.compiler.lora import LORA_MODULES
from deepinfer.compiler.plan_types import Roofline
from deepinfer.errors import PlanError
from tests.compiler.planning import LLAMA, RTX4090, RTX5090, library_of, plan, read_config, reason

EVERY_LAYER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_engine_takes_adapters_of_every_layer() -> None:
    made = plan(RTX5090, LLAMA, max_lora_rank=16, precision="fp8")
    assert made.lora is not None
    assert (made.lora.max_rank, made.lora.max_loras, made.lora.num_layers) == (16, 4, 32)
    assert list(made.lora.module_shapes) == EVERY_LAYER
    assert made.lora.module_shapes["k_proj"] == (1024, 4096)
    assert made.name == "llama-3.1-8b-instruct.fp8.sm120.lora16"
    assert library_of(made).plugins["lora_plugin"] == "auto"
    assert "80 MiB each" in reason(made, "max_loras")


def test_memory_counts_the_adapters() -> None:
    options: dict[str, Any] = {"precision": "fp8", "max_batch_size": 8, "max_seq_len": 4096}
    without = plan(RTX5090, LLAMA, **options)
    two = plan(RTX5090, LLAMA, max_lora_rank=64, max_loras=2, **options)
    # A of 4,096 or 14,336 and B as wide: 32 layers of 81,920 x 64 numbers in 16 bits.
    each = 32 * 81_920 * 64 * 2
    assert two.memory.overhead_bytes - without.memory.overhead_bytes == 2 * each
    assert two.memory.num_full_sequences < without.memory.num_full_sequences
    assert two.lora is not None and two.lora.cache_bytes == 2 * each


def test_plan_without_adapters_knows_nothing_of_them() -> None:
    made = plan(RTX5090, LLAMA)
    assert made.lora is None
    assert "lora_plugin" not in library_of(made).plugins
    assert not [choice for choice in made.choices if "lora" in choice.name]


def test_other_adapter_limits_are_another_engine() -> None:
    options = [
        {},
        {"max_lora_rank": 8},
        {"max_lora_rank": 16},
        {"max_lora_rank": 8, "max_loras": 9},
    ]
    assert len({plan(RTX5090, LLAMA, **each).digest for each in options}) == 4


def test_number_without_rank_is_refused() -> None:
    with pytest.raises(PlanError, match="`--max-loras` is for engines that take adapters"):
        plan(RTX5090, LLAMA, max_loras=2)


def test_experts_are_not_adapted() -> None:
    checkpoint = replace(LLAMA, dims=replace(LLAMA.dims, num_experts=8, num_experts_per_token=2))
    made = plan(RTX4090, checkpoint, max_lora_rank=8, max_seq_len=1024)
    assert made.lora is not None
    assert list(made.lora.module_shapes) == EVERY_LAYER[:4]


def test_formats_untested_with_adapters_are_warned_about() -> None:
    quantised = plan(RTX5090, LLAMA, precision="nvfp4", max_lora_rank=8)
    assert [w for w in quantised.warnings if "on nvfp4 weights" in w]
    plain = plan(RTX5090, LLAMA, precision="fp8", max_lora_rank=8)
    assert not [w for w in plain.warnings if "adapters by request" in w]


def test_every_layer_has_the_librarys_name() -> None:
    made = plan(RTX5090, read_config("qwen3-32b"), precision="nvfp4", max_lora_rank=8)
    assert isinstance(made.roofline, Roofline) and made.lora is not None
    assert made.lora.module_shapes.keys() <= LORA_MODULES.keys()
