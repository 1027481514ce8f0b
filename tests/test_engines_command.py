"""`deepinfer engines` on real engine folders, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from deepinfer.__main__ import main
from deepinfer.commands.engines import engines
from deepinfer.config import EngineSection
from deepinfer.manifest import Choice, read_engine, write_manifest
from tests.engines import make_simulated_engine

REASON = "the lowest precision that costs less than 1% perplexity"


@pytest.fixture
def engine_dir(tmp_path: Path) -> Path:
    """Two engines, a build in progress and a file that belongs to neither."""
    for name in ("llama", "qwen"):
        (tmp_path / name / "payload").mkdir(parents=True)
        (tmp_path / name / "payload" / "model.bin").write_bytes(name.encode() * 1000)
        make_simulated_engine(tmp_path / name, name=name, model_id=f"test/{name}")
    (tmp_path / ".building-phi").mkdir()
    (tmp_path / "README.md").write_text("what this folder is")
    return tmp_path


def run(engine_dir: Path, *arguments: str) -> int:
    return main(["engines", *arguments, "--engine-dir", str(engine_dir)])


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_list_prints_one_aligned_line_for_each_engine(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine_dir, "list") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert columns(header)[:3] == ["NAME", "BACKEND", "PRECISION"]
    assert [columns(line)[:3] for line in lines] == [
        ["llama", "simulated", "fp32"],
        ["qwen", "simulated", "fp32"],
    ]
    assert len({line.index("simulated") for line in lines} | {header.index("BACKEND")}) == 1
    assert [line for line in lines if line != line.rstrip()] == []


def test_piped_list_has_no_colour_even_when_colour_is_forced(
    engine_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    assert run(engine_dir, "list") == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert len(output.splitlines()) == 3


def test_name_stays_whole_on_a_narrow_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "llama-3.1-8b-instruct.fp8.sm120"
    make_simulated_engine(tmp_path / name, name=name)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(tmp_path, "list") == 0
    header, line = capfd.readouterr().out.splitlines()
    assert columns(line)[:3] == [name, "simulated", "fp32"]
    assert columns(line)[-1] == "test/simulated"


def test_list_as_json_has_the_whole_manifest(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine_dir, "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [engine["name"] for engine in listed] == ["llama", "qwen"]
    assert listed[0]["path"] == str(engine_dir / "llama")
    assert listed[0]["size_bytes"] == 5000
    assert listed[0]["limits"]["max_seq_len"] == 512


def test_list_of_an_empty_folder_says_how_to_make_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "list") == 0
    assert "`deepinfer build --model sample`" in capsys.readouterr().out
    assert run(tmp_path, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_of_a_missing_folder_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "nowhere", "list") == 1
    assert "nowhere` does not exist\nhint: " in capsys.readouterr().err


def test_unreadable_engine_hides_no_other(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine_dir / "llama" / "engine.json").write_text("{")
    assert run(engine_dir, "list") == 1
    output = capsys.readouterr()
    assert "qwen" in output.out
    assert output.err.startswith(f"error: `{engine_dir}/llama/engine.json` is damaged")
    assert run(engine_dir, "inspect", "qwen") == 0


def test_one_engine_may_stand_for_a_folder_of_them(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine_dir / "qwen", "list", "--json") == 0
    assert [engine["name"] for engine in json.loads(capsys.readouterr().out)] == ["qwen"]


def test_inspect_shows_sizes_precision_and_reasons(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_engine(engine_dir / "llama").manifest
    choice = Choice(name="precision", value="int8", reason=REASON)
    build = manifest.build.model_copy(update={"choices": (choice,)})
    write_manifest(engine_dir / "llama", manifest.model_copy(update={"build": build}))
    assert run(engine_dir, "inspect", "llama") == 0
    lines = [columns(line) for line in capsys.readouterr().out.splitlines()]
    assert ["precision", "fp32"] in lines
    assert ["kv cache precision", "f32"] in lines
    assert ["max seq len", "512"] in lines
    assert ["size", "4.9 KiB in 1 file"] in lines
    assert ["precision", "int8", REASON] in lines
    assert any(line[:2] == ["payload/model.bin", "4.9 KiB"] for line in lines)


def test_inspect_leaves_nothing_of_the_manifest_out(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_engine(engine_dir / "llama").manifest
    manifest = manifest.model_copy(update={"name": "unlike-its-folder"})
    write_manifest(engine_dir / "llama", manifest)
    assert run(engine_dir, "inspect", "unlike-its-folder") == 0
    text = capsys.readouterr().out
    for value in leaves(manifest.model_dump(mode="json")):
        assert value in text


def leaves(document: object) -> list[str]:
    """The strings, and the numbers as people read them, anywhere in a document."""
    if isinstance(document, dict):
        return [leaf for value in document.values() for leaf in leaves(value)]
    if isinstance(document, list):
        return [leaf for value in document for leaf in leaves(value)]
    if isinstance(document, int) and not isinstance(document, bool):
        return [f"{document:,}"] if document < 1024 else []
    return [document] if isinstance(document, str) else []


def test_unknown_name_lists_what_there_is_and_the_nearest(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(engine_dir, "inspect", "lama") == 1
    assert capsys.readouterr().err == (
        f"error: no engine `lama` in `{engine_dir}`, which has `llama`, `qwen`\n"
        "hint: did you mean `llama`?\n"
    )


def test_unknown_name_in_an_empty_folder_says_how_to_make_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "verify", "llama") == 1
    assert "hint: make one with `deepinfer build" in capsys.readouterr().err


def test_whole_engine_is_verified(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(engine_dir, "verify", "llama") == 0
    assert capsys.readouterr().out == "engine `llama` is whole: 4.9 KiB in 1 file\n"


DAMAGES = {
    "changed byte": (b"llama" * 999 + b"LLAMA", "differs from its SHA-256 in the manifest"),
    "truncated": (b"llama", "has 5 bytes; the manifest says 5,000"),
    "missing": (None, "is missing"),
}


@pytest.mark.parametrize(("content", "difference"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found_and_the_rebuild_named(
    engine_dir: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | None,
    difference: str,
) -> None:
    path = engine_dir / "llama" / "payload" / "model.bin"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert run(engine_dir, "verify", "llama") == 1
    output = capsys.readouterr()
    assert output.out == f"payload/model.bin {difference}\n"
    assert output.err == (
        "error: engine `llama` differs from its manifest in 1 place\n"
        "hint: rebuild it with `deepinfer build --model test/llama --force`\n"
    )


def test_verify_as_json(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(engine_dir, "verify", "llama", "--json") == 0
    whole = {"name": "llama", "is_whole": True, "damage": []}
    assert json.loads(capsys.readouterr().out) == whole
    (engine_dir / "llama" / "payload" / "model.bin").unlink()
    assert run(engine_dir, "verify", "llama", "--json") == 1
    damaged = {"name": "llama", "is_whole": False, "damage": ["payload/model.bin is missing"]}
    assert json.loads(capsys.readouterr().out) == damaged


@pytest.mark.parametrize("name", ["list", "inspect", "verify"])
def test_default_folder_is_that_of_serve(name: str) -> None:
    options = {option.name: option for option in engines.commands[name].params}
    assert isinstance(options["engine_dir"], click.Option)
    assert options["engine_dir"].default == EngineSection().engine_dir
