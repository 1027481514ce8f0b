"""Text that reads like a control token, told apart from the control tokens of a chat template.

`<|im_end|>` in what a user says must not end the user's turn. So it is swapped for one private
character before the template is rendered, and stays mere text when the prompt is tokenised. Where
nothing reads so, which is nearly always, nothing happens at all.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any

import tokenizers

from deepinfer.errors import InvalidValue
from deepinfer.generation import TokenId
from deepinfer.text.reasoning import CLOSING, OPENING

FIRST_PRIVATE_CHAR = 0x10_0000  # plane 16, all of which is for private use
NEW_NAME_CHAR = chr(0x10_FFFE)
PREFIX_CHARS = 2
# Templates look for these in what an assistant has said, to leave out what it had thought.
KEPT = {OPENING, CLOSING}


class SpecialText:
    """The special tokens of one tokenizer as text. Shared by threads."""

    def __init__(self, backend: tokenizers.Tokenizer, texts: Collection[str]) -> None:
        """`backend` is only read, on first use: nothing is kept of it until then."""
        self._backend = backend
        # The longest of several that begin at one place is the token, as in the library.
        self._texts = sorted(set(texts) - KEPT, key=lambda text: (-len(text), text))
        self._prefixes = {text[:PREFIX_CHARS] for text in self._texts}
        self._pattern = re.compile("|".join(map(re.escape, self._texts)))
        self._chars = {text: chr(FIRST_PRIVATE_CHAR + i) for i, text in enumerate(self._texts)}
        self._lock = threading.Lock()
        self._renamed: tokenizers.Tokenizer | None = None

    def hide(self, value: Any) -> Any:
        """The same JSON value, each special text in it swapped for its character.

        It is `value` itself when there is none. Where somebody sends such characters already,
        they come out as the texts, which are mere text too.
        """
        return self._hide(value) if self._is_in(value) else value

    def encode(self, prompt: str, *, add_special_tokens: bool) -> list[TokenId]:
        """The ids of a prompt made of hidden text: special texts in it are the template's own.

        Raises InvalidValue for a lone surrogate.
        """
        renamed = self._rename_tokens()
        parts = self._pattern.split(prompt)
        names = map(self._new_name, self._pattern.findall(prompt))
        shown = [self._show(part) for part in parts]
        text = "".join(chain.from_iterable(zip_longest(shown, names, fillvalue="")))
        return encode(renamed, text, add_special_tokens=add_special_tokens)

    def _show(self, text: str) -> str:
        for special, char in self._chars.items():
            text = text.replace(char, special)
            # JSON in plain ASCII, as a template may write it.
            text = text.replace(json.dumps(char)[1:-1], special)
        return text.replace(NEW_NAME_CHAR, "")

    def _is_in(self, value: Any) -> bool:
        text = "\n".join(_texts_of(value))
        # A search for the few beginnings is many times faster than one for all of them.
        is_likely = any(prefix in text for prefix in self._prefixes)
        return is_likely and self._pattern.search(text) is not None

    def _hide(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._chars[found[0]], value)
        if isinstance(value, Mapping):
            return {self._hide(key): self._hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(item) for item in value]
        return value

    def _new_name(self, text: str) -> str:
        # No text becomes it, since such characters of a text are swapped back before it is read.
        return f"{NEW_NAME_CHAR}{self._chars[text]}"

    def _rename_tokens(self) -> tokenizers.Tokenizer:
        """The same tokenizer, whose special tokens have names that nobody writes.

        To make it takes part of a second, and as much memory as the tokenizer has; most servers
        never need it.
        """
        with self._lock:
            if self._renamed is None:
                self._renamed = self._make_renamed()
            return self._renamed

    def _make_renamed(self) -> tokenizers.Tokenizer:
        description = json.loads(self._backend.to_str())
        names = {text: self._new_name(text) for text in self._texts}
        for token in description["added_tokens"]:
            if token["content"] in names:
                # As it stands, whatever the tokenizer does to letters.
                token |= {"content": names[token["content"]], "normalized": False}
        model = description["model"]
        vocab = model["vocab"]
        # Unigram has a list of pieces with their scores, the others a number by piece.
        if isinstance(vocab, list):
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
        else:
            model["vocab"] = {names.get(piece, piece): number for piece, number in vocab.items()}
        if isinstance(unknown := model.get("unk_token"), str):
            model["unk_token"] = names.get(unknown, unknown)
        return tokenizers.Tokenizer.from_str(json.dumps(description))


def encode(backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool) -> list[TokenId]:
    """Token ids of `text`. Raises InvalidValue for what the tokenizer cannot split.

    That is a lone surrogate, which is not Unicode, and what its patterns give up on. Other threads
    run meanwhile, so that a large prompt can be encoded off the event loop.
    """
    try:
        # encode() holds the GIL for the whole text; a batch of one does not, and is faster
        # since it keeps no offsets.
        batch = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    except TypeError:
        raise InvalidValue(
            "Text must be valid Unicode; it holds a lone surrogate such as `\\ud800`"
        ) from None
    except BaseException as error:
        # A panic of the library, which is no Exception: no handler would answer the request.
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidValue("The model's tokenizer cannot split this text") from None
    ids: list[TokenId] = batch[0].ids
    return ids


def _texts_of(value: Any) -> Iterator[str]:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            rest += item
