"""Tokens to text, a few at a time: the text of a stream is the text of the whole, by construction.

The truth is the token sequence's bytes. They are decoded as UTF-8 as they come; a character whose
bytes are not all there yet waits, and one still incomplete at the end is dropped. U+FFFD appears
only where the tokens hold bytes that are not UTF-8, or hold U+FFFD itself.

`tokenizers.decoders.DecodeStream` is not used: it waits without bound after bytes that are not
UTF-8 and decodes all of them again for each token, it cannot be flushed, and it fails for good
("Invalid prefix") where ByteFallback rewrites what was already sent: that decoder turns a run of
byte tokens into U+FFFD as a whole, so the text of a token depends on the tokens after it. Where
the bytes are UTF-8, the text here is the library's.

This module knows nothing of stop strings, EOS or requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

import tokenizers

from deepinfer.generation import TokenId
from deepinfer.text.token_bytes import TokenBytes

REPLACEMENT = "\ufffd"
MAX_INCOMPLETE_LEN = 3  # bytes of a UTF-8 character without its last
Piece = str | bytes  # whole characters, or bytes that need their neighbours


class IncrementalDetokenizer(Protocol):
    """The text of one growing token sequence. Not shared between sequences.

    It may continue a prompt: then text(prompt) + text(answer) == text(prompt + answer), and a
    first token `▁Paris` keeps its space, as in vLLM. Without one the answer is a text of its own
    and such a space is dropped, as `decode` of the answer alone does in transformers. Completions
    are the first case, chat messages the second.
    """

    def push(self, token_ids: Sequence[TokenId]) -> str:
        """The characters that these tokens complete."""

    def finish(self) -> str:
        """What was held back and is certain now; an incomplete character is dropped."""


class Pieces(dict[TokenId, Piece]):
    """What each visible token adds to a text, filled on first use and shared by all sequences.

    `hidden` are the special tokens, which add nothing.
    """

    def __init__(self, token_bytes: TokenBytes, hidden: frozenset[TokenId]) -> None:
        super().__init__()
        self._token_bytes = token_bytes
        self._hidden = hidden

    def __missing__(self, token_id: TokenId) -> Piece:
        if token_id in self._hidden:
            self[token_id] = ""
            return ""
        piece = _as_piece(self._token_bytes[token_id])
        if piece:  # ids outside the vocabulary are not kept, or anybody could fill the memory
            self[token_id] = piece
        return piece

    def first(self, token_id: TokenId) -> Piece:
        """What a visible token adds where it is the first of a text."""
        return _as_piece(self._token_bytes.first(token_id))


class ByteDetokenizer:
    """Joins the bytes of tokens; holds back at most an incomplete character."""

    def __init__(self, pieces: Pieces, continues: Sequence[TokenId] = ()) -> None:
        tail = _last_bytes(pieces, continues)
        self._pieces = pieces
        self._is_at_start = not tail
        self._incomplete = _decode_available(tail)[1]

    def push(self, token_ids: Sequence[TokenId]) -> str:
        if len(token_ids) == 1:
            return self._push_one(token_ids[0])
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def _push_one(self, token_id: TokenId) -> str:
        piece = self._pieces[token_id]
        if self._is_at_start and piece:
            self._is_at_start = False
            piece = self._pieces.first(token_id)
        if isinstance(piece, str):
            if not self._incomplete or not piece:
                return piece
            piece = piece.encode()
        text, self._incomplete = _decode_available(self._incomplete + piece)
        return text

    def finish(self) -> str:
        self._incomplete = b""
        return ""


class WindowDetokenizer:
    """For decoders that look at neighbours (WordPiece, CTC): the library decodes a short window.

    The window begins with the tokens shown last, so that the decoder sees what it joins to. Text
    that ends with U+FFFD waits for at most the tokens that one character can have.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        hidden: frozenset[TokenId],
        continues: Sequence[TokenId] = (),
    ) -> None:
        self._backend = backend
        self._hidden = hidden
        self._window = self._last_visible(continues)
        self._num_shown = len(self._window)
        self._shown = self._decode().rstrip(REPLACEMENT)

    def push(self, token_ids: Sequence[TokenId]) -> str:
        return "".join([self._push_one(token_id) for token_id in token_ids])

    def _push_one(self, token_id: TokenId) -> str:
        if not self._is_visible(token_id):
            return ""
        self._window.append(token_id)
        text = self._decode()
        num_held = len(self._window) - self._num_shown
        if text.endswith(REPLACEMENT) and num_held <= MAX_INCOMPLETE_LEN:
            return ""
        return self._advance(text)

    def finish(self) -> str:
        return self._advance(self._decode().rstrip(REPLACEMENT))

    def _advance(self, text: str) -> str:
        new_text = text[len(self._shown) :]
        del self._window[: self._num_shown]
        self._num_shown = len(self._window)
        self._shown = self._decode()
        return new_text

    def _decode(self) -> str:
        text: str = self._backend.decode(self._window, skip_special_tokens=False)
        return text

    def _is_visible(self, token_id: TokenId) -> bool:
        return token_id not in self._hidden and self._backend.id_to_token(token_id) is not None

    def _last_visible(self, token_ids: Sequence[TokenId]) -> list[TokenId]:
        last: list[TokenId] = []
        for token_id in reversed(token_ids):
            if self._is_visible(token_id):
                last.insert(0, token_id)
            if len(last) > MAX_INCOMPLETE_LEN:
                break
        return last


def _as_piece(data: bytes) -> Piece:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _decode_available(data: bytes) -> tuple[str, bytes]:
    """The text of `data`, and the incomplete character at its end."""
    text, num_decoded = codecs.utf_8_decode(data, "replace", False)
    rest = data[num_decoded:]
    if rest[:1] == b"\xed" and rest[1:2] >= b"\xa0":
        # Half a surrogate: Python waits for its third byte, yet no UTF-8 character begins so.
        return text + REPLACEMENT * 2, b""
    return text, rest


def _last_bytes(pieces: Pieces, token_ids: Sequence[TokenId]) -> bytes:
    """Enough of the end of a text to know the incomplete character there; empty without text."""
    tail = b""
    for token_id in reversed(token_ids):
        piece = pieces[token_id]
        tail = (piece.encode() if isinstance(piece, str) else piece) + tail
        if len(tail) >= MAX_INCOMPLETE_LEN:
            break
    return tail
