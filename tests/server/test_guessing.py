"""Which engines are told to guess tokens, and what is said of those that cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deepinfer.config import EngineSection
from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, Target, read_engine, write_manifest
from deepinfer.server.guessing import choose_draft
from deepinfer.serving_limits import with_max_seq_len
from tests.engines import make_simulated_engine, record_again

TOKENIZER = '{"version": "1.0"}'


def make_engine(
    folder: Path, backend: str = "openvino", tokenizer: str = TOKENIZER, **fields: Any
) -> EngineFolder:
    """What its manifest says of an engine; there is nothing in it to run."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer)
    manifest = make_simulated_engine(folder, name=folder.name, **fields).manifest
    record = manifest.backend.model_copy(update={"name": backend})
    changed: dict[str, Any] = {"backend": record}
    if backend == "tensorrt-llm":
        changed["target"] = Target(kind="gpu", name="any", capability="sm_120")
    write_manifest(folder, manifest.model_copy(update=changed))
    return read_engine(folder)


def test_nothing_guesses_unless_it_is_told_to(tmp_path: Path) -> None:
    engines = [make_engine(tmp_path / name, name) for name in ("simulated", "openvino")]
    assert choose_draft(engines, EngineSection()) is None
    assert choose_draft(engines[1:], EngineSection(prompt_lookup=4)) is None


def test_draft_has_the_tokens_of_its_engines(tmp_path: Path) -> None:
    engines = [make_engine(tmp_path / name) for name in ("one", "two")]
    draft = make_engine(tmp_path / "small", max_seq_len=1024)
    chosen = choose_draft(engines, EngineSection(draft_engine=draft.path))
    assert chosen is not None
    assert chosen.path == tmp_path / "small"


def test_draft_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    chosen = choose_draft([], EngineSection(draft_engine=Path("small")))
    assert chosen is not None
    assert chosen.path == tmp_path / "small"


DRAFTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "other tokenizer": (
        {"tokenizer": "{}"},
        "draft engine `small` has other tokens than engine `one`",
        "smaller model of the same family",
    ),
    "other vocabulary": (
        {"vocab_size": 600},
        "draft engine `small` has other tokens than engine `one`",
        "smaller model of the same family",
    ),
    "shorter sequences": (
        {"max_seq_len": 256},
        "draft engine `small` takes sequences of 256 tokens; engine `one` takes 512",
        "`--max-seq-len 256`",
    ),
    "other backend": (
        {"backend": "tensorrt-llm"},
        "draft engine `small` is of the `tensorrt-llm` backend, and only `openvino` has drafts",
        "`--target cpu`",
    ),
}


@pytest.mark.parametrize(("fields", "message", "hint"), DRAFTS.values(), ids=DRAFTS)
def test_draft_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, fields: dict[str, Any], message: str, hint: str
) -> None:
    engine = make_engine(tmp_path / "one")
    draft = make_engine(tmp_path / "small", **fields)
    with pytest.raises(EngineError) as refused:
        choose_draft([engine], EngineSection(draft_engine=draft.path))
    assert refused.value.message == message
    assert hint in (refused.value.hint or "")


def test_draft_is_served_with_the_limit_of_its_engines(tmp_path: Path) -> None:
    engine = with_max_seq_len(make_engine(tmp_path / "one", max_seq_len=512), 256)
    longer = make_engine(tmp_path / "longer", max_seq_len=1024)
    shorter = make_engine(tmp_path / "shorter", max_seq_len=128)
    chosen = choose_draft([engine], EngineSection(draft_engine=longer.path, max_seq_len=256))
    assert chosen is not None and chosen.manifest.limits.max_seq_len == 256
    section = EngineSection(draft_engine=shorter.path, max_seq_len=256)
    with pytest.raises(EngineError, match="engine `shorter` .* `engine.max_seq_len` is 256"):
        choose_draft([engine], section)
    config = {
        "architectures": ["LlamaForCausalLM"],
        **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"vocab_size": 512, "max_position_embeddings": 256},
    }
    (shorter.tokenizer_dir / "config.json").write_text(json.dumps(config))
    record_again(shorter.path)
    chosen = choose_draft([engine], section)
    assert chosen is not None and chosen.manifest.limits.max_seq_len == 256


def test_damaged_draft_is_refused(tmp_path: Path) -> None:
    draft = make_engine(tmp_path / "small")
    (draft.path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match="draft engine `small` is damaged"):
        choose_draft([], EngineSection(draft_engine=draft.path))


def test_folder_without_a_draft_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        choose_draft([], EngineSection(draft_engine=tmp_path / "nowhere"))


def test_guesses_come_from_one_source(tmp_path: Path) -> None:
    section = EngineSection(draft_engine=tmp_path, prompt_lookup=2)
    with pytest.raises(EngineError, match="are both given"):
        choose_draft([], section)


@pytest.mark.parametrize("backend", ["simulated", "tensorrt-llm"])
def test_guesses_are_refused_for_other_backends(tmp_path: Path, backend: str) -> None:
    make_engine(tmp_path / "one", backend)
    draft = make_engine(tmp_path / "drafts" / "small")
    command = [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(tmp_path / "one")]
    for option, what in {
        ("--prompt-lookup", "4"): "`engine.prompt_lookup` is 4",
        ("--draft-engine", str(draft.path)): "`engine.draft_engine` is `small`",
    }.items():
        done = subprocess.run([*command, *option], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == (
            f"error: {what}; engine `one` is of the `{backend}` backend, and only `openvino` "
            f"guesses tokens\nhint: leave `{option[0]}` out, or choose another engine with "
            "`--model`\n"
        )
