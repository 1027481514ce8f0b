"""The bytes that each token stands for in the text, read from the tokenizer's decoder.

Every decoder of today's language models maps tokens to bytes one by one and then joins them; only
the first token of a text may lose a leading space. Two families do so: ByteLevel (GPT-2, Llama 3,
Qwen) and pieces with byte fallback (Llama 2, Mistral, Gemma, Phi-3: Replace, ByteFallback, Fuse,
Strip; also Metaspace). This module knows nothing of UTF-8 across tokens, nor of special tokens.

The spelling is the library's own, oddities included, so that both sides of a comparison agree: an
added token is spelled like any other, so that ByteLevel reads an added `é` as the byte E9.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import tokenizers

from deepinfer.generation import TokenId

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
Replacements = tuple[tuple[str, str], ...]


class Spelling(Protocol):
    def spell(self, content: str) -> bytes:
        """The bytes of a token within a text."""

    def spell_first(self, content: str) -> bytes:
        """The bytes of the same token where it is the first of a text."""


class TokenBytes:
    """Bytes by token id; an id outside the vocabulary stands for nothing, as in the library."""

    def __init__(self, backend: tokenizers.Tokenizer, spelling: Spelling) -> None:
        self._backend = backend
        self._spelling = spelling

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> TokenBytes | None:
        """None when the decoder does not map tokens to bytes one by one (WordPiece, CTC, BPE)."""
        spelling = _find_spelling(backend.decoder)
        return None if spelling is None else cls(backend, spelling)

    def __getitem__(self, token_id: TokenId) -> bytes:
        content = self._backend.id_to_token(token_id)
        return b"" if content is None else self._spelling.spell(content)

    def first(self, token_id: TokenId) -> bytes:
        content = self._backend.id_to_token(token_id)
        return b"" if content is None else self._spelling.spell_first(content)


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's map: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


@dataclass(frozen=True)
class ByteLevelSpelling:
    alphabet: dict[str, int]

    def spell(self, content: str) -> bytes:
        try:
            return bytes([self.alphabet[char] for char in content])
        except KeyError:  # an added token with a character of its own stands for its own text
            return content.encode()

    spell_first = spell


@dataclass(frozen=True)
class PieceSpelling:
    replacements: Replacements
    first_replacements: Replacements
    has_byte_tokens: bool
    stripped_prefix: bytes

    def spell(self, content: str) -> bytes:
        return self._spell(content, self.replacements)

    def spell_first(self, content: str) -> bytes:
        return self._spell(content, self.first_replacements).removeprefix(self.stripped_prefix)

    def _spell(self, content: str, replacements: Replacements) -> bytes:
        for old, new in replacements:
            content = content.replace(old, new)
        if self.has_byte_tokens and (byte := BYTE_TOKEN.fullmatch(content)):
            return bytes.fromhex(byte[1])
        return content.encode()


def _find_spelling(decoder: Any) -> Spelling | None:
    steps = list(_steps(json.loads(decoder.__getstate__()))) if decoder is not None else []
    kinds = " ".join(step["type"] for step in steps)
    if kinds == "ByteLevel":
        return ByteLevelSpelling(_byte_level_alphabet())
    # Any other order, for instance a Replace after Fuse, would look across tokens.
    if not re.fullmatch(r"((Replace|Metaspace)( |$))+(ByteFallback ?)?(Fuse ?(Strip)?)?", kinds):
        return None
    return _piece_spelling(steps)


def _steps(state: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if state["type"] != "Sequence":
        yield state
        return
    for child in state["decoders"]:
        yield from _steps(child)


def _piece_spelling(steps: list[dict[str, Any]]) -> PieceSpelling | None:
    replacements: Replacements = ()
    first_replacements: Replacements = ()
    stripped_prefix = b""
    for step in steps:
        if step["type"] == "Replace":
            if "String" not in step["pattern"]:
                return None
            rule = (step["pattern"]["String"], step["content"])
            replacements += (rule,)
            first_replacements += (rule,)
        elif step["type"] == "Metaspace":
            replacements += ((step["replacement"], " "),)
            space = " " if step["prepend_scheme"] == "never" else ""
            first_replacements += ((step["replacement"], space),)
        elif step["type"] == "Strip":
            if step["start"] > 1 or step["stop"] > 0:
                return None
            stripped_prefix = step["content"].encode() * step["start"]
    has_byte_tokens = any(step["type"] == "ByteFallback" for step in steps)
    return PieceSpelling(replacements, first_replacements, has_byte_tokens, stripped_prefix)
