"""Parameters counted from a config.json against those that the models' owners publish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler.source import find_checkpoint, read_config_only_checkpoint
from deepinfer.errors import CheckpointError
from tests.checkpoints import ARCHITECTURES, make_checkpoint
from tests.compiler.planning import CONFIGS


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("mistral-7b-instruct-v0.3", 7_248_023_552),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b-nvfp4", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
    ],
)
def test_parameters_are_counted_from_the_dimensions(name: str, published: int) -> None:
    # The norms of queries and keys, of a few thousand parameters, are not counted.
    counted = read_config_only_checkpoint(CONFIGS / name).num_parameters
    assert counted == pytest.approx(published, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True], ids=["own-head", "tied-head"])
def test_count_is_that_of_the_real_weights(tmp_path: Path, architecture: str, tied: bool) -> None:
    real = read_checkpoint(make_checkpoint(tmp_path, architecture, dtype="float16", tied=tied))
    counted = read_config_only_checkpoint(tmp_path)
    assert counted.num_parameters == pytest.approx(real.num_parameters, rel=0.01)
    assert counted.num_embedding_parameters == real.num_embedding_parameters
    assert counted.weights.expert_parameters == real.weights.expert_parameters
    assert (counted.is_tied, counted.precision) == (real.is_tied, real.precision)


def test_packed_weights_are_counted_from_the_dimensions_too(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, dtype="bfloat16")
    expected = read_checkpoint(folder).num_parameters
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
    text = json.dumps({"quantization": quantization})
    (folder / "hf_quant_config.json").write_text(text, encoding="utf-8")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.precision == "nvfp4"
    assert checkpoint.num_parameters == expected


@pytest.mark.parametrize("text", ['{"quantization": {}}', "{}", "[]", "x"])
def test_quantisation_that_names_no_algorithm_is_refused(tmp_path: Path, text: str) -> None:
    shutil.copyfile(CONFIGS / "qwen3-8b" / "config.json", tmp_path / "config.json")
    (tmp_path / "hf_quant_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json` is damaged"):
        read_config_only_checkpoint(tmp_path)


def test_weights_may_be_missing_for_a_plan_only() -> None:
    folder = str(CONFIGS / "qwen3-8b")
    assert find_checkpoint(folder, needs_weights=False).has_counted_weights
    with pytest.raises(CheckpointError, match="has neither model.safetensors"):
        find_checkpoint(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_broken_or_pickled_weights_are_not_passed_over(tmp_path: Path, name: str) -> None:
    shutil.copyfile(CONFIGS / "qwen3-8b" / "config.json", tmp_path / "config.json")
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError):
        find_checkpoint(str(tmp_path), needs_weights=False)
