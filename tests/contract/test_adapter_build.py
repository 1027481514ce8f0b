"""Builds on the double that end well in more than one rank, and builds that must keep nothing."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepinfer.__main__ import main
from deepinfer.compiler import build as build_module
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
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile here, where a test can change the library."""
    monkeypatch.setattr(build_module, "COMPILED_IN_CHILD", ())


@pytest.fixture
def two_cards(double_root: Path) -> Iterator[None]:
    with installed_double(double_root, cards=[RTX_5090, RTX_5090]):
        yield


def build(checkpoint: Path, output: Path, *flags: str) -> int:
    options = ["--model", str(checkpoint), "--output", str(output), "--name", "engine"]
    return main(["build", *options, "--max-seq-len", "128", *flags])


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


@pytest.mark.usefixtures("double", "in_this_process")
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


@pytest.mark.usefixtures("double", "in_this_process")
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


def with_code(folder: Path, marker: Path) -> Path:
    """A checkpoint whose configuration names Python code that leaves `marker` when it is run."""
    checkpoint = make_checkpoint(folder, dtype="bfloat16")
    path = checkpoint / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    path.write_text(json.dumps(config | {"auto_map": auto_map}), encoding="utf-8")
    (checkpoint / "configuration_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        f"Path({str(marker)!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n"
        "    pass\n"
    )
    return checkpoint


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("is_trusted", [False, True])
def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(
    tmp_path: Path, is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    marker = tmp_path / "marker"
    checkpoint = with_code(tmp_path / "checkpoint", marker)
    flags = ["--trust-remote-code"] if is_trusted else []
    assert build(checkpoint, tmp_path / "engines", "--target", "rtx5090", *flags) == 0
    assert marker.exists() is is_trusted
    tokenizer_dir = tmp_path / "engines" / "engine" / "tokenizer"
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tokenizer_dir / name).read_text(encoding="utf-8"))


@pytest.mark.usefixtures("double")
def test_words_in_the_path_do_not_mislead_calibration(llama: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "prompts" / "vila"
    checkpoint.parent.mkdir()
    checkpoint.symlink_to(llama)
    assert build(checkpoint, tmp_path / "prompts" / "engines", "--target", "rtx5090") == 0


@pytest.mark.parametrize(
    ("ending", "words"),
    [("SIGABRT", ["crashed with SIGABRT"]), ("SIGKILL", ["killed by the system", "memory"])],
)
def test_compiler_that_dies_ends_in_one_error_with_its_last_words(
    double_root: Path,
    llama: Path,
    tmp_path: Path,
    ending: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with installed_double(double_root, build_ending=ending):
        assert build(llama, tmp_path, "--target", "rtx5090") == 1
    said = capsys.readouterr().err
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert all(word in error for word in words)
    assert said.count("\nhint: ") == 1 and "Traceback" not in said
    assert "  | [TensorRT-LLM][ERROR] tensorrt_llm::common::TllmException" in said
    assert list(tmp_path.iterdir()) == [], "nothing half-built is left"


@pytest.mark.usefixtures("double")
def test_what_the_library_logs_is_shown_when_a_build_fails(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(llama, broken)
    path = broken / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["eos_token"], config["pad_token"]  # calibration cannot do without either
    path.write_text(json.dumps(config), encoding="utf-8")
    assert build(broken, tmp_path / "engines", "--target", "rtx5090") == 1
    said = capfd.readouterr().err
    assert "  | [TRT-LLM] [INFO] Using LLM with TensorRT backend" in said
    assert "Pad token for" in next(line for line in said.splitlines() if "error: " in line)
    assert "all output of the libraries: " in said


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("is_verbose", [False, True])
def test_libraries_output_is_shown_at_verbose_only(
    llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], is_verbose: bool
) -> None:
    arguments = ["build", "--model", str(llama), "--output", str(tmp_path), "--json"]
    limits = ["--target", "rtx5090", "--max-seq-len", "128"]
    assert main([*(["--verbose"] if is_verbose else []), *arguments, *limits]) == 0
    shown = capfd.readouterr()
    assert ("[TRT-LLM] [INFO] Using LLM with TensorRT backend" in shown.err) is is_verbose
    assert json.loads(shown.out)["status"] == "built"


@pytest.mark.usefixtures("double")
def test_warning_about_accuracy_is_shown_after_a_build_that_went_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_checkpoint(tmp_path / "qwen2", "qwen2", dtype="bfloat16")
    flags = ("--target", "rtx5090", "--precision", "fp8", "--kv-cache-precision", "fp8")
    assert build(checkpoint, tmp_path / "engines", *flags) == 0
    (warning,) = (
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")
    )
    assert "Large KV activation detected" in warning


@pytest.mark.usefixtures("double")
def test_cache_that_cannot_be_written_keeps_no_timings_and_ends_no_build(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the log goes then
    assert build(llama, tmp_path / "engines", "--target", "rtx5090") == 0
    assert not [name for name in manifest_of(tmp_path / "engines").files if "timing" in name]
