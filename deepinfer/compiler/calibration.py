"""Calibration data: texts from the package or from the user, and the folder that ModelOpt reads.

It knows files, lines and paragraphs. It knows neither tokens nor models, and a build may take fewer
texts than there are: the first `calib_batches`, or all if there are not so many. Nothing is
downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from deepinfer.errors import BuildError
from deepinfer.validation import MAX_SHOWN_CHARS

DEFAULT_TEXTS = Path(__file__).parent.parent / "calibration" / "default.jsonl"
# What `load_dataset(folder, split="train")` takes for the train split.
TRAIN_NAME = "train.jsonl"
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
HINT_KINDS = "a folder or a .jsonl file with a `text` column, or a .txt file of paragraphs"


class Row(msgspec.Struct, frozen=True):
    """One line of a .jsonl file. Other keys are left alone."""

    text: str


def read_calibration_texts(source: Path | None) -> tuple[str, ...]:
    """The texts of `source` in their order, at least one and none of them blank.

    None is the set that comes with the package. A folder stands for its train.jsonl, or without
    one for every .jsonl and .txt file in it, by name. Raises BuildError.
    """
    path = DEFAULT_TEXTS if source is None else source.expanduser()
    texts = tuple(text for file in _find_files(path) for text in _read_file(file) if text.strip())
    if not texts:
        raise BuildError(f"calibration data `{path}` has no text in it", hint=f"give {HINT_KINDS}")
    return texts


def write_calibration_folder(texts: Sequence[str], folder: Path) -> Path:
    """Make `folder`, with train.jsonl in it and nothing else; returns its absolute path."""
    folder = folder.absolute()
    folder.mkdir(parents=True)
    (folder / TRAIN_NAME).write_bytes(_encode(texts))
    return folder


def calibration_digest(texts: Sequence[str]) -> str:
    """SHA-256 of the texts in their order, in hexadecimal."""
    return hashlib.sha256(_encode(texts)).hexdigest()


def _encode(texts: Sequence[str]) -> bytes:
    return b"".join(msgspec.json.encode(Row(text)) + b"\n" for text in texts)


def _find_files(path: Path) -> tuple[Path, ...]:
    if path.is_dir():
        train = path / TRAIN_NAME
        if train.is_file():
            return (train,)
        return tuple(sorted(file for file in path.iterdir() if _is_readable(file)))
    if not path.exists():
        raise BuildError(f"there is no calibration data `{path}`", hint=f"give {HINT_KINDS}")
    if not _is_readable(path):
        raise BuildError(
            f"calibration data `{path}` is neither a folder, nor .jsonl, nor .txt",
            hint=f"give {HINT_KINDS}",
        )
    return (path,)


def _is_readable(file: Path) -> bool:
    return file.suffix.lower() in (".jsonl", ".txt") and file.is_file()


def _read_file(file: Path) -> list[str]:
    try:
        content = file.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BuildError(
            f"cannot read calibration data `{file}`: {reason}", hint=f"give {HINT_KINDS}, in UTF-8"
        ) from error
    if file.suffix.lower() == ".txt":
        return [paragraph.strip() for paragraph in PARAGRAPH_BREAK.split(content)]
    # splitlines() would also cut at U+2028 and its like, which JSON allows inside a string.
    lines = enumerate(content.split("\n"), start=1)
    return [_read_line(file, number, line) for number, line in lines if line.strip()]


def _read_line(file: Path, number: int, line: str) -> str:
    try:
        return msgspec.json.decode(line, type=Row).text
    except msgspec.DecodeError as error:
        is_json = isinstance(error, msgspec.ValidationError)
        rule = "has no `text` that is a string" if is_json else "is not JSON"
        raise BuildError(
            f"line {number:,} of calibration data `{file}` {rule}: `{_shorten(line.strip())}`",
            hint='each line is an object such as {"text": "some text"}',
        ) from error


def _shorten(line: str) -> str:
    return line if len(line) <= MAX_SHOWN_CHARS else line[:MAX_SHOWN_CHARS] + "..."
