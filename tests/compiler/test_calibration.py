"""What `--calib-data` may name, what is refused, and that the packaged texts are worth having."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import deepinfer
from deepinfer.compiler.calibration import (
    CALIB_BATCHES,
    CALIB_BATCHES_ON_CPU,
    CALIB_MAX_SEQ_LENGTH,
    DEFAULT_TEXTS,
    calibration_digest,
    read_calibration_texts,
    write_calibration_folder,
)
from deepinfer.errors import BuildError

# Written without spaces between words, so that each character counts as one.
CJK = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def rows(*texts: str) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write_tree(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("files", "source", "texts"),
    [
        pytest.param({"a.jsonl": rows("one", "two")}, "a.jsonl", ("one", "two"), id="jsonl"),
        pytest.param(
            {"a.jsonl": '{"id": 7, "text": "one", "tags": ["x"]}'},
            "a.jsonl",
            ("one",),
            id="other-columns-are-left-alone",
        ),
        pytest.param(
            {"a.jsonl": "\n" + rows("one") + " \r\n" + rows("  ", "", "two")},
            "a.jsonl",
            ("one", "two"),
            id="blank-lines-and-texts-are-skipped",
        ),
        pytest.param(
            {"a.jsonl": '{"text": "one\u2028two\x85three"}\n'},
            "a.jsonl",
            ("one\u2028two\x85three",),
            id="only-a-newline-ends-a-line",
        ),
        pytest.param(
            {"a.jsonl": b"\xef\xbb\xbf" + rows("one").encode()},
            "a.jsonl",
            ("one",),
            id="byte-order-mark",
        ),
        pytest.param({"A.JSONL": rows("one")}, "A.JSONL", ("one",), id="capital-letters"),
        pytest.param(
            {"a.txt": "one\nstill one\n\n\n  \ntwo\n"},
            "a.txt",
            ("one\nstill one", "two"),
            id="txt",
        ),
        pytest.param(
            {"a.txt": b"one\r\n\r\ntwo\r\n"}, "a.txt", ("one", "two"), id="txt-from-windows"
        ),
        pytest.param(
            {"data/train.jsonl": rows("one"), "data/test.jsonl": rows("other"), "data/c.txt": "c"},
            "data",
            ("one",),
            id="folder-with-a-train-split",
        ),
        pytest.param(
            {"data/b.txt": "two\n\nthree", "data/a.jsonl": rows("one"), "data/notes.md": "no"},
            "data",
            ("one", "two", "three"),
            id="folder-by-name",
        ),
    ],
)
def test_source_is_read(
    tmp_path: Path, files: dict[str, str | bytes], source: str, texts: tuple[str, ...]
) -> None:
    write_tree(tmp_path, files)
    assert read_calibration_texts(tmp_path / source) == texts


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        pytest.param({}, "none.jsonl", "there is no calibration data `{path}`", id="not-there"),
        pytest.param(
            {"a.parquet": b"PAR1"},
            "a.parquet",
            "calibration data `{path}` is neither a folder, nor .jsonl, nor .txt",
            id="neither-kind",
        ),
        pytest.param(
            {"a.jsonl": rows("one") + "\n{'text': 'two'}\n"},
            "a.jsonl",
            "line 3 of calibration data `{path}` is not JSON: `{{'text': 'two'}}`",
            id="not-json",
        ),
        pytest.param(
            {"a.jsonl": '{"prompt": "one"}\n'},
            "a.jsonl",
            "line 1 of calibration data `{path}` has no `text` that is a string: "
            '`{{"prompt": "one"}}`',
            id="no-text-column",
        ),
        pytest.param(
            {"a.jsonl": rows("one") + '{"text": ["two"]}'},
            "a.jsonl",
            "line 2 of calibration data `{path}` has no `text` that is a string: "
            '`{{"text": ["two"]}}`',
            id="text-is-no-string",
        ),
        pytest.param(
            {"a.jsonl": "[" + "1, " * 40 + "1]"},
            "a.jsonl",
            "line 1 of calibration data `{path}` has no `text` that is a string: "
            "`[" + ("1, " * 40)[:59] + "...`",
            id="long-line-is-cut",
        ),
        pytest.param(
            {"a.txt": "Käse".encode("latin-1")},
            "a.txt",
            "cannot read calibration data `{path}`: it is not UTF-8 text",
            id="not-utf-8",
        ),
        pytest.param(
            {"a.jsonl": rows("", " \n")},
            "a.jsonl",
            "calibration data `{path}` has no text in it",
            id="no-text-at-all",
        ),
        pytest.param(
            {"data/notes.md": "one"},
            "data",
            "calibration data `{path}` has no text in it",
            id="folder-of-other-files",
        ),
    ],
)
def test_source_is_refused_in_one_line_with_the_way_out(
    tmp_path: Path, files: dict[str, str | bytes], source: str, message: str
) -> None:
    write_tree(tmp_path, files)
    with pytest.raises(BuildError) as caught:
        read_calibration_texts(tmp_path / source)
    assert caught.value.message == message.format(path=tmp_path / source)
    assert "text" in (caught.value.hint or "")


def test_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tree(tmp_path, {"a.txt": "one"})
    assert read_calibration_texts(Path("~/a.txt")) == ("one",)


def test_folder_holds_the_train_split_and_nothing_else(tmp_path: Path) -> None:
    texts = ('a "quoted"\nline', "日本語 \u2028 \U0001f34b", "\\")
    folder = write_calibration_folder(texts, tmp_path / "work" / "data")
    assert folder == tmp_path / "work" / "data"
    assert [path.name for path in folder.iterdir()] == ["train.jsonl"]
    lines = (folder / "train.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line) for line in lines] == [{"text": text} for text in texts]
    assert read_calibration_texts(folder) == texts


def test_path_of_the_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_calibration_folder(("one",), Path("data")) == tmp_path / "data"


def test_digest_is_that_of_the_file(tmp_path: Path) -> None:
    texts = ("one", "zwei ä")
    file = write_calibration_folder(texts, tmp_path / "data") / "train.jsonl"
    assert calibration_digest(texts) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_digest_tells_texts_apart_by_words_order_and_borders() -> None:
    variants = [("a", "b"), ("b", "a"), ("ab",), ("a\nb",), ("a", "b", ""), ("a", "B")]
    assert len({calibration_digest(texts) for texts in variants}) == len(variants)


def count_words(text: str) -> int:
    return len(CJK.findall(text)) + len(CJK.sub(" ", text).split())


def script_of(text: str) -> str:
    """The script of most of the letters: "LATIN", "CYRILLIC", "CJK"..."""
    scripts = Counter(unicodedata.name(char).split()[0] for char in text if char.isalpha())
    return scripts.most_common(1)[0][0]


def test_packaged_texts_lie_in_the_package_as_one_json_object_a_line() -> None:
    # The wheel is the folder `deepinfer`, with all that is in it.
    assert DEFAULT_TEXTS.is_relative_to(Path(deepinfer.__file__).parent)
    lines = DEFAULT_TEXTS.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert {tuple(json.loads(line)) for line in lines} == {("text",)}
    assert read_calibration_texts(None) == tuple(json.loads(line)["text"] for line in lines)


def test_packaged_texts_are_enough_and_of_similar_length() -> None:
    texts = read_calibration_texts(None)
    assert 96 <= len(texts) <= 128
    assert [text for text in texts if not 120 <= count_words(text) <= 500] == []
    assert [text for text in texts if text != text.strip()] == []


def test_packaged_texts_do_not_repeat_each_other() -> None:
    texts = read_calibration_texts(None)
    assert len({text[:40] for text in texts}) == len(texts)
    counts = Counter(line.strip() for text in texts for line in text.split("\n"))
    assert [line for line, count in counts.items() if count > 1 and len(line) > 60] == []


def test_packaged_texts_have_no_special_tokens() -> None:
    pattern = re.compile(r"<\|[^|\n]*\|>|</?s>|\[/?INST\]|<(start|end)_of_turn>")
    assert [text for text in read_calibration_texts(None) if pattern.search(text)] == []


@pytest.mark.parametrize("num_texts", [CALIB_BATCHES, CALIB_BATCHES_ON_CPU])
def test_packaged_texts_are_varied_wherever_a_build_cuts_them(num_texts: int) -> None:
    texts = read_calibration_texts(None)[:num_texts]
    assert {script_of(text) for text in texts} >= {"LATIN", "CYRILLIC", "CJK"}
    signs = ["def ", "{\n", "#include", "```", "| ", " = ", "User:", "Dear ", "é", "ß", "- "]
    assert [sign for sign in signs if not any(sign in text for text in texts)] == []


def test_packaged_texts_have_ten_languages_beside_english() -> None:
    texts = read_calibration_texts(None)
    found = Counter(script_of(text) for text in texts)
    assert min(found[name] for name in ("CYRILLIC", "ARABIC", "DEVANAGARI", "HIRAGANA")) >= 2
    assert found["CJK"] >= 3
    common_words = {
        "German": ("und", "nicht"),
        "French": ("est", "une"),
        "Spanish": ("el", "y"),
        "Italian": ("il", "che"),
        "Portuguese": ("não", "uma"),
    }
    for language, words in common_words.items():
        speaking = [text for text in texts if set(words) <= set(text.lower().split())]
        assert len(speaking) >= 2, language


def test_pages_give_the_numbers_that_hold() -> None:
    num_texts = f"{len(read_calibration_texts(None))} "
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    for numbers in (num_texts, f"first {CALIB_BATCHES}", f"first {CALIB_BATCHES_ON_CPU}"):
        assert numbers in page
    assert f"first {CALIB_MAX_SEQ_LENGTH} tokens" in page
    readme = DEFAULT_TEXTS.with_name("README.md").read_text(encoding="utf-8")
    assert f"has {num_texts}short texts" in readme
