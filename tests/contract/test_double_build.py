"""What the double writes when it builds, and what it refuses when it loads."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.double.record import recorded
from tests.contract.installing import RTX_5090, make_double_root
from tests.contract.loading import (
    LIMITS,
    Loader,
    loader_on,
    read_json,
    write_checkpoint,
    write_texts,
)
from tests.fake_nvml import GIB, Card

RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB, (8, 9))
B200 = Card("NVIDIA B200", 180 * GIB, 178 * GIB, (10, 0))


def quantisation(**values: str) -> Any:
    from tensorrt_llm.llmapi import QuantAlgo, QuantConfig

    return QuantConfig(**{name: QuantAlgo[value] for name, value in values.items()})


def calibration(folder: Path) -> Any:
    from tensorrt_llm.llmapi import CalibConfig

    return CalibConfig(calib_dataset=str(write_texts(folder)))


def build_fp8(load: Loader, model: Path, folder: Path, **plugins: Any) -> dict[str, Any]:
    """The plugins of an FP8 engine with an FP8 cache."""
    config = load.build_config(**LIMITS)
    for name, value in plugins.items():
        setattr(config.plugin_config, name, value)
    built = load.build(
        model,
        folder / "engine",
        build_config=config,
        quant_config=quantisation(quant_algo="FP8", kv_cache_quant_algo="FP8"),
        calib_config=calibration(folder / "texts"),
    )
    plugin_config: dict[str, Any] = built["build_config"]["plugin_config"]
    return plugin_config


def test_engine_folder_holds_what_the_library_writes_and_no_more(
    engine_dir: Path, hf_folder: Path
) -> None:
    names = {path.name for path in engine_dir.iterdir()}
    assert names == {
        "config.json",
        "rank0.engine",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    config = read_json(engine_dir / "config.json")
    assert list(config) == recorded("build_config")["engine_config_keys"]
    assert not set(recorded("build_config")["keys_not_written"]) & set(config["build_config"])
    assert {name: config["build_config"][name] for name in LIMITS} == LIMITS
    assert config["pretrained_config"]["mapping"]["world_size"] == 1
    assert config["build_config"]["kv_cache_type"] == "paged"
    assert "sm" not in json.dumps(config["pretrained_config"]["mapping"])


def test_steps_are_named_and_timed(load: Loader, hf_folder: Path) -> None:
    built = load(hf_folder, build_config=load.build_config(**LIMITS))
    labels = [label for label, _ in built.llm_build_stats.build_steps_info]
    assert labels == ["Loading HF model to memory", "Building TRT-LLM engine"]


def test_timing_cache_lands_in_the_working_directory(
    load: Loader, hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorrt_llm.llmapi import BuildConfig

    monkeypatch.chdir(tmp_path)
    load(hf_folder, build_config=BuildConfig(**LIMITS))
    assert os.listdir(tmp_path) == ["model.cache"]


def test_length_that_is_not_given_is_deduced(
    load: Loader, tmp_path: Path, library_log: pytest.LogCaptureFixture
) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    write_checkpoint(tmp_path, rope_scaling=scaling)
    config = load.build(tmp_path, tmp_path / "engine", build_config=load.build_config())
    assert config["build_config"]["max_seq_len"] == 4 * 2048
    short = load.build_config(max_input_len=300, max_seq_len=256)
    config = load.build(tmp_path, tmp_path / "short", build_config=short)
    assert config["build_config"]["max_input_len"] == 256
    assert "max_input_len 300 is larger than max_seq_len 256" in library_log.text


@pytest.mark.parametrize("kind", ["llama3", "longrope", "su"])
def test_factor_of_some_scalings_does_not_count(load: Loader, tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path, rope_scaling={"rope_type": kind, "factor": 8.0})
    config = load.build(tmp_path, tmp_path / "engine", build_config=load.build_config())
    assert config["build_config"]["max_seq_len"] == 2048


def test_fp8_with_an_fp8_cache_keeps_both_attention_kernels(
    load: Loader, hf_folder: Path, tmp_path: Path
) -> None:
    plugins = build_fp8(load, hf_folder, tmp_path)
    assert plugins["use_fp8_context_fmha"] and plugins["use_paged_context_fmha"]


def test_fp8_attention_is_forced_on_with_an_fp8_cache(
    load: Loader, hf_folder: Path, tmp_path: Path
) -> None:
    assert build_fp8(load, hf_folder, tmp_path, use_fp8_context_fmha=False)["use_fp8_context_fmha"]


def test_fp8_without_an_fp8_cache_loses_fp8_attention(
    load: Loader, hf_folder: Path, tmp_path: Path, library_log: pytest.LogCaptureFixture
) -> None:
    config = load.build(
        hf_folder,
        tmp_path / "engine",
        quant_config=quantisation(quant_algo="FP8"),
        calib_config=calibration(tmp_path / "texts"),
    )
    assert not config["build_config"]["plugin_config"]["use_fp8_context_fmha"]
    assert "FP8 Context FMHA is disabled" in library_log.text


def test_fp8_cache_of_a_plain_checkpoint_switches_paged_attention_off(
    load: Loader, hf_folder: Path, tmp_path: Path, library_log: pytest.LogCaptureFixture
) -> None:
    config = load.build(
        hf_folder,
        tmp_path / "engine",
        quant_config=quantisation(kv_cache_quant_algo="FP8"),
        calib_config=calibration(tmp_path / "texts"),
    )
    assert not config["build_config"]["plugin_config"]["use_paged_context_fmha"]
    assert "Paged Context FMHA is disabled" in library_log.text


def test_nvfp4_brings_its_gemm_plugin(load: Loader, hf_folder: Path, tmp_path: Path) -> None:
    config = load.build(
        hf_folder,
        tmp_path / "engine",
        quant_config=quantisation(quant_algo="NVFP4"),
        calib_config=calibration(tmp_path / "texts"),
    )
    assert config["build_config"]["plugin_config"]["gemm_plugin"] == "nvfp4"


def test_nvfp4_is_refused_before_blackwell(
    double_root: Path, hf_folder: Path, tmp_path: Path
) -> None:
    with loader_on(double_root, cards=[RTX_4090]) as load:
        with pytest.raises(RuntimeError, match="FP4 Gemm not supported before Blackwell"):
            load(
                hf_folder,
                quant_config=quantisation(quant_algo="NVFP4"),
                calib_config=calibration(tmp_path),
            )


def test_weight_only_is_refused_on_sm_100_and_let_through_on_sm_120(
    double_root: Path, hf_folder: Path, tmp_path: Path
) -> None:
    with loader_on(double_root, cards=[B200]) as load:
        with pytest.raises(NotImplementedError, match="W8A16 is not supported on SM 100"):
            load(hf_folder, quant_config=quantisation(quant_algo="W8A16"))
    with loader_on(double_root) as load:
        plain = quantisation(quant_algo="W8A16")
        config = load.build(hf_folder, tmp_path / "engine", quant_config=plain)
    plugins = config["build_config"]["plugin_config"]
    assert plugins["weight_only_quant_matmul_plugin"] == "bfloat16"


# Calibration


def test_default_data_set_needs_a_network(load: Loader, hf_folder: Path) -> None:
    with pytest.raises(ConnectionError, match="cnn_dailymail"):
        load(hf_folder, quant_config=quantisation(quant_algo="FP8"))


def test_folder_with_a_magic_name_is_taken_for_a_download(
    load: Loader, hf_folder: Path, tmp_path: Path
) -> None:
    fp8 = quantisation(quant_algo="FP8")
    with pytest.raises(ConnectionError):
        load(hf_folder, quant_config=fp8, calib_config=calibration(tmp_path / "my_pileval"))


def test_data_set_is_a_folder_with_a_text_column(
    load: Loader, hf_folder: Path, tmp_path: Path
) -> None:
    from tensorrt_llm.llmapi import CalibConfig

    fp8 = quantisation(quant_algo="FP8")
    other = write_texts(tmp_path / "other", column="article")
    with pytest.raises(KeyError, match="Column text not in the dataset"):
        load(hf_folder, quant_config=fp8, calib_config=CalibConfig(calib_dataset=str(other)))
    file = str(other / "train.jsonl")
    with pytest.raises(NotImplementedError, match="Unsupported dataset name"):
        load(hf_folder, quant_config=fp8, calib_config=CalibConfig(calib_dataset=file))


def test_tokenizer_without_a_pad_token_cannot_calibrate(load: Loader, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json")
    config.pop("pad_token", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    fp8 = quantisation(quant_algo="FP8")
    with pytest.raises(AssertionError, match="Pad token"):
        load(tmp_path, quant_config=fp8, calib_config=calibration(tmp_path / "texts"))


def test_plain_weights_with_a_quantised_cache_are_calibrated_too(double: Path) -> None:
    assert quantisation(quant_algo="W8A16", kv_cache_quant_algo="FP8")._requires_calibration
    assert not quantisation(quant_algo="W8A16")._requires_calibration
    assert not quantisation()._requires_calibration


# Checkpoints that are quantised already


def write_modelopt(folder: Path, **quantization: Any) -> Path:
    write_checkpoint(folder)
    text = json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
    (folder / "hf_quant_config.json").write_text(text, encoding="utf-8")
    return folder


def test_modelopt_checkpoint_needs_no_calibration(load: Loader, tmp_path: Path) -> None:
    write_modelopt(tmp_path, quant_algo="FP8", exclude_modules=["lm_head"])
    config = load.build(
        tmp_path, tmp_path / "engine", quant_config=quantisation(kv_cache_quant_algo="FP8")
    )
    quantization = config["pretrained_config"]["quantization"]
    assert quantization["quant_algo"] == quantization["kv_cache_quant_algo"] == "FP8"
    assert quantization["exclude_modules"] == ["lm_head"]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"quant_algo": "FP8"}, {"quant_algo": "NVFP4"}),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, {"kv_cache_quant_algo": "NVFP4"}),
        ({"quant_algo": "FP8"}, {"kv_cache_quant_algo": "INT8"}),
        ({}, {}),
    ],
    ids=["algorithm", "cache", "cache the file is silent about", "no algorithm"],
)
def test_conflict_with_a_modelopt_checkpoint_is_refused(
    load: Loader, tmp_path: Path, found: dict[str, str], wanted: dict[str, str]
) -> None:
    write_modelopt(tmp_path, **found)
    with pytest.raises(ValueError, match="quant"):
        load(tmp_path, quant_config=quantisation(**wanted))


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors", "bitsandbytes"])
def test_other_quantised_checkpoints_are_refused(load: Loader, tmp_path: Path, method: str) -> None:
    write_checkpoint(tmp_path, quantization_config={"quant_method": method})
    with pytest.raises(NotImplementedError, match="Unsupported quantization_config"):
        load(tmp_path)


# Loading


def copied(engine_dir: Path, folder: Path) -> Path:
    return Path(shutil.copytree(engine_dir, folder / "engine"))


def test_engine_of_another_gpu_is_refused(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, cards=[RTX_4090]) as load:
        with pytest.raises(RuntimeError, match="expecting compute 8.9 got compute 12.0"):
            load(engine_dir, **LIMITS)


def test_engine_of_another_tensorrt_is_refused(engine_dir: Path, tmp_path: Path) -> None:
    root = make_double_root(tmp_path, tensorrt_version="10.13.3")
    with loader_on(root) as load:
        with pytest.raises(RuntimeError, match="Version tag does not match.*\nFailed to deserial"):
            load(engine_dir, **LIMITS)


def test_plan_error_may_say_less(double_root: Path, engine_dir: Path) -> None:
    short = {"plan_error_names_both_sides": False}
    with loader_on(double_root, cards=[RTX_4090], assumptions=short) as load:
        with pytest.raises(RuntimeError, match="^Failed to deserialize cuda engine.$"):
            load(engine_dir, **LIMITS)


def test_missing_and_truncated_ranks_are_refused(
    load: Loader, engine_dir: Path, tmp_path: Path
) -> None:
    path = copied(engine_dir, tmp_path) / "rank0.engine"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RuntimeError, match="Failed to deserialize cuda engine."):
        load(path.parent, **LIMITS)
    path.unlink()
    with pytest.raises(RuntimeError, match="Error opening engine file: .*rank0.engine"):
        load(path.parent, **LIMITS)


def test_ranks_follow_the_engine(double_root: Path, hf_folder: Path, tmp_path: Path) -> None:
    with loader_on(double_root, cards=[RTX_5090] * 3) as load:
        load.build(hf_folder, tmp_path / "engine", pipeline_parallel_size=2)
        assert (tmp_path / "engine" / "rank1.engine").exists()
        loaded = load(tmp_path / "engine", **LIMITS)
        assert loaded.args.pipeline_parallel_size == 2
        text = "pp_size 3 is not consistent with the engine's pp_size 2"
        with pytest.raises(ValueError, match=text):
            load(tmp_path / "engine", pipeline_parallel_size=3, **LIMITS)


def test_engine_that_leaves_no_memory_is_refused(double_root: Path, engine_dir: Path) -> None:
    full = replace(RTX_5090, free_bytes=1000)
    with loader_on(double_root, cards=[full]) as load:
        with pytest.raises(RuntimeError, match="out of memory"):
            load(engine_dir, **LIMITS)
