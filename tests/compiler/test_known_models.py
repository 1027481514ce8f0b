"""Models that owners of an RTX 5090 ask for first: what each is planned as, or why it is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from deepinfer.compiler.source import read_config_only_checkpoint
from deepinfer.errors import PlanError
from tests.compiler.planning import CONFIGS, H100, RTX5090, plan, read_config

GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    precision: str
    kv_cache_precision: str
    max_seq_len: int
    full_sequences: tuple[int, int]  # bounds of how many fit side by side
    weight_gib: tuple[float, float]
    warning: str = ""  # a part of one


PLANNED = {
    "llama-3.1-8b-instruct": Outcome("fp8", "fp8", 32_768, (8, 10), (8.0, 9.0)),
    "qwen3-8b": Outcome("fp8", "fp8", 16_384, (8, 16), (8.0, 9.5)),
    "qwen3-14b": Outcome("fp8", "fp8", 16_384, (8, 10), (14.5, 16.0)),
    "qwen3-32b": Outcome(
        "nvfp4", "fp8", 4096, (8, 16), (18.0, 20.5), "costs more accuracy than FP8"
    ),
    "mistral-small-24b-instruct-2501": Outcome(
        "nvfp4", "fp8", 16_384, (8, 12), (13.0, 15.5), "does not list NVFP4"
    ),
    "phi-4": Outcome("fp8", "fp8", 8192, (8, 16), (14.0, 16.0), "does not list FP8"),
    "deepseek-r1-distill-qwen-14b": Outcome("nvfp4", "bf16", 8192, (8, 12), (9.0, 11.0)),
    "qwen2.5-coder-32b-instruct": Outcome("nvfp4", "bf16", 4096, (4, 8), (18.0, 21.0)),
    "qwen2.5-7b-instruct": Outcome("fp8", "bf16", 32_768, (8, 12), (7.5, 9.0)),
}
REFUSED = {
    "qwen3-30b-a3b": ("does not read `norm_topk_prob`", "a dense model"),
    "gpt-oss-20b": (
        "TensorRT-LLM 1.2.1 has no compiled engine for GptOssForCausalLM; its PyTorch runtime has",
        "supported: LlamaForCausalLM",
    ),
}


def test_the_twelve_are_all_here() -> None:
    assert len(PLANNED) + len(REFUSED) + len(["gemma-3-12b-it"]) == 12


@pytest.mark.parametrize("name", PLANNED)
def test_model_is_planned(name: str) -> None:
    expected = PLANNED[name]
    made = plan(RTX5090, read_config(name))
    assert (made.precision, made.kv_cache_precision, made.limits.max_seq_len) == (
        expected.precision,
        expected.kv_cache_precision,
        expected.max_seq_len,
    )
    low, high = expected.full_sequences
    assert low <= made.memory.num_full_sequences <= high
    low_gib, high_gib = expected.weight_gib
    assert low_gib <= made.memory.weight_bytes / GIB <= high_gib
    assert made.memory.total_bytes <= made.memory.usable_bytes
    assert any(expected.warning in warning for warning in made.warnings)


@pytest.mark.parametrize("name", REFUSED)
def test_model_is_refused_with_whose_limit_it_is(name: str) -> None:
    message, hint = REFUSED[name]
    with pytest.raises(PlanError) as caught:
        plan(RTX5090, read_config(name))
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


PUBLISHED = {
    "aya-23-8b": 8_028_033_024,
    "deepseek-r1-distill-qwen-14b": 14_770_033_664,
    "gemma-3-1b-it": 999_885_952,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-small-24b-instruct-2501": 23_572_403_200,
    "phi-4": 14_659_507_200,
    "qwen1.5-moe-a2.7b-chat": 14_315_784_192,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-coder-32b-instruct": 32_763_876_352,
    "qwen3-30b-a3b": 30_532_122_624,
    "starcoder2-7b": 7_173_923_840,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_the_owners_publish(name: str) -> None:
    # Biases, and norms of queries and keys, are not counted.
    counted = read_config_only_checkpoint(CONFIGS / name).num_parameters
    assert counted == pytest.approx(PUBLISHED[name], rel=2e-4)


def test_untried_models_are_planned_in_what_can_be_built_and_say_so() -> None:
    expected = {
        "minitron-4b-base": ("bf16", "bf16"),
        "aya-23-8b": ("fp16", "fp16"),
        "starcoder2-7b": ("fp8", "bf16"),
    }
    plans = {name: plan(RTX5090, read_config(name)) for name in expected}
    found = {name: (made.precision, made.kv_cache_precision) for name, made in plans.items()}
    assert found == expected
    for made in plans.values():
        assert any("is untested" in warning for warning in made.warnings)


def test_qwen2_moe_is_planned_in_16_bits_and_refused_in_fp8() -> None:
    mixture = read_config("qwen1.5-moe-a2.7b-chat")
    assert plan(H100, mixture).precision == "bf16"
    for device, precision in ((H100, "fp8"), (RTX5090, "nvfp4")):
        with pytest.raises(PlanError, match=r"ModelOpt 0\.37 cannot quantise") as caught:
            plan(device, mixture, precision=precision)
        assert caught.value.hint == "`--precision bf16`"
