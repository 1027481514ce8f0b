"""Calibration of FP8 and NVFP4 builds: whether one is needed, where, and on which texts.

The texts come from the package or from the user; ModelOpt reads them from a folder. A build takes
the first `calib_batches` of them, or all if there are fewer. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.memory import (
    calibration_bytes,
)
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.published import find_published
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import BuildError, PlanError
from deepinfer.manifest import Choice
from deepinfer.terminal import format_bytes
from deepinfer.validation import MAX_SHOWN_CHARS

CALIB_BATCHES = 512  # of one text, as the library's CalibConfig has it
CALIB_BATCHES_ON_CPU = 64  # where each takes seconds, not milliseconds
CALIB_MAX_SEQ_LENGTH = 512  # tokens of a text, as the library's CalibConfig has it
MEMORY_SHARE = 0.9  # of a card's total memory, so that the same options give the same plan
DEFAULT_TEXTS = Path(__file__).parent.parent / "calibration" / "default.jsonl"
# What `load_dataset(folder, split="train")` takes for the train split.
TRAIN_NAME = "train.jsonl"
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
HINT_KINDS = "a folder or a .jsonl file with a `text` column, or a .txt file of paragraphs"


@dataclass(frozen=True)
class Calibration:
    is_needed: bool
    device: str = "cuda"
    num_batches: int = CALIB_BATCHES
    max_seq_length: int = CALIB_MAX_SEQ_LENGTH


def choose_calibration(
    device: TargetDevice,
    checkpoint: Checkpoint,
    precision: str,
    kv_cache_precision: str,
    options: BuildOptions,
) -> tuple[Calibration, tuple[Choice, ...]]:
    """Raises PlanError for calibration data that would not be read."""
    obstacle = _why_none(checkpoint, precision, kv_cache_precision)
    if obstacle is not None:
        if options.calib_data is not None:
            raise PlanError(
                f"`--calib-data {options.calib_data}` would not be read: {obstacle}",
                hint="omit it",
            )
        return Calibration(is_needed=False), ()
    assert device.gpu is not None
    need_bytes = calibration_bytes(checkpoint)
    in_16_bits = f"calibrating the model in 16 bits takes {format_bytes(need_bytes)}"
    if need_bytes <= device.gpu.total_bytes * MEMORY_SHARE:
        calibration = Calibration(is_needed=True)
        reason = f"{in_16_bits}, which the GPU has"
    else:
        calibration = Calibration(True, "cpu", CALIB_BATCHES_ON_CPU)
        published = find_published(checkpoint.id, precision)
        other = f"`--model {published}`" if published else "a ModelOpt checkpoint"
        reason = f"{in_16_bits}, more than the GPU has; slow, and {other} needs none"
    value = f"{calibration.device}, up to {calibration.num_batches} texts"
    return calibration, (Choice(name="calibration", value=value, reason=reason),)


def _why_none(checkpoint: Checkpoint, precision: str, kv_cache_precision: str) -> str | None:
    if checkpoint.quantization is not None:
        return "ModelOpt calibrated the checkpoint already"
    if precision not in ("fp8", "nvfp4") and kv_cache_precision != "fp8":
        return f"{precision} weights need no calibration"
    return None


class Row(msgspec.Struct, frozen=True):
    """One line of a .jsonl file. Other keys are left alone."""

    text: str


def read_calibration_texts(source: Path | None) -> tuple[str, ...]:
    """The texts of `source` in their order, at least one and none of them blank.

    None is the set that ships with the package. A folder means its train.jsonl, or without
    one every .jsonl and .txt file in it, sorted by name. Raises BuildError.
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
        shown = line.strip()
        shown = shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + "..."
        raise BuildError(
            f"line {number:,} of calibration data `{file}` {rule}: `{shown}`",
            hint='each line is an object such as {"text": "some text"}',
        ) from error
