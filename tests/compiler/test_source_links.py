"""What TensorRT-LLM is given of a checkpoint: no code to run, no path to be misled by."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from deepinfer.checkpoint import Checkpoint, read_checkpoint
from deepinfer.compiler import source_links
from deepinfer.compiler.source_links import (
    MISLEADING_WORDS,
    find_misleading_word,
    link_checkpoint,
    neutral_folder,
)
from deepinfer.errors import BuildError
from tests.checkpoints import EOS, make_checkpoint

CODE = {"AutoConfig": "configuration_x.X", "AutoTokenizer": ["tokenization_x.X", None]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One that brings code along: in its configurations, and in a folder that transformers runs."""
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    edit(folder / "config.json", auto_map=CODE)
    edit(
        folder / "tokenizer_config.json",
        auto_map=CODE,
        tokenizer_class="XTokenizer",
        pad_token=None,
    )
    edit(folder / "generation_config.json", auto_map={"x": "y.Z"})
    (folder / "configuration_x.py").write_text("raise SystemExit")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit")
    return read_checkpoint(folder)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def linked(checkpoint: Checkpoint, folder: Path, **flags: bool) -> Path:
    return link_checkpoint(
        checkpoint, folder, **{"trust_remote_code": False, "needs_pad_token": False, **flags}
    )


def test_links_hold_no_code_and_name_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = linked(checkpoint, tmp_path / "source")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {name for name in names if name.endswith(".py")} and "custom_generate" not in names
    for name in names:
        if name.endswith("config.json"):
            assert "auto_map" not in json.loads((folder / name).read_text()), name
    assert (folder / "model.safetensors").is_symlink(), "weights are not copied"


@pytest.mark.parametrize("is_trusted", [False, True])
def test_model_is_never_replaced_by_the_base_of_an_adapter(
    checkpoint: Checkpoint, tmp_path: Path, is_trusted: bool
) -> None:
    """Where peft is installed, transformers loads the model that an adapter_config.json names."""
    path = checkpoint.folder / "adapter_config.json"
    path.write_text(json.dumps({"base_model_name_or_path": "another/model"}))
    try:
        folder = linked(checkpoint, tmp_path / "source", trust_remote_code=is_trusted)
    finally:
        path.unlink()
    assert not (folder / path.name).is_symlink() and not (folder / path.name).exists()


def test_class_that_only_the_code_has_becomes_the_general_one(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = linked(checkpoint, tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.decode(tokenizer.encode("a lamp")) == "a lamp"


def test_code_is_there_where_it_is_trusted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = linked(checkpoint, tmp_path / "source", trust_remote_code=True)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == CODE
    assert (folder / "configuration_x.py").exists() and (folder / "custom_generate").exists()


def test_pad_token_is_added_where_calibration_needs_one(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = linked(checkpoint, tmp_path / "source", needs_pad_token=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["pad_token"] == config["eos_token"] != EOS
    original = json.loads((checkpoint.folder / "tokenizer_config.json").read_text())
    assert original["pad_token"] is None, "the checkpoint itself is left as it is"


def test_damaged_configuration_is_for_its_reader_to_refuse(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = checkpoint.folder / "preprocessor_config.json"
    path.write_text("{")
    try:
        assert (linked(checkpoint, tmp_path / "source") / path.name).is_symlink()
    finally:
        path.unlink()


@pytest.mark.parametrize("name", [*MISLEADING_WORDS, "prompts", "ScienceQA-engines", "Vila-7B"])
def test_misleading_path_is_avoided(tmp_path: Path, name: str) -> None:
    with neutral_folder(tmp_path / name / "work") as folder:
        assert find_misleading_word(folder) is None
        assert folder.is_dir() and list(folder.iterdir()) == []
    assert not folder.exists()


def test_plain_path_is_kept_for_the_build_to_remove(tmp_path: Path) -> None:
    with neutral_folder(tmp_path / "work") as folder:
        assert folder == tmp_path / "work"
    assert folder.is_dir()


def test_no_place_without_the_word_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "prompts"))
    monkeypatch.setattr(source_links, "FALLBACK_DIRS", ())
    with pytest.raises(BuildError, match="`mpt`") as caught, neutral_folder(tmp_path / "prompt"):
        pass
    assert "TMPDIR" in (caught.value.hint or "")
