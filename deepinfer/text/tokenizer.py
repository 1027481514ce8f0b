"""Text to token ids and back, for one engine.

It wraps the `tokenizers` library; `transformers` is not needed to serve. It knows nothing of chat
messages, requests or limits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import tokenizers

from deepinfer.errors import EngineError
from deepinfer.generation import TokenId
from deepinfer.text.detokenizer import (
    ByteDetokenizer,
    IncrementalDetokenizer,
    Pieces,
    WindowDetokenizer,
)
from deepinfer.text.folder import REBUILD_HINT, TokenizerFolder
from deepinfer.text.special_text import SpecialText, encode
from deepinfer.text.token_bytes import TokenBytes
from deepinfer.text.tokenizer_check import find_fault


class Tokenizer:
    """Shared by every request and by threads; nothing in it changes after loading.

    `special_tokens` are the named ones, as strings: {"bos_token": "<s>"}. `special_token_ids` are
    all that are not shown. `eos_token_ids` are those of generation_config.json, or else the named
    EOS token's. `vocab_size` counts the tokens with a text; a model may have more ids than that.
    `token_bytes` gives the bytes of each token, special ones too; it is None for the few decoders
    that look at neighbours.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        eos_token_ids: tuple[TokenId, ...] = (),
    ) -> None:
        # Some checkpoints ship with both on: prompts would be cut and padded without a word.
        backend.no_truncation()
        backend.no_padding()
        _mark_special(backend, special_tokens)
        self._backend = backend
        self.special_tokens = dict(special_tokens)
        self.special_token_ids = _special_ids(backend)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self.token_bytes = TokenBytes.of(backend)
        self.special_text = SpecialText(backend, self.special_texts)
        self._pieces: dict[frozenset[TokenId], Pieces] = {}  # by what is hidden
        named_eos = self.eos_token_id
        self.eos_token_ids = eos_token_ids or (() if named_eos is None else (named_eos,))

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read an engine's `tokenizer/` folder. Raises EngineError when it is absent or broken."""
        files = TokenizerFolder(folder)
        backend = _read_backend(files.tokenizer_path)
        fault = find_fault(backend)
        if fault is not None:
            raise EngineError(
                f"`{files.tokenizer_path}` cannot be used: {fault}",
                hint="build the engine from a checkpoint that you trust",
            )
        return cls(backend, files.special_tokens, files.generation_eos_token_ids)

    @property
    def bos_token_id(self) -> TokenId | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> TokenId | None:
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> TokenId | None:
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> TokenId | None:
        token = self.special_tokens.get(name)
        token_id: TokenId | None = None if token is None else self._backend.token_to_id(token)
        return token_id

    def encode(self, text: str, *, add_special_tokens: bool) -> list[TokenId]:
        """Token ids of `text`. Raises InvalidValue for a lone surrogate, which is not Unicode.

        Other threads run meanwhile, so that a large prompt can be encoded off the event loop.
        Special-token text such as `<|im_end|>` becomes the control token wherever it stands: a
        rendered chat prompt needs that. `special_text` keeps what clients say from it.
        """
        return encode(self._backend, text, add_special_tokens=add_special_tokens)

    def spell(self, token_id: TokenId) -> bytes:
        """The bytes of one token, special ones too; none for an id outside the vocabulary."""
        if self.token_bytes is not None:
            return self.token_bytes[token_id]
        return (self._backend.id_to_token(token_id) or "").encode()

    def decode(self, token_ids: Sequence[TokenId]) -> str:
        """The text of `token_ids` as a text of its own, special tokens left out."""
        detokenizer = self.detokenizer()
        return detokenizer.push(token_ids) + detokenizer.finish()

    def find_special(self, texts: Collection[str]) -> frozenset[TokenId]:
        """The special tokens that read as one of `texts`."""
        ids = (self._backend.token_to_id(text) for text in texts)
        return frozenset(token_id for token_id in ids if token_id in self.special_token_ids)

    @property
    def special_texts(self) -> frozenset[str]:
        """How every special token reads."""
        return frozenset(self._backend.id_to_token(token_id) for token_id in self.special_token_ids)

    def detokenizer(
        self, continues: Sequence[TokenId] = (), *, shown: frozenset[TokenId] = frozenset()
    ) -> IncrementalDetokenizer:
        """A detokenizer for one answer; `continues` is the prompt that its text goes on from.

        Special tokens are hidden, but for those of `shown`.
        """
        hidden = self.special_token_ids - shown if shown else self.special_token_ids
        if self.token_bytes is None:
            return WindowDetokenizer(self._backend, hidden, continues)
        pieces = self._pieces.get(hidden)
        if pieces is None:
            pieces = self._pieces[hidden] = Pieces(self.token_bytes, hidden)
        return ByteDetokenizer(pieces, continues)


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise EngineError(f"`{path}` does not exist", hint=REBUILD_HINT)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise EngineError(f"cannot read `{path}`: {error}", hint=REBUILD_HINT) from error


def _mark_special(backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
    """Hide the named tokens from text even where tokenizer.json has them as ordinary ones.

    transformers does the same; it would also add those that the vocabulary lacks, but the model
    has no embedding for such an id.
    """
    names = [name for name in special_tokens.values() if backend.token_to_id(name) is not None]
    special = {backend.id_to_token(token_id) for token_id in _special_ids(backend)}
    backend.add_special_tokens([name for name in names if name not in special])


def _special_ids(backend: tokenizers.Tokenizer) -> frozenset[TokenId]:
    added = backend.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if token.special)
