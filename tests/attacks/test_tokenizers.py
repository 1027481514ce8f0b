"""A tokenizer.json whose patterns never end, or whose texts grow, is found before it serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from deepinfer.errors import EngineError, InvalidValue
from deepinfer.manifest import TOKENIZER_DIR
from deepinfer.text import tokenizer as ours
from deepinfer.text.special_text import encode
from deepinfer.text.tokenizer_check import find_fault
from tests.engines import make_simulated_engine
from tests.server.serving import starting
from tests.server.watched import client_for, make_state

GROWING = normalizers.Sequence([normalizers.Replace("a", "a" * 10)] * 6)
BACKTRACKING = ["(a+)+$", "(q|q)*!", r"(\w+\s?)*$", r"(\p{Han}+)+a"]
# Of the models that most people serve.
USUAL = {
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "Qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "GPT-4o": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def make_tokenizer(pattern: str | None = None) -> Tokenizer:
    vocab = {char: i for i, char in enumerate("abcdefghijklmnopqrstuvwxyz !")}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return tokenizer


def load(tokenizer: Tokenizer, folder: Path) -> ours.Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return ours.Tokenizer.load(folder)


@pytest.mark.parametrize("pattern", BACKTRACKING)
def test_pattern_that_backtracks_without_end_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(EngineError, match="patterns") as refused:
        load(make_tokenizer(pattern), tmp_path)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("pattern", USUAL.values(), ids=USUAL.keys())
def test_pattern_of_a_common_model_is_taken(tmp_path: Path, pattern: str) -> None:
    assert load(make_tokenizer(pattern), tmp_path).encode("ab", add_special_tokens=False)


def test_pattern_of_a_replacement_is_tried_too(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.normalizer = normalizers.Replace(Regex("(a+)+$"), "b")
    with pytest.raises(EngineError, match="patterns"):
        load(tokenizer, tmp_path)


def test_texts_that_grow_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.normalizer = GROWING
    with pytest.raises(EngineError, match="1,000,000 times"):
        load(tokenizer, tmp_path)


def test_texts_that_grow_by_a_pattern_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex("$|^|."), "aaaa")] * 9)
    with pytest.raises(EngineError, match="as long"):
        load(tokenizer, tmp_path)


def test_answers_that_grow_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("a", "a" * 10)] * 6)
    with pytest.raises(EngineError, match="decoding"):
        load(tokenizer, tmp_path)


def test_many_tokens_around_a_text_are_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> " * 10_000 + "$A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    with pytest.raises(EngineError, match="10,000 tokens"):
        load(tokenizer, tmp_path)


def test_usual_replacements_are_taken(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend("\u2581"),
            normalizers.Replace(" ", "\u2581"),
            normalizers.Replace("``", '"'),
            normalizers.NFKD(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    assert find_fault(tokenizer) is None


def test_what_has_no_pattern_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("deepinfer.text.tokenizer_check.subprocess.run", run)
    tokenizer = make_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.normalizer = normalizers.NFC()
    assert find_fault(tokenizer) is None


def test_server_ends_with_one_line_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "e" / TOKENIZER_DIR).mkdir(parents=True)
    make_tokenizer("(a+)+$").save(str(tmp_path / "e" / TOKENIZER_DIR / "tokenizer.json"))
    (tmp_path / "e" / TOKENIZER_DIR / "tokenizer_config.json").write_text(json.dumps({}))
    make_simulated_engine(tmp_path / "e")
    with starting(tmp_path) as server:
        assert server.wait() == 1
    lines = [line for line in server.log.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "tokenizer.json" in lines[0]


def test_text_that_the_tokenizer_gives_up_on_is_refused() -> None:
    """A panic of the library derives from BaseException, past every handler."""
    with pytest.raises(InvalidValue, match="cannot split"):
        encode(make_tokenizer("(a+)+$"), "a" * 40 + "b", add_special_tokens=False)


async def test_request_with_such_a_text_is_a_400(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    backend: tokenizers.Tokenizer = state.engines.default.tokenizer._backend
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("(a+)+$"), "isolated"), pre_tokenizers.ByteLevel()]
    )
    async with client_for(state) as client:
        response = await client.post("/v1/completions", json={"prompt": "a" * 40 + "b"})
        after = await client.post("/v1/completions", json={"prompt": "b"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"
    assert after.status_code == 200
