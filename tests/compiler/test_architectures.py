"""The table of architectures: held against the library's record, the errors and the page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deepinfer.checkpoint import Rope
from deepinfer.compiler.architectures import (
    ARCHITECTURES,
    OTHER_COMPILED,
    PYTORCH_ONLY,
    Architecture,
    find_architecture,
    list_architectures,
)
from deepinfer.compiler.published import PUBLISHED, find_published
from deepinfer.errors import PlanError
from tests.compiler.planning import LLAMA, QWEN, RTX5090, plan

ROOT = Path(__file__).parent.parent.parent
RECORD = yaml.safe_load(
    (ROOT / "tests" / "contract" / "recorded" / "models.yaml").read_text(encoding="utf-8")
)
MODEL_MAP = {*RECORD["read"], *RECORD["inferred"]}


def test_library_maps_what_is_planned_and_what_is_said_to_be_compiled() -> None:
    assert ARCHITECTURES.keys() <= MODEL_MAP
    assert OTHER_COMPILED <= MODEL_MAP


def test_library_does_not_map_what_its_pytorch_runtime_alone_has() -> None:
    assert not PYTORCH_ONLY & MODEL_MAP
    assert not ARCHITECTURES.keys() & OTHER_COMPILED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GptOssForCausalLM", "no compiled engine for GptOssForCausalLM; its PyTorch runtime has"),
        ("Mistral3ForConditionalGeneration", "its PyTorch runtime has"),
        (
            "Qwen3_5ForConditionalGeneration",
            "TensorRT-LLM 1.2.1 has no compiled engine for Qwen3_5",
        ),
        ("SmolLM3ForCausalLM", "TensorRT-LLM 1.2.1 has no compiled engine for SmolLM3ForCausalLM"),
        ("FalconForCausalLM", "DeepInfer does not build FalconForCausalLM for GPUs yet, though"),
        ("DeciLMForCausalLM", "DeepInfer does not build DeciLMForCausalLM for GPUs yet: every"),
        ("ExaoneForCausalLM", "DeepInfer does not build ExaoneForCausalLM for GPUs yet: the"),
        ("InternLM2ForCausalLM", "names of weights"),
        ("GraniteMoeForCausalLM", "fuses the experts"),
        ("DeepseekV2ForCausalLM", "KV cache of another shape"),
    ],
)
def test_refusal_says_whose_limit_it_is(name: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        find_architecture(name)
    assert message in caught.value.message
    assert "supported: LlamaForCausalLM, MistralForCausalLM" in (caught.value.hint or "")


def test_runtime_that_may_not_have_a_model_is_not_named() -> None:
    with pytest.raises(PlanError) as caught:
        find_architecture("SmolLM3ForCausalLM")
    assert "PyTorch" not in caught.value.message


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_page_lists_the_architecture_as_the_table_has_it(row: Architecture) -> None:
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    line = re.search(rf"^\| `{row.name}` \|(.*)\|(.*)\|$", page, re.MULTILINE)
    assert line is not None
    assert line[1].strip() == row.models
    words = {"supported": "planned", "untried": "planned, not tried", "refused": "refused"}
    assert line[2].strip().startswith(words[row.status])


def test_every_quantisation_that_nvidia_does_not_list_is_warned_of() -> None:
    for name in list_architectures("supported"):
        row = find_architecture(name)
        if "FP8" in row.quant_refusals:
            continue
        made = plan(RTX5090, replace(LLAMA, architecture=name), precision="fp8")
        is_warned = any("does not list FP8" in warning for warning in made.warnings)
        assert is_warned == ("FP8" not in row.listed)


def test_published_checkpoints_are_found_by_id_and_by_folder() -> None:
    assert find_published("Qwen/Qwen3-32B", "nvfp4") == "nvidia/Qwen3-32B-NVFP4"
    assert find_published("qwen3-32b", "fp8") == "nvidia/Qwen3-32B-FP8"
    assert find_published("Qwen/Qwen3-32B", "bf16") is None
    assert find_published("Qwen/Qwen3-32B-Base", "nvfp4") is None
    for checkpoints in PUBLISHED.values():
        for precision, hub_id in checkpoints.items():
            assert hub_id.startswith("nvidia/") and hub_id.endswith(precision.upper())


def test_rope_that_the_library_has_no_tables_for_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        plan(RTX5090, replace(LLAMA, rope=Rope("dynamic", 10_000.0, 2.0)))
    assert "RoPE of type `dynamic`" in caught.value.message
    assert "rope_" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "rope",
    [
        Rope("default", 10_000.0),
        Rope("llama3", 500_000.0, 8.0, 8192),
        Rope("dynamic", 10_000.0, has_alpha=True),
        Rope("yarn", 1e6, 4.0, 32_768),
    ],
    ids=["default", "llama3", "hunyuan", "yarn"],
)
def test_rope_that_the_library_reads_is_planned(rope: Rope) -> None:
    plan(RTX5090, replace(LLAMA, rope=rope))


def test_mixture_that_does_not_renormalise_is_planned() -> None:
    mixture = replace(QWEN, architecture="Qwen3MoeForCausalLM")
    plan(RTX5090, mixture)
    with pytest.raises(PlanError, match="norm_topk_prob"):
        plan(RTX5090, replace(mixture, renormalizes_experts=True))
