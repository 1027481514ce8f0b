"""A tokenizer folder is read as transformers reads it, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from deepinfer.errors import EngineError, InvalidValue
from deepinfer.text.tokenizer import Tokenizer
from tests.text import samples

CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None}


def write_folder(folder: Path, backend: Backend, **files: Any) -> Path:
    """`files` are JSON values by name without suffix."""
    backend.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def test_special_tokens_may_be_strings_or_objects(tmp_path: Path) -> None:
    write_folder(tmp_path, samples.byte_level(), tokenizer_config=CONFIG)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.bos_token_id == samples.byte_level().token_to_id("<s>")
    assert tokenizer.eos_token_id == samples.byte_level().token_to_id("</s>")
    assert tokenizer.pad_token_id is None
    assert tokenizer.vocab_size == samples.byte_level().get_vocab_size()


def test_older_folders_name_special_tokens_in_a_map(tmp_path: Path) -> None:
    special_map = {"eos_token": {"content": "<|im_end|>"}}
    write_folder(
        tmp_path, samples.byte_level(), tokenizer_config=CONFIG, special_tokens_map=special_map
    )
    assert Tokenizer.load(tmp_path).special_tokens["eos_token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("generation_config", "expected"),
    [
        pytest.param({"eos_token_id": 7}, (7,), id="one"),
        pytest.param({"eos_token_id": [7, 8]}, (7, 8), id="several"),
        pytest.param({"eos_token_id": None}, (2,), id="null-means-the-tokenizer's"),
        pytest.param({}, (2,), id="absent-means-the-tokenizer's"),
    ],
)
def test_eos_ids(tmp_path: Path, generation_config: object, expected: tuple[int, ...]) -> None:
    write_folder(
        tmp_path,
        samples.byte_fallback(),
        tokenizer_config=CONFIG,
        generation_config=generation_config,
    )
    assert Tokenizer.load(tmp_path).eos_token_ids == expected


def test_tokenizer_file_alone_is_enough(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path, samples.byte_level()))
    assert tokenizer.special_tokens == {}
    assert tokenizer.eos_token_ids == ()


def test_special_tokens_are_added_when_asked_for(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_folder(tmp_path, samples.with_bos(samples.byte_level())))
    plain = tokenizer.encode("Paris", add_special_tokens=False)
    bos = samples.byte_level().token_to_id("<s>")
    assert tokenizer.encode("Paris", add_special_tokens=True) == [bos, *plain]


def test_truncation_and_padding_of_the_checkpoint_are_switched_off(tmp_path: Path) -> None:
    backend = samples.copy_of(samples.byte_level())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.load(write_folder(tmp_path, backend))
    text = "more than four tokens"
    expected = samples.byte_level().encode(text).ids
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_named_special_token_is_hidden_even_if_the_vocabulary_has_it_as_text() -> None:
    tokenizer = Tokenizer(samples.copy_of(samples.byte_level()), {"eos_token": samples.TOOL_TAG})
    ids = tokenizer.encode(f"a{samples.TOOL_TAG}b", add_special_tokens=False)
    assert tokenizer.eos_token_id in ids
    assert tokenizer.decode(ids) == "ab"


def test_named_special_token_outside_the_vocabulary_gets_no_id() -> None:
    backend = samples.copy_of(samples.byte_level())
    tokenizer = Tokenizer(backend, {"pad_token": "<nowhere>"})
    assert tokenizer.pad_token_id is None
    assert tokenizer.vocab_size == samples.byte_level().get_vocab_size()


def test_token_bytes_are_known_for_special_tokens_too() -> None:
    tokenizer = Tokenizer(samples.byte_level(), {"eos_token": "</s>"})
    assert tokenizer.token_bytes is not None
    assert tokenizer.token_bytes[tokenizer.eos_token_id or 0] == b"</s>"
    ids = tokenizer.encode("日", add_special_tokens=False)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == "日".encode()
    assert Tokenizer(samples.wordpiece(), {}).token_bytes is None


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidValue, match="lone surrogate"):
        Tokenizer(samples.byte_level(), {}).encode("a\ud800b", add_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("tokenizer.json", None, "does not exist", id="absent"),
        pytest.param("tokenizer.json", "{", "cannot read", id="cut-off"),
        pytest.param("tokenizer.json", '{"version": "1.0"}', "cannot read", id="not-a-tokenizer"),
        pytest.param("tokenizer_config.json", "{", "is not JSON", id="broken-config"),
        pytest.param("tokenizer_config.json", "[]", "must hold a JSON object", id="list-config"),
        pytest.param("generation_config.json", '{"eos_token_id": "</s>"}', "'</s>'", id="text-eos"),
    ],
)
def test_broken_folder_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    write_folder(tmp_path, samples.byte_level(), tokenizer_config=CONFIG)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(EngineError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.hint is not None
