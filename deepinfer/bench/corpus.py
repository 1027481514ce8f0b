"""What prompts are made of: the words of texts that come with the package, or of a data set.

A data set is JSON Lines, or one JSON array, of conversations as ShareGPT has them, or of objects
with a `prompt`. Nothing is downloaded, and nothing here knows tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from deepinfer.errors import ConfigError

PACKAGED_TEXTS = Path(__file__).parent.parent / "calibration" / "default.jsonl"
# Text without spaces is no word, and would make lengths jump.
MAX_WORD_CHARS = 20
MAX_DATASET_BYTES = 2 * 2**30
HINT = (
    'a line is `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}` or '
    '`{"prompt": ..., "output_tokens": ...}`'
)


class Sample(msgspec.Struct, frozen=True):
    """One prompt of a data set, and how long its answer was there, in words or in tokens."""

    prompt: str
    answer_words: int | None = None
    output_tokens: int | None = None


def read_words() -> list[str]:
    """The words of the packaged texts, in their order."""
    lines = PACKAGED_TEXTS.read_bytes().splitlines()
    texts = [msgspec.json.decode(line)["text"] for line in lines]
    return [word for text in texts for word in text.split() if len(word) <= MAX_WORD_CHARS]


def read_dataset(path: Path) -> list[Sample]:
    """Every usable sample of a file, at least one. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_DATASET_BYTES:
            raise ConfigError(
                f"data set `{path}` has {path.stat().st_size:,} bytes; at most "
                f"{MAX_DATASET_BYTES:,} are read",
                hint="give a part of it, for instance with `head`",
            )
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read data set `{path}`: {error.strerror}") from error
    samples = [s for s in map(_parse_sample, _parse_rows(path, content)) if s is not None]
    if not samples:
        raise ConfigError(f"data set `{path}` has no prompt in it", hint=HINT)
    return samples


def _parse_rows(path: Path, content: bytes) -> Iterator[Any]:
    if content.lstrip()[:1] == b"[":
        try:
            yield from msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            raise ConfigError(f"data set `{path}` is not JSON: {error}", hint=HINT) from None
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise ConfigError(
                    f"line {number} of data set `{path}` is not JSON: {error}", hint=HINT
                ) from None


def _parse_sample(row: Any) -> Sample | None:
    """None for what has no prompt; data sets of conversations have such rows."""
    if not isinstance(row, dict):
        return None
    if isinstance(prompt := row.get("prompt"), str) and prompt:
        length = row.get("output_tokens", row.get("max_tokens"))
        return Sample(prompt, output_tokens=length if type(length) is int and length > 0 else None)
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return None
    texts = [turn.get("value") for turn in turns[:2] if isinstance(turn, dict)]
    if not texts or not isinstance(texts[0], str) or not texts[0]:
        return None
    answer = texts[1] if len(texts) > 1 and isinstance(texts[1], str) else None
    return Sample(texts[0], answer_words=len(answer.split()) if answer else None)
