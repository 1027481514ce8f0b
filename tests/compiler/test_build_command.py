"""`deepinfer build` as a user meets it: the plan, the phases, and every way to be interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deepinfer.__main__ import main
from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler import build as build_module
from deepinfer.compiler import openvino, plan_cpu, tokenizer_files
from deepinfer.compiler.build import BuildResult
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.plan import make_plan
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.report import result_lines
from deepinfer.errors import BuildError
from deepinfer.manifest import EngineFolder, find_damage, read_engine
from tests.checkpoints import TEXT, make_checkpoint
from tests.compiler.compiling import build
from tests.compiler.planning import LAPTOP, QWEN

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", dtype="bfloat16")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a few megabytes, for builds that must run into something."""
    folder = tmp_path_factory.mktemp("tiny") / "wide"
    return make_checkpoint(folder, dtype="bfloat16", vocab_padding=20_000)


@pytest.fixture(scope="module")
def built(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one engine, `llama.int8.cpu`."""
    output = tmp_path_factory.mktemp("built")
    assert build(llama, output, "--precision", "int8") == 0
    return output


@pytest.fixture
def engines(built: Path, tmp_path: Path) -> Iterator[Path]:
    output = tmp_path / "engines"
    shutil.copytree(built, output)
    yield output
    assert [path.name for path in output.iterdir()] == ["llama.int8.cpu"]
    engine = read_engine(output / "llama.int8.cpu")
    assert list(find_damage(engine, with_digests=True)) == []


def test_second_model_of_the_same_name_is_built_beside_the_first(
    llama: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engines"
    shutil.copytree(built, output)
    other = tmp_path / "other" / "llama"
    shutil.copytree(llama, other)
    before = read_engine(output / "llama.int8.cpu").manifest
    assert build(other, output, "--precision", "int8") == 0
    names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    assert len(names) == 2
    assert {read_engine(output / name).manifest.model.source for name in names} == {
        str(llama),
        str(other),
    }
    assert read_engine(output / "llama.int8.cpu").manifest == before
    assert build(other, output, "--precision", "int8") == 0  # which finds its own
    assert len(names) == len([path for path in output.iterdir() if path.name in names])


def test_engine_that_another_model_has_taken_meanwhile_is_not_replaced(
    llama: Path, built: Path, tmp_path: Path
) -> None:
    output = tmp_path / "engines"
    shutil.copytree(built, output)
    other = replace(read_checkpoint(llama), source="/elsewhere/llama")
    plan = make_plan(LAPTOP, other, BuildOptions(model=str(llama), precision="int8"))
    with pytest.raises(BuildError, match="/elsewhere/llama") as refused:
        build_module.build_engine(plan, other, output, Progress(), is_name_asked=False)
    assert str(llama) in refused.value.message and "--name" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("content", "package"),
    [(b"\n\x0e\n\x05<unk>", "sentencepiece"), (b"IQ== 0\nIg== 1\n", "tiktoken")],
    ids=["sentencepiece", "tiktoken"],
)
def test_package_that_a_tokenizer_needs_is_asked_for_before_anything_loads(
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
    content: bytes,
    package: str,
) -> None:
    checkpoint = tmp_path / "llama"
    shutil.copytree(llama, checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr(tokenizer_files, "_is_installed", lambda name: False)
    monkeypatch.setattr(openvino, "_load", lambda *_: pytest.fail("the weights were loaded"))
    assert build(checkpoint, tmp_path / "engines", "--precision", "int8") != 0
    shown = capsys.readouterr().err
    assert "tokenizer.model" in shown and "pip install" in shown and package in shown


def test_tokenizer_model_of_sentencepiece_is_converted(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(TEXT * 20), encoding="utf-8")
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(checkpoint / "tokenizer"),
        vocab_size=150,
        model_type="bpe",
        character_coverage=1.0,
        minloglevel=2,
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "LlamaTokenizer", **named}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    read = read_checkpoint(checkpoint)
    tokenizer_files.check_converter(read)
    tokenizer_files.write_tokenizer(read, tmp_path / "tokenizer", trust_remote_code=False)
    model = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    converted = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    for text in TEXT:
        assert converted.encode(text, add_special_tokens=False).ids == model.encode(text)


def created_at(engine: EngineFolder) -> float:
    return (engine.path / "engine.json").stat().st_mtime_ns


def test_plan_is_printed_then_phases_then_what_it_took(
    llama: Path, tmp_path: Path, capsys: Output
) -> None:
    capsys.readouterr()
    assert build(llama, tmp_path, "--precision", "int8", "--name", "mine") == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert re.fullmatch(r"PLAN +WHY", lines[0])
    assert any(re.fullmatch(r"precision +int8 +as asked", line) for line in lines)
    assert any(re.fullmatch(r"max seq len +512 +all of the model's positions", x) for x in lines)
    size = r"(\d+|\d+\.\d) [KMG]iB"
    assert re.fullmatch(
        rf"built `{tmp_path}/mine` in \d+\.\d s, peak memory {size}, {size} on disk", lines[-2]
    )
    assert lines[-1] == f"serve it: deepinfer serve --engine-dir {tmp_path}/mine"
    phases = [line.split()[0] for line in shown.err.splitlines()]
    assert phases == [
        name for name in ("load", "export", "compress", "write", "seal") for _ in "ab"
    ]


def test_dry_run_writes_nothing(llama: Path, tmp_path: Path, capsys: Output) -> None:
    assert build(llama, tmp_path / "engines", "--dry-run") == 0
    assert "memory to serve" in capsys.readouterr().out
    assert not (tmp_path / "engines").exists()


def test_dry_run_as_json(llama: Path, tmp_path: Path, capsys: Output) -> None:
    assert build(llama, tmp_path, "--dry-run", "--json", "--precision", "int4") == 0
    shown = capsys.readouterr()
    plan = json.loads(shown.out)
    assert (plan["precision"], plan["group_size"], plan["name"]) == ("int4", 64, "llama.int4.cpu")
    assert all(choice["reason"] for choice in plan["choices"])
    assert shown.err == ""


BLOCKED = ("torch", "transformers", "openvino", "optimum", "nncf", "safetensors", "numpy")
PLAN_WITHOUT_TORCH = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from deepinfer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_dry_run_needs_no_torch_and_no_weights_in_memory(llama: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(llama, tmp_path / "checkpoint"))
    path = checkpoint / "model.safetensors"
    header_bytes = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_bytes])
    # Two gigabytes of weights, as a hole in the file, for a process that may hold one.
    header["lm_head.weight"]["data_offsets"][1] = end = 2 * 10**9
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    done = subprocess.run(
        [sys.executable, "-c", PLAN_WITHOUT_TORCH, "build", "--model", checkpoint, "--dry-run"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "memory to serve" in done.stdout


def test_up_to_date_engine_is_found_without_torch(llama: Path, engines: Path) -> None:
    before = created_at(read_engine(engines / "llama.int8.cpu"))
    arguments = ["build", "--model", llama, "--output", engines, "--precision", "int8"]
    done = subprocess.run(
        [sys.executable, "-c", PLAN_WITHOUT_TORCH, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "is up to date: the same plan and the same checkpoint" in done.stdout
    assert created_at(read_engine(engines / "llama.int8.cpu")) == before


def test_up_to_date_as_json(llama: Path, engines: Path, capsys: Output) -> None:
    assert build(llama, engines, "--precision", "int8", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "up to date"
    assert result["path"] == str(engines / "llama.int8.cpu")
    assert result["engine"]["build"]["plan_digest"] == result["plan"]["digest"]


def test_force_builds_again(llama: Path, engines: Path, capsys: Output) -> None:
    before = created_at(read_engine(engines / "llama.int8.cpu"))
    assert build(llama, engines, "--precision", "int8", "--force") == 0
    assert "built `" in capsys.readouterr().out
    assert created_at(read_engine(engines / "llama.int8.cpu")) > before


def test_other_options_build_again(llama: Path, engines: Path, capsys: Output) -> None:
    assert build(llama, engines, "--precision", "int8", "--max-batch-size", "2") == 0
    assert "built `" in capsys.readouterr().out
    assert read_engine(engines / "llama.int8.cpu").manifest.limits.max_batch_size == 2


def test_engine_that_lost_a_file_is_built_again(llama: Path, engines: Path, capsys: Output) -> None:
    (engines / "llama.int8.cpu" / "payload" / "openvino_model.bin").unlink()
    assert build(llama, engines, "--precision", "int8") == 0
    assert "built `" in capsys.readouterr().out


def test_changed_checkpoint_builds_again(llama: Path, tmp_path: Path, capsys: Output) -> None:
    checkpoint = Path(shutil.copytree(llama, tmp_path / "checkpoint"))
    assert build(checkpoint, tmp_path / "engines", "--precision", "int8") == 0
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    capsys.readouterr()
    assert build(checkpoint, tmp_path / "engines", "--precision", "int8") == 0
    assert "built `" in capsys.readouterr().out


def test_recipe_is_followed(llama: Path, tmp_path: Path, capsys: Output) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {llama}\nprecision: int4\nmax_seq_len: 128\n", encoding="utf-8")
    assert main(["build", "--recipe", str(recipe), "--max-seq-len", "64", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"max seq len +64 +as asked", shown)
    assert re.search(r"precision +int4 +as asked", shown)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--precision", "fp8"], "error: `--precision fp8` needs GPU tensor cores"),
        (["--precision", "int9"], "error: `precision` must be "),
        (["--target", "b200"], "error: this machine has no NVIDIA B200: an engine is built on"),
        (["--target", "rtx9999"], "error: there is no target `rtx9999`"),
        (["--backend", "tensorrt-llm"], "error: `--backend tensorrt-llm` compiles for GPUs"),
        (["--max-seq-len", "4096"], "error: `--max-seq-len 4096` is beyond the model's 512 pos"),
        (["--group-size", "48", "--precision", "int4"], "error: group size 48 does not divide"),
        (["--max-batch-size", "9000000"], "error: the engine needs"),
        (["--name", "a/b"], "error: `a/b` cannot be the name of an engine"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_impossible_options_are_one_line_and_a_hint(
    llama: Path, tmp_path: Path, capsys: Output, flags: list[str], message: str
) -> None:
    assert build(llama, tmp_path / "engines", *flags) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0].startswith(message)
    assert len(shown.err.splitlines()) <= 2
    assert not (tmp_path / "engines").exists()


def test_folder_that_is_not_an_engine_is_left_alone(
    llama: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert build(llama, tmp_path, "--name", "thesis") == 1
    assert "is not an engine; it will not be overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.tex"]


def test_failure_of_a_library_is_one_line_and_keeps_the_old_engine(
    llama: Path, engines: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first line\n  second line")

    monkeypatch.setattr("openvino.save_model", fail)
    assert build(llama, engines, "--precision", "int8", "--force") == 1
    error = capsys.readouterr().err
    assert "error: the build of `llama.int8.cpu` failed: first line second line\n" in error


def test_missing_library_is_named_before_anything_is_done(
    llama: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "LIBRARIES", ("openvino", "no-such-library"))
    assert build(llama, tmp_path / "engines") == 1
    error = capsys.readouterr().err
    assert "error: compiling for the CPU needs no-such-library, which is not installed" in error
    assert "hint: pip install 'deepinfer[openvino-build]'" in error
    assert not (tmp_path / "engines").exists()


def test_weights_that_were_not_compressed_are_noticed(
    llama: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nncf.compress_weights", lambda model, **_: model)
    assert build(llama, tmp_path / "engines", "--precision", "int8") == 1
    assert "weights became int8" in capsys.readouterr().err


def start_build(checkpoint: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deepinfer", "build", "--model", str(checkpoint)]
    return subprocess.Popen(
        [*command, "--output", str(output), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_phase(process: subprocess.Popen[str], phase: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(phase):
            return
    raise AssertionError(f"the build ended before it came to {phase}")


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_interrupted_build_leaves_the_old_engine_and_no_litter_after_the_next(
    llama: Path, engines: Path, number: signal.Signals, exit_code: int
) -> None:
    with start_build(llama, engines, "--precision", "int8", "--force") as process:
        wait_for_phase(process, "export")
        process.send_signal(number)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == exit_code
    litter = [".llama.int8.cpu.building"] if number == signal.SIGKILL else []
    assert sorted(path.name for path in engines.iterdir()) == [*litter, "llama.int8.cpu"]
    assert build(llama, engines, "--precision", "int8") == 0


def test_second_build_of_a_name_waits_and_finds_it_up_to_date(
    llama: Path, tmp_path: Path, capsys: Output
) -> None:
    flags = ["--precision", "int8"]
    with start_build(llama, tmp_path, *flags) as first:
        wait_for_phase(first, "load")
        assert build(llama, tmp_path, *flags) == 0
        shown = capsys.readouterr()
        assert "waiting for another build of `llama.int8.cpu` to finish" in shown.err
        assert "is up to date" in shown.out
        assert first.stderr is not None
        first.stderr.read()
    assert first.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["llama.int8.cpu"]


BUILD_WITH_SMALL_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from deepinfer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_file_that_cannot_grow_is_a_full_disk(wide: Path, tmp_path: Path) -> None:
    flags = ["--model", wide, "--output", tmp_path / "engines", "--precision", "bf16"]
    done = subprocess.run(
        [sys.executable, "-c", BUILD_WITH_SMALL_FILES, "build", *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"error: the disk is full: `{tmp_path}/engines` cannot hold the build" in done.stderr
    assert list((tmp_path / "engines").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["4m", "8m"], ids=["while-exporting", "while-compressing"])
def test_full_disk_leaves_nothing(
    wide: Path, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setattr(plan_cpu, "cpu_build_disk_bytes", lambda *_: 0)  # or the plan would refuse
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine lets not even root mount")
    try:
        assert build(wide, disk, "--precision", "bf16") == 1
        assert f"error: the disk is full: `{disk}` cannot hold" in capsys.readouterr().err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_payload_that_is_cut_short_is_noticed(built: Path, tmp_path: Path, llama: Path) -> None:
    checkpoint = read_checkpoint(llama)
    plan = make_plan(LAPTOP, checkpoint, BuildOptions(model=str(llama), precision="int8"))
    payload = Path(shutil.copytree(built / "llama.int8.cpu" / "payload", tmp_path / "payload"))
    openvino.check_payload(plan, checkpoint, payload / "openvino_model.xml")
    weights = payload / "openvino_model.bin"
    os.truncate(weights, weights.stat().st_size - 100)
    with pytest.raises(BuildError, match="are cut short"):
        openvino.check_payload(plan, checkpoint, payload / "openvino_model.xml")


def test_engine_that_was_fitted_into_other_memory_is_up_to_date_and_says_so(engines: Path) -> None:
    engine = read_engine(engines / "llama.int8.cpu")
    result = BuildResult(engine, was_up_to_date=True)
    planned = make_plan(LAPTOP, QWEN, BuildOptions(model=QWEN.id, precision="int8"))
    same = planned.model_copy(update={"limits": engine.manifest.limits})
    assert "--force" not in result_lines(same, result)[0]
    other = engine.manifest.limits.model_copy(update={"max_seq_len": 300})
    line = result_lines(planned.model_copy(update={"limits": other}), result)[0]
    assert f"for {engine.manifest.limits.max_seq_len:,} tokens" in line
    assert "`--force`" in line
