"""`deepinfer build --dry-run` for GPUs, on a machine that has none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deepinfer import device
from deepinfer.__main__ import main
from tests.checkpoints import make_checkpoint
from tests.compiler.compiling import build
from tests.compiler.planning import CONFIGS

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", dtype="bfloat16")


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "read_gpus", lambda: ())


def rows(shown: str) -> dict[str, str]:
    """The table by its first column; of several warnings the last."""
    lines = (re.split(r"  +", line, maxsplit=1) for line in shown.splitlines()[1:])
    return {parts[0]: parts[1] for parts in lines}


def test_tiny_llama_is_planned_for_an_rtx_5090(llama: Path, tmp_path: Path, capsys: Output) -> None:
    assert build(llama, tmp_path / "engines", "--target", "rtx5090", "--dry-run") == 0
    shown = rows(capsys.readouterr().out)
    assert shown["engine"] == "llama.fp8.sm120"
    assert shown["target"].startswith("gpu (NVIDIA GeForce RTX 5090)")
    assert re.match(r"fp8 +sm_120 has FP8 tensor cores", shown["precision"])
    assert re.match(r"fp8 +half of bf16", shown["KV cache precision"])
    assert "this machine has no NVIDIA GeForce RTX 5090" in shown["warning"]
    assert not (tmp_path / "engines").exists()


def test_eight_billion_parameters_are_planned_from_a_config_alone(capsys: Output) -> None:
    model = CONFIGS / "llama-3.1-8b-instruct"
    assert main(["build", "--model", str(model), "--target", "rtx5090", "--dry-run"]) == 0
    out = capsys.readouterr().out
    shown = rows(out)
    assert "8.03B parameters" in shown["model"]
    assert shown["precision"].startswith("fp8")
    assert re.match(r"2\d GiB +weights 8\.5 GiB, .*; 28 GiB may be used", shown["memory to serve"])
    assert re.match(r"32,768 +the longest power of two", shown["max seq len"])
    assert re.match(r"256 +memory would hold \d+ full sequences", shown["max batch size"])
    assert re.match(r"\d+ x 32,768 tokens .*131,072 tokens", shown["largest that fits"])
    assert re.match(r"2\d\d tokens/s +one stream: upper bound", shown["decode, at most"])
    assert "the parameters are counted from the dimensions in config.json" in out


def test_plan_for_a_gpu_as_json(capsys: Output) -> None:
    model = CONFIGS / "qwen3-8b"
    arguments = ["build", "--model", str(model), "--target", "sm_90", "--dry-run", "--json"]
    assert main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["target"]["capability"], plan["tensorrt_llm"]["quant_algo"]) == ("sm_90", "FP8")
    assert plan["roofline"]["decode_tokens_per_s"] > 0
    assert plan["memory"]["longest_seq_len"] == 40_960


def test_build_for_a_gpu_that_is_not_here_is_refused_before_the_model_is_read(
    tmp_path: Path, capsys: Output
) -> None:
    assert build(tmp_path / "none", tmp_path / "engines", "--target", "rtx5090") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: this machine has no NVIDIA GeForce RTX 5090")
    assert "`--dry-run`" in hint


def test_build_without_weights_is_refused(tmp_path: Path, capsys: Output) -> None:
    assert build(CONFIGS / "qwen3-8b", tmp_path / "engines", "--target", "cpu") == 1
    assert "has neither model.safetensors" in capsys.readouterr().err


def plan_at_the_terminal(name: str, *flags: str) -> int:
    return main(["build", "--model", str(CONFIGS / name), "--dry-run", *flags])


def test_architecture_is_judged_before_dimensions_that_are_missing(capsys: Output) -> None:
    assert plan_at_the_terminal("gemma-3-12b-it", "--target", "rtx5090") == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert "no compiled engine for Gemma3ForConditionalGeneration; its PyTorch runtime" in error
    assert hint.startswith("hint: supported: LlamaForCausalLM")
    assert plan_at_the_terminal("gemma-3-12b-it", "--target", "cpu") == 1
    assert "Gemma3ForConditionalGeneration is not supported" in capsys.readouterr().err


def test_nested_text_model_is_refused_by_its_architecture(tmp_path: Path, capsys: Output) -> None:
    text = json.loads((CONFIGS / "qwen3-8b" / "config.json").read_text(encoding="utf-8"))
    config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    arguments = ["build", "--model", str(tmp_path), "--target", "5090", "--dry-run"]
    assert main(arguments) == 1
    assert "no compiled engine for Qwen3_5ForConditionalGeneration" in capsys.readouterr().err


def test_dimension_that_a_supported_model_lacks_is_named(tmp_path: Path, capsys: Output) -> None:
    config = json.loads((CONFIGS / "qwen3-8b" / "config.json").read_text(encoding="utf-8"))
    del config["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["build", "--model", str(tmp_path), "--target", "5090", "--dry-run"]) == 1
    assert "has no `num_hidden_layers`" in capsys.readouterr().err


def test_plan_says_what_the_other_precisions_would_give(capsys: Output) -> None:
    assert plan_at_the_terminal("qwen3-32b", "--target", "rtx5090") == 0
    shown = rows(capsys.readouterr().out)
    assert shown["precision"].startswith("nvfp4")
    assert "the engine needs" in shown["alternative fp8"]
    assert shown["alternative bf16"]
    assert re.match(r"\d+ GiB +of the host that builds", shown["RAM to build"])
    assert plan_at_the_terminal("qwen3-32b", "--target", "rtx5090", "--precision", "nvfp4") == 0
    assert "alternative fp8" not in rows(capsys.readouterr().out)


def test_comparison_has_a_row_for_each_precision_of_the_card(capsys: Output) -> None:
    model = str(CONFIGS / "mistral-small-24b-instruct-2501")
    assert main(["build", "--model", model, "--target", "rtx5090", "--compare"]) == 0
    shown = rows(capsys.readouterr().out)
    assert list(shown) == ["nvfp4", "fp8", "bf16"]
    assert re.match(r"fp8 +\d+ GiB +14 GiB +\d+ x 16,384 tokens", shown["nvfp4"])
    assert shown["nvfp4"].endswith("chosen by the plan")
    assert re.match(r"fp8 +\d+ GiB +23 GiB +\d+ x 4,096 tokens", shown["fp8"])
    assert "the engine needs 48 GiB" in shown["bf16"]
    assert main(["build", "--model", model, "--target", "rtx4090", "--compare"]) == 0
    assert list(rows(capsys.readouterr().out)) == ["fp8", "bf16"]


def test_comparison_as_json_has_the_numbers(capsys: Output) -> None:
    arguments = ["--target", "rtx5090", "--compare", "--json"]
    assert main(["build", "--model", str(CONFIGS / "qwen3-14b"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model_id"], found["chosen"]) == ("qwen3-14b", "fp8")
    assert [one["precision"] for one in found["precisions"]] == ["nvfp4", "fp8", "bf16"]
    nvfp4, fp8, bf16 = found["precisions"]
    assert fp8["memory"]["weight_bytes"] > nvfp4["memory"]["weight_bytes"]
    assert fp8["limits"]["max_seq_len"] >= 4096
    assert fp8["roofline"]["decode_tokens_per_s"] > 0
    assert bf16["obstacle"] and bf16["memory"] is None


def test_comparison_where_nothing_fits_still_says_why(capsys: Output) -> None:
    arguments = ["--target", "rtx5070", "--compare", "--json"]
    assert main(["build", "--model", str(CONFIGS / "qwen3-32b"), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] is None
    assert all("the engine needs" in one["obstacle"] for one in found["precisions"])


def test_comparison_for_a_cpu(llama: Path, capsys: Output) -> None:
    assert main(["build", "--model", str(llama), "--target", "cpu", "--compare"]) == 0
    assert {"int8", "bf16", "fp32"} <= rows(capsys.readouterr().out).keys()


def test_dry_run_is_never_refused_for_lack_of_room(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    monkeypatch.setattr("deepinfer.compiler.staging.free_disk_bytes", lambda path: 1000)
    arguments = ("--target", "cpu")
    assert build(llama, tmp_path / "engines", *arguments, "--dry-run") == 0
    assert "1000 B are free" in capsys.readouterr().out
    assert build(llama, tmp_path / "engines", *arguments) == 1
    assert "of disk; 1000 B are free" in capsys.readouterr().err
    assert not (tmp_path / "engines").exists()
