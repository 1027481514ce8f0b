"""Builds on the double that end well in more than one rank, and builds that must keep nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepinfer.__main__ import main
from deepinfer.compiler.tensorrt_llm import check_smoke_answer
from deepinfer.errors import BuildError
from deepinfer.manifest import EngineManifest, read_engine
from tests.checkpoints import make_checkpoint
from tests.contract.double import toy_model
from tests.contract.installing import RTX_5090, installed_double


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), dtype="bfloat16")


@pytest.fixture
def two_cards(double_root: Path) -> Iterator[None]:
    with installed_double(double_root, cards=[RTX_5090, RTX_5090]):
        yield


def build(checkpoint: Path, output: Path, *flags: str) -> int:
    wishes = ["--model", str(checkpoint), "--output", str(output), "--name", "engine"]
    return main(["build", *wishes, "--max-seq-len", "128", *flags])


def manifest_of(output: Path) -> EngineManifest:
    return read_engine(output / "engine").manifest


def payload_config(output: Path) -> dict[str, Any]:
    text = (output / "engine" / "payload" / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


@pytest.mark.usefixtures("two_cards")
@pytest.mark.parametrize("kind", ["pipeline", "tensor"])
def test_engine_of_two_ranks_has_both_and_the_settings_for_geforce(
    llama: Path, tmp_path: Path, kind: str
) -> None:
    assert build(llama, tmp_path, f"--{kind}-parallel-size", "2") == 0
    manifest = manifest_of(tmp_path)
    assert {"payload/rank0.engine", "payload/rank1.engine"} <= manifest.files.keys()
    assert manifest.parallelism.world_size == 2
    mapping = payload_config(tmp_path)["pretrained_config"]["mapping"]
    assert mapping[{"pipeline": "pp_size", "tensor": "tp_size"}[kind]] == 2
    assert manifest.backend.settings["NCCL_P2P_DISABLE"] == "1"
    (reason,) = (c.reason for c in manifest.build.choices if "NCCL_P2P_DISABLE" in c.value)
    assert "peer" in reason


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("precision", "quant_algo", "kv_cache"),
    [
        ("fp8", "FP8", "fp8"),
        ("bf16", None, "bf16"),
        ("fp16", None, "fp16"),
        ("nvfp4", "NVFP4", "fp8"),
    ],
)
def test_precision_is_what_the_payload_says(
    llama: Path, tmp_path: Path, precision: str, quant_algo: str | None, kv_cache: str
) -> None:
    assert build(llama, tmp_path, "--target", "rtx5090", "--precision", precision) == 0
    config = payload_config(tmp_path)
    assert config["pretrained_config"]["quantization"]["quant_algo"] == quant_algo
    plugins = config["build_config"]["plugin_config"]
    assert plugins["use_paged_context_fmha"] is True
    assert plugins["use_fp8_context_fmha"] is (quant_algo is not None)
    assert manifest_of(tmp_path).kv_cache_precision == kv_cache


@pytest.mark.usefixtures("double")
def test_engine_that_talks_nonsense_is_not_kept(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy_model, "log_probability", lambda *_: float("nan"))
    assert build(llama, tmp_path, "--target", "rtx5090") == 1
    assert "the compiled engine computes values that are not finite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert build(llama, tmp_path, "--target", "rtx5090", "--no-smoke-test") == 0


@pytest.mark.parametrize(
    ("token_ids", "log_probs", "message"),
    [
        ([], [], "generates nothing"),
        ([5, 400], [-1.0, -1.0], "token 400, which is outside the vocabulary of 384"),
        ([5, -1], [-1.0, -1.0], "token -1"),
        ([5], [float("-inf")], "not finite"),
    ],
)
def test_answer_that_cannot_be_a_models_is_refused(
    token_ids: list[int], log_probs: list[float], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        check_smoke_answer(token_ids, log_probs, vocab_size=384)


@pytest.mark.usefixtures("double")
def test_own_calibration_texts_are_read_and_bad_ones_refused(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("One paragraph of words.\n\nAnother one.\n", encoding="utf-8")
    flags = ("--target", "rtx5090", "--calib-data")
    assert build(llama, tmp_path / "engines", *flags, str(texts)) == 0
    assert build(llama, tmp_path / "engines", "--force", *flags, str(tmp_path / "gone.txt")) == 1
    assert "gone.txt" in capsys.readouterr().err
    assert manifest_of(tmp_path / "engines").precision == "fp8"


@pytest.mark.usefixtures("double")
def test_modelopt_checkpoint_builds_without_calibration(llama: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "modelopt"
    checkpoint.mkdir()
    for file in llama.iterdir():
        (checkpoint / file.name).symlink_to(file)
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (checkpoint / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
    )
    assert build(checkpoint, tmp_path / "engines", "--target", "rtx5090") == 0
    config = payload_config(tmp_path / "engines")
    assert config["pretrained_config"]["quantization"]["quant_algo"] == "FP8"
    assert "calibration" not in {c.name for c in manifest_of(tmp_path / "engines").build.choices}


@pytest.mark.usefixtures("double")
def test_library_that_builds_something_else_is_found_out(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorrt_llm._tensorrt_engine import LLM

    save = LLM.save

    def save_another(self: Any, engine_dir: str) -> None:
        save(self, engine_dir)
        path = Path(engine_dir) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["build_config"]["max_seq_len"] = 64
        path.write_text(json.dumps(config), encoding="utf-8")

    monkeypatch.setattr(LLM, "save", save_another)
    assert build(llama, tmp_path, "--target", "rtx5090") == 1
    message = "TensorRT-LLM built `build_config.max_seq_len` as 64; the plan says 128"
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
