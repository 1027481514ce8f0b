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
    assert re.match(r"256 +memory would hold \d\d full sequences", shown["max batch size"])
    assert re.match(r"\d\d x 4,096 tokens .*131,072 tokens", shown["largest that fits"])
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
