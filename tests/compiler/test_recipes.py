"""The recipes of the repository, each planned for its card with its model's real dimensions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deepinfer.compiler.options import AS_ASKED, read_options
from deepinfer.compiler.plan import make_plan
from deepinfer.compiler.plan_types import BuildPlan
from tests.compiler.planning import read_config, resolve

RECIPES = Path(__file__).parent.parent.parent / "build" / "recipes"
CONFIG_OF = {
    "llama-3.1-8b-instruct.fp8.sm120": "llama-3.1-8b-instruct",
    "llama-3.1-8b-instruct.fp16.sm120": "llama-3.1-8b-instruct",
    "mistral-7b-instruct-v0.3.fp8.sm120": "mistral-7b-instruct-v0.3",
    "qwen3-8b.fp8.sm120": "qwen3-8b",
    "qwen3-14b.nvfp4.sm120": "qwen3-14b-nvfp4",
    "qwen3-32b.fp8.sm120.pp2": "qwen3-32b",
    "qwen3-32b.nvfp4.sm120": "qwen3-32b-nvfp4",
}


def plan_recipe(name: str) -> BuildPlan:
    options = read_options(RECIPES / f"{name}.yaml", {})
    checkpoint = replace(read_config(CONFIG_OF[name]), id=options.model, source=options.model)
    return make_plan(resolve(options.target), checkpoint, options)


def test_every_recipe_for_a_gpu_is_planned_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.sm*.yaml")} == set(CONFIG_OF)


@pytest.mark.parametrize("name", CONFIG_OF)
def test_recipe_fits_its_card_and_is_called_like_its_engine(name: str) -> None:
    made = plan_recipe(name)
    assert made.name == name
    assert made.target.capability == "sm_120"
    assert made.memory.total_bytes <= made.memory.usable_bytes
    assert made.memory.num_full_sequences >= 4


@pytest.mark.parametrize("name", CONFIG_OF)
def test_recipe_says_what_it_wants_and_leaves_no_size_to_chance(name: str) -> None:
    chosen = {choice.name for choice in plan_recipe(name).choices if choice.reason == AS_ASKED}
    assert {"precision", "kv_cache_precision", "max_seq_len", "max_batch_size"} <= chosen


def test_recipe_for_two_cards_would_not_fit_one() -> None:
    made = plan_recipe("qwen3-32b.fp8.sm120.pp2")
    assert made.parallelism.pipeline_parallel_size == 2
    assert 2 * made.memory.weight_bytes > made.memory.usable_bytes


@pytest.mark.parametrize("name", ["qwen3-14b.nvfp4.sm120", "qwen3-32b.nvfp4.sm120"])
def test_recipe_in_four_bits_needs_no_calibration(name: str) -> None:
    made = plan_recipe(name)
    assert made.tensorrt_llm is not None
    assert made.tensorrt_llm.is_prequantized
    assert not made.tensorrt_llm.needs_calibration
