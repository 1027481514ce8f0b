"""The tokenizer that LLM loads from a folder, as far as the library asks anything of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers

from tests.contract.double.record import message

SAVED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
CODE_CLASS = "CodeTokenizer"  # a class that only a folder's own code has


class TransformersTokenizer:
    """`tokenizer.json` and the named special tokens of `tokenizer_config.json`."""

    def __init__(self, folder: Path, trusts_code: bool = False) -> None:
        self.name_or_path = str(folder)
        if trusts_code:
            run_named_code(folder, "AutoTokenizer")
        elif _named_code(folder, "AutoTokenizer") is not None:
            raise ValueError(message("code_not_trusted", folder=folder))
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        path = folder / "tokenizer_config.json"
        self._config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if self._config.get("tokenizer_class") == CODE_CLASS and not trusts_code:
            raise ValueError(message("no_tokenizer_class", name=CODE_CLASS))

    @property
    def eos_token_id(self) -> int | None:
        return self._id_of("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of("pad_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    def save_pretrained(self, folder: Path) -> None:
        for name in SAVED_FILES:
            source = Path(self.name_or_path) / name
            if source.exists():
                shutil.copyfile(source, folder / name)

    def _id_of(self, name: str) -> int | None:
        token: Any = self._config.get(name)
        if isinstance(token, dict):
            token = token["content"]
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found


def run_named_code(folder: Path, kind: str) -> None:
    """Run the Python file of a folder that its configurations name for a kind of class."""
    module = _named_code(folder, kind)
    if module is not None:
        path = folder / f"{module}.py"
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {})


def _named_code(folder: Path, kind: str) -> str | None:
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        named = (config.get("auto_map") or {}).get(kind)
        if named is not None:
            return str(named if isinstance(named, str) else named[0]).split(".")[0]
    return None
