"""An engine's `tokenizer/` folder: the only place where the text side reads files.

It knows which file says what and which of two spellings wins, as `transformers` decides it. It
knows neither how text is encoded nor how a template is rendered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import read_chat_templates
from deepinfer.errors import CheckpointError, EngineError

TOKENIZER_NAME = "tokenizer.json"
REBUILD_HINT = "rebuild the engine with `deepinfer build --force`"

# The names that a chat template may use, in the order of transformers.
SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerFolder:
    """The files of one tokenizer folder, read when first asked for. Raises EngineError."""

    path: Path

    @property
    def tokenizer_path(self) -> Path:
        return self.path / TOKENIZER_NAME

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._read_object("tokenizer_config.json")

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self._read_object("generation_config.json")

    @property
    def special_tokens(self) -> dict[str, str]:
        """The named special tokens, such as {"bos_token": "<s>"}; a name without one is absent."""
        named = dict(self.config)
        if "added_tokens_decoder" not in named:  # older folders: the map is the newer of the two
            named |= self._read_object("special_tokens_map.json")
        texts = ((name, _token_text(named.get(name))) for name in SPECIAL_TOKEN_NAMES)
        return {name: text for name, text in texts if text is not None}

    @property
    def generation_eos_token_ids(self) -> tuple[int, ...]:
        value = self.generation_config.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token_id, int) for token_id in ids):
            raise EngineError(
                f"`{self.path / 'generation_config.json'}` must give `eos_token_id` as a token id"
                f" or a list of them; it gives {value!r}",
                hint=REBUILD_HINT,
            )
        return tuple(ids)

    @property
    def chat_templates(self) -> dict[str, str]:
        """Jinja sources by name, of which "default" is the usual one; empty when there is none."""
        try:
            return read_chat_templates(self.path)
        except CheckpointError as error:
            raise EngineError(error.message, hint=REBUILD_HINT) from error

    def _read_object(self, name: str) -> dict[str, Any]:
        """One JSON file, or an empty object when the folder does not have it."""
        path = self.path / name
        if not path.is_file():
            return {}
        try:
            value = json.loads(self._read_text(path))
        except (ValueError, RecursionError) as error:
            raise EngineError(f"`{path}` is not JSON: {error}", hint=REBUILD_HINT) from error
        if not isinstance(value, dict):
            raise EngineError(f"`{path}` must hold a JSON object", hint=REBUILD_HINT)
        return value

    def _read_text(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"cannot read `{path}`: {error}", hint=REBUILD_HINT) from error


def _token_text(value: object) -> str | None:
    """A token is written as a string or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
