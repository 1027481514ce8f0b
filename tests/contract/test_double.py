"""The double's surface is the recorded one, and its arguments fail as the library's do."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.contract.double import shapes
from tests.contract.double.record import entries, message, recorded
from tests.contract.installing import (
    RTX_5090,
    TENSORRT_VERSION,
    double_environment,
    installed_double,
    make_double_root,
)
from tests.contract.loading import LIMITS, Loader, loader_on, write_checkpoint, write_code
from tests.fake_nvml import GIB, Card

EXPORTS = [
    (home, name)
    for section in ("classes", "enums", "surfaces", "errors")
    for name, item in entries(section)
    for home in item["homes"]
]
METHODS = [
    (name, method) for name, item in entries("surfaces") for method in item.get("methods", {})
]
MODELS = [name for name, item in entries("classes") if item["kind"] == "model"]


def home_of(name: str) -> Any:
    home = next(home for home, exported in EXPORTS if exported == name)
    return getattr(importlib.import_module(home), name)


@pytest.mark.parametrize(("home", "name"), EXPORTS)
def test_name_is_where_it_is_recorded(double: Path, home: str, name: str) -> None:
    exported = getattr(importlib.import_module(home), name)
    assert exported is home_of(name)
    assert exported.__name__ == name


# The defaults of TrtLlmArgs are changed by its validators; they are asked of its fields below.
@pytest.mark.parametrize("name", [name for name, _ in entries("classes") if name != "TrtLlmArgs"])
def test_fields_and_defaults_are_the_recorded_ones(double: Path, name: str) -> None:
    made = home_of(name)
    spec = dict(entries("classes"))[name]
    required = {field: "1" for field, item in spec["fields"].items() if "required" in item}
    instance = made(**required)
    for field, item in spec["fields"].items():
        if "default" in item and not (name == "SamplingParams" and field == "best_of"):
            assert vars_of(instance)[field] == shapes._default(item), field


def vars_of(instance: Any) -> dict[str, Any]:
    """Without the properties that read one field through another."""
    names = getattr(instance, "__slots__", None) or ()
    slots = {name: getattr(instance, name) for name in dict.fromkeys(names)}
    for made in type(instance).__mro__:
        slots |= {name: getattr(instance, name) for name in getattr(made, "__slots__", ())}
    return slots if not hasattr(instance, "__dict__") else instance.__dict__ | slots


def test_fields_of_the_arguments_have_the_recorded_defaults(double: Path) -> None:
    for field, item in dict(entries("classes"))["TrtLlmArgs"]["fields"].items():
        made = home_of("TrtLlmArgs").model_fields[field]
        assert made.is_required() == ("required" in item)
        if "default" in item:
            assert made.default == item["default"], field


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_signature_is_the_recorded_one(double: Path, name: str, method: str) -> None:
    made = inspect.signature(getattr(home_of(name), method))
    assert made == shapes.recorded_signature(name, method)


@pytest.mark.parametrize("name", MODELS)
def test_unknown_field_is_refused_or_dropped_as_recorded(double: Path, name: str) -> None:
    item = dict(entries("classes"))[name]
    required = {field: "1" for field, spec in item["fields"].items() if "required" in spec}
    if item["extra"] == "forbid":
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            home_of(name)(**required, no_such_field=1)
    else:
        assert not hasattr(home_of(name)(**required, no_such_field=1), "no_such_field")


def test_absent_names_are_absent(double: Path) -> None:
    for section in ("classes", "surfaces"):
        for name, item in entries(section):
            assert [gone for gone in item.get("absent", []) if hasattr(home_of(name), gone)] == []


def test_versions_are_known_without_an_import(double: Path) -> None:
    assert importlib.metadata.version("tensorrt-llm") == "1.2.1"
    assert importlib.metadata.version("tensorrt") == TENSORRT_VERSION
    assert "tensorrt_llm" not in sys.modules


def test_import_prints_the_version(double: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tensorrt
    import tensorrt_llm

    assert capsys.readouterr().out == "[TensorRT-LLM] TensorRT LLM version: 1.2.1\n"
    assert (tensorrt_llm.__version__, tensorrt.__version__) == ("1.2.1", TENSORRT_VERSION)


def test_packages_are_forgotten_afterwards(double_root: Path) -> None:
    path, before = list(sys.path), sys.modules.get("pynvml")
    with installed_double(double_root):
        import pynvml
        import tensorrt_llm  # noqa: F401

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA GeForce RTX 5090"
    assert sys.path == path and "tensorrt_llm" not in sys.modules
    assert sys.modules.get("pynvml") is before


def test_child_process_sees_the_packages_and_the_card(tmp_path: Path) -> None:
    root = make_double_root(tmp_path, tensorrt_llm_version="1.1.0")
    program = (
        "from importlib.metadata import version; import pynvml; pynvml.nvmlInit()\n"
        "from tensorrt_llm._utils import get_sm_version\n"
        "print(version('tensorrt-llm'), get_sm_version(), pynvml.nvmlDeviceGetCount())"
    )
    environment = double_environment(root, [RTX_5090, RTX_5090])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "1.1.0 120 2"


def test_model_map_holds_the_recorded_architectures(double: Path) -> None:
    from tensorrt_llm.models import MODEL_MAP

    assert {"LlamaForCausalLM", "Qwen3MoeForCausalLM"} <= set(MODEL_MAP)
    assert not set(recorded("models")["absent"]) & set(MODEL_MAP)


# Arguments


def test_unknown_keyword_is_refused_by_name(load: Loader, engine_dir: Path) -> None:
    with pytest.raises(ValueError, match="^LLM got invalid argument: max_batch$"):
        load(engine_dir, max_batch=4)


def test_later_keyword_is_refused(load: Loader, engine_dir: Path) -> None:
    with pytest.raises(ValueError, match="LLM got invalid argument: perf_metrics_max_requests"):
        load(engine_dir, perf_metrics_max_requests=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokenizer_mode": "fast"},
        {"guided_decoding_backend": "outlines"},
        {"load_format": "safetensors"},
        {"max_batch_size": "many"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_wrong_value_is_a_validation_error(
    load: Loader, engine_dir: Path, arguments: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        load(engine_dir, **arguments)


def test_wrong_enum_is_refused(double: Path) -> None:
    from tensorrt_llm.llmapi import SchedulerConfig
    from tensorrt_llm.plugin import PluginConfig

    with pytest.raises(ValidationError):
        SchedulerConfig(capacity_scheduler_policy="NO_EVICT")
    plugins = PluginConfig()
    with pytest.raises(ValidationError):
        plugins.gemm_plugin = "fp4"


def test_plugins_read_auto_as_the_base_type_and_take_words(double: Path) -> None:
    from tensorrt_llm.plugin import PluginConfig

    plugins = PluginConfig(dtype="bfloat16", context_fmha="disable", gemm_plugin="disable")
    assert plugins.gpt_attention_plugin == "bfloat16"
    assert plugins.context_fmha is False and plugins.gemm_plugin is None
    plugins.use_fp8_context_fmha = "enable"
    assert plugins.use_fp8_context_fmha is True
    assert plugins.model_dump()["gpt_attention_plugin"] == "auto"


def test_without_a_card_the_arguments_fail(double_root: Path, engine_dir: Path) -> None:
    with loader_on(double_root, cards=[]) as load:
        with pytest.raises(RuntimeError, match="No CUDA GPUs are available"):
            load(engine_dir, **LIMITS)


def test_bfloat16_needs_ampere(double_root: Path, engine_dir: Path) -> None:
    turing = Card("NVIDIA GeForce RTX 2080", 8 * GIB, 7 * GIB, (7, 5))
    with loader_on(double_root, cards=[turing]) as load:
        with pytest.raises(RuntimeError, match="Pre SM 80 GPUs do not support bfloat16"):
            load(engine_dir, dtype="bfloat16")


def test_more_ranks_than_cards_are_refused(load: Loader, hf_folder: Path) -> None:
    with pytest.raises(RuntimeError, match="^Only 1 GPUs are available, but 2 are required.$"):
        load(hf_folder, tensor_parallel_size=2)


def test_key_value_cache_type_cannot_be_chosen(load: Loader, engine_dir: Path) -> None:
    from tensorrt_llm.llmapi import KvCacheConfig

    with pytest.raises(ValidationError, match="KvCacheConfig.dtype"):
        load(engine_dir, kv_cache_config=KvCacheConfig(dtype="fp8"), **LIMITS)


def test_backend_of_a_checkpoint_is_refused(load: Loader, hf_folder: Path) -> None:
    with pytest.raises(ValueError, match="^backend tensorrt is not supported.$"):
        load(hf_folder, backend="tensorrt")


def test_other_guided_backend_is_refused_late(load: Loader, engine_dir: Path) -> None:
    with pytest.raises(ValueError, match="Unsupported guided decoding backend llguidance"):
        load(engine_dir, guided_decoding_backend="llguidance", **LIMITS)


def test_guided_decoding_without_a_tokenizer_is_refused(load: Loader, engine_dir: Path) -> None:
    guided = {"guided_decoding_backend": "xgrammar", "skip_tokenizer_init": True}
    with pytest.raises(ValueError, match="Unsupported tokenizer class"):
        load(engine_dir, **guided, **LIMITS)


def test_folder_without_a_configuration_is_refused(load: Loader, tmp_path: Path) -> None:
    text = message("no_config_json", folder=tmp_path)
    with pytest.raises(ValueError, match="Failed to infer model format") as caught:
        load(tmp_path)
    assert text in str(caught.value)


def test_unknown_architecture_is_refused(load: Loader, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, architectures=["NewForCausalLM"])
    with pytest.raises(ValueError, match="Inferred model format .*HF, but failed .*NewForCausal"):
        load(tmp_path)


def test_limits_above_those_of_the_build_are_clamped_but_not_the_lengths(
    load: Loader, hf_folder: Path
) -> None:
    config = load.build_config(**LIMITS)
    built = load(hf_folder, build_config=config, max_batch_size=9, max_seq_len=99)
    assert built.args.max_batch_size == LIMITS["max_batch_size"]
    assert built.args.max_num_tokens == LIMITS["max_num_tokens"]
    assert built.args.max_seq_len == 99


def test_engine_loaded_without_limits_gets_the_library_s_default(
    load: Loader, engine_dir: Path
) -> None:
    loaded = load(engine_dir)
    assert loaded._executor_config.max_num_tokens == 8192
    assert loaded._executor_config.max_batch_size == LIMITS["max_batch_size"]
    assert loaded.received_keywords == {}
    explicit = load(engine_dir, **LIMITS)
    assert explicit.received_keywords == LIMITS
    for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width"):
        assert getattr(explicit._executor_config, name) == LIMITS[name]


def test_environment_is_set_first(
    load: Loader, engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    load(engine_dir, env_overrides={"NCCL_P2P_DISABLE": "1"}, **LIMITS)
    assert os.environ["NCCL_P2P_DISABLE"] == "1"


def test_object_cannot_be_pickled(llm: Any) -> None:
    with pytest.raises(RuntimeError, match="LLM object can not be pickled."):
        pickle.dumps(llm)


def test_tokenizer_of_the_engine_that_does_not_load_is_only_a_warning(
    load: Loader, engine_dir: Path, tmp_path: Path, library_log: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "engine"
    shutil.copytree(engine_dir, bare, ignore=shutil.ignore_patterns("tokenizer.json"))
    assert load(bare, **LIMITS).tokenizer is None
    assert "Failed to load tokenizer from" in library_log.text
    with pytest.raises(Exception, match="No such file"):
        load(engine_dir, tokenizer=str(tmp_path), **LIMITS)


def test_workers_have_the_environment_in_which_the_package_was_imported(
    double_root: Path, engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_P2P_DISABLE", "0")
    with loader_on(double_root) as load:
        llm = load(engine_dir, env_overrides={"NCCL_P2P_DISABLE": "1", "TLLM_X": "2"}, **LIMITS)
        monkeypatch.delenv("TLLM_X")
        assert llm.worker_environment["NCCL_P2P_DISABLE"] == "0"
        assert llm.worker_environment["TLLM_X"] == "2"


def test_code_that_an_engine_names_is_run_and_that_of_a_tokenizer_if_trusted(
    load: Loader, engine_dir: Path, tmp_path: Path
) -> None:
    folder, marks = tmp_path / "engine", tmp_path / "marks"
    shutil.copytree(engine_dir, folder)
    write_code(folder, "AutoConfig", marks)
    with pytest.raises(ValueError, match="contains custom code"):
        write_code(folder, "AutoTokenizer", marks)
        load(engine_dir, tokenizer=str(folder), **LIMITS)
    load(engine_dir, tokenizer=str(folder), trust_remote_code=True, **LIMITS)
    assert marks.read_text(encoding="utf-8") == "AutoTokenizer "
    load(folder, tokenizer=str(engine_dir), **LIMITS)
    assert marks.read_text(encoding="utf-8") == "AutoTokenizer AutoConfig "
