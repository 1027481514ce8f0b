"""What is read from a folder of PEFT, and which adapters are refused, each by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepinfer.adapter import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    adaptable_modules,
    check_base,
    check_limits,
    read_adapter,
)
from deepinfer.checkpoint import Checkpoint, read_checkpoint
from deepinfer.compiler.source import read_config_only_checkpoint
from deepinfer.errors import CheckpointError
from deepinfer.manifest import LoraLimits
from tests.checkpoints import make_adapter, make_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def original(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "story", base, rank=4, alpha=16)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "story"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / ADAPTER_CONFIG_NAME
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS_NAME)
    edit(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS_NAME)


def test_adapter_is_what_peft_wrote(original: Path, base: Path) -> None:
    adapter = read_adapter(original)
    assert (adapter.id, adapter.rank, adapter.base_model) == ("story", 4, str(base))
    assert len(adapter.modules) == 6, "three layers in each of two blocks"
    modules = {module.name: module for module in adapter.modules}
    q_proj = modules["model.layers.1.self_attn.q_proj"]
    assert (q_proj.num_outputs, q_proj.num_inputs, q_proj.scale) == (64, 64, 4.0)
    down = modules["model.layers.0.mlp.down_proj"]
    assert (down.num_outputs, down.num_inputs) == (64, 128)
    check_base(adapter, read_checkpoint(base))


def test_scale_follows_rslora_and_patterns(folder: Path) -> None:
    edit_config(folder, use_rslora=True, alpha_pattern={"layers.1.*q_proj": 2, "down_proj": 8})
    adapter = read_adapter(folder)
    scales = {module.name: module.scale for module in adapter.modules}
    assert scales["model.layers.0.self_attn.v_proj"] == 16 / 2
    assert scales["model.layers.1.self_attn.q_proj"] == 2 / 2
    assert scales["model.layers.0.mlp.down_proj"] == 8 / 2
    assert not adapter.is_uniform


def test_digest_changes_with_every_part(folder: Path) -> None:
    digests = {read_adapter(folder).digest}
    edit_config(folder, lora_alpha=17)
    digests.add(read_adapter(folder).digest)
    edit_tensors(folder, lambda tensors: next(iter(tensors.values())).add_(1))
    digests.add(read_adapter(folder).digest)
    assert len(digests) == 3


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "kind `PROMPT_TUNING`; only LORA"),
    "no kind": ({"peft_type": None}, "kind `None`"),
    "dora": ({"use_dora": True}, r"DoRA, .* \(`use_dora`\)"),
    "biases": ({"bias": "all"}, r"biases \(`bias`\)"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"\(`modules_to_save`\)"),
    "tokens": ({"trainable_token_indices": [1]}, r"\(`trainable_token_indices`\)"),
    "parameters": ({"target_parameters": ["experts"]}, r"\(`target_parameters`\)"),
    "repeated layers": ({"layer_replication": [[0, 1]]}, r"\(`layer_replication`\)"),
    "alpha of text": ({"lora_alpha": "16"}, "`lora_alpha` of an adapter is a number"),
    "pattern that is none": ({"alpha_pattern": {"(": 1}}, r"`alpha_pattern` holds `\(`"),
}


@pytest.mark.parametrize(("changes", "message"), KINDS.values(), ids=KINDS)
def test_other_kinds_are_refused_by_name(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder)


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]


def add_embedding(tensors: dict[str, Any]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 384)


def add_whole_head(tensors: dict[str, Any]) -> None:
    """As `peft` saves it beside the LoRA of an LM head, unless told not to."""
    tensors["base_model.model.lm_head.base_layer.weight"] = torch.zeros(384, 64)


def make_integers(tensors: dict[str, Any]) -> None:
    name = min(tensors)
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_one, "are 4 x 64 and missing"),
        (add_embedding, "holds `base_model.model.model.embed_tokens.lora_embedding_A`"),
        (add_whole_head, "holds `base_model.model.lm_head.base_layer.weight`"),
        (make_integers, "as I8, not as a floating-point number"),
        (lambda tensors: tensors.clear(), "changes no layer at all"),
    ],
    ids=["half of a pair", "embedding", "whole head", "integers", "nothing"],
)
def test_tensors_that_would_be_lost_are_refused(
    folder: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(folder)


def test_folder_that_is_no_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has no {ADAPTER_CONFIG_NAME}"):
        read_adapter(tmp_path)
    weights = folder / ADAPTER_WEIGHTS_NAME
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle"):
        read_adapter(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=f"has no {ADAPTER_WEIGHTS_NAME}"):
        read_adapter(folder)
    (folder / ADAPTER_CONFIG_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="it is not JSON"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 96, "head_dim": 24}, "is 64 x 128 in the adapter and 96 x 128 in the mod"),
        ({"num_layers": 1}, "no linear layer `model.layers.1.mlp.down_proj`"),
    ],
    ids=["wider", "shallower"],
)
def test_adapter_of_another_model_is_refused_with_both_shapes(
    original: Path, base: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    other = make_checkpoint(tmp_path / "other", **options)
    adapter = read_adapter(original)
    with pytest.raises(CheckpointError, match=message) as caught:
        check_base(adapter, read_checkpoint(other))
    assert f"its own configuration names `{base}`" in (caught.value.hint or "")
    (other / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=message):
        check_base(adapter, read_config_only_checkpoint(other))


def test_quantised_base_is_refused(original: Path, base: Path) -> None:
    checkpoint = read_checkpoint(base)
    weights = replace(checkpoint.weights, parameters_by_dtype={"F8_E4M3": 100})
    with pytest.raises(CheckpointError, match="cannot be merged into fp8 weights"):
        check_base(read_adapter(original), replace(checkpoint, weights=weights))


def test_lm_head_that_is_the_embedding_is_refused(tmp_path: Path) -> None:
    untied = make_checkpoint(tmp_path / "untied")
    adapter = read_adapter(make_adapter(tmp_path / "head", untied, target_modules=["lm_head"]))
    check_base(adapter, read_checkpoint(untied))
    tied = make_checkpoint(tmp_path / "tied", tied=True)
    with pytest.raises(CheckpointError, match="no linear layer `lm_head`"):
        check_base(adapter, read_checkpoint(tied))


def limits_of(checkpoint: Checkpoint, **changes: Any) -> LoraLimits:
    fields = {
        "max_rank": 8,
        "max_loras": 2,
        "num_layers": checkpoint.dims.num_layers,
        "module_shapes": adaptable_modules(checkpoint),
    }
    return LoraLimits(**fields | changes)


def test_engine_takes_what_its_limits_allow(original: Path, base: Path) -> None:
    check_limits(read_adapter(original), limits_of(read_checkpoint(base)), "llama")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_rank": 3}, "has rank 4; the engine was built for at most 3"),
        ({"num_layers": 1}, "adapts no layer `model.layers.1.mlp.down_proj`"),
        ({"module_shapes": {"q_proj": (64, 64)}}, "adapts no layer `model.layers.0.mlp.down_proj`"),
        (
            {"module_shapes": {"q_proj": (64, 64), "v_proj": (64, 64), "down_proj": (64, 128)}},
            "`model.layers.0.self_attn.v_proj` is 32 x 64 in the adapter and 64 x 64 in the model",
        ),
    ],
    ids=["rank", "layers", "modules", "shapes"],
)
def test_engine_refuses_what_its_limits_do_not_allow(
    original: Path, base: Path, changes: dict[str, Any], message: str
) -> None:
    limits = limits_of(read_checkpoint(base), **changes)
    with pytest.raises(CheckpointError, match=message):
        check_limits(read_adapter(original), limits, "llama")


def test_engine_refuses_an_adapter_with_several_scales(folder: Path, base: Path) -> None:
    edit_config(folder, alpha_pattern={"q_proj": 2})
    with pytest.raises(CheckpointError, match="`rank_pattern`, `alpha_pattern`"):
        check_limits(read_adapter(folder), limits_of(read_checkpoint(base)), "llama")


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("phi3", "qkv_proj o_proj gate_up_proj down_proj"),
        ("qwen3_moe", "q_proj k_proj v_proj o_proj"),
    ],
)
def test_layers_that_can_be_adapted_have_the_shapes_of_the_weights(
    tmp_path: Path, architecture: str, names: str
) -> None:
    folder = make_checkpoint(tmp_path / architecture, architecture)
    checkpoint = read_checkpoint(folder)
    found = adaptable_modules(checkpoint)
    assert found.keys() == set(names.split())
    for name, shape in found.items():
        matching = {s for n, s in checkpoint.weights.shapes.items() if n.endswith(f"{name}.weight")}
        assert shape in matching
    (folder / "model.safetensors").unlink()
    assert adaptable_modules(read_config_only_checkpoint(folder)) == found
