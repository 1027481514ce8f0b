"""SamplingParams and GuidedDecodingParams: the recorded fields, and what is checked of them."""

from __future__ import annotations

import os
from typing import Any

from tests.contract.double.record import message
from tests.contract.double.shapes import make_dataclass

N_GREEDY_VARIABLE = "TLLM_ALLOW_N_GREEDY_DECODING"


class _Guided:
    __slots__ = ()

    def _validate(self) -> None:
        guides = ("json", "regex", "grammar", "structural_tag")
        count = sum(getattr(self, guide) is not None for guide in guides)
        count += bool(getattr(self, "json_object", False))
        if count > 1:
            raise ValueError(message("one_guide", count=count))


class _Sampling:
    __slots__ = ()

    def __post_init__(self: Any) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        self._validate()

    def _validate(self: Any) -> None:
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(message("top_p_range", value=self.top_p))
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(message("top_k_range", value=self.top_k))
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(message("temperature_range", value=self.temperature))
        if self.best_of < self.n:
            raise ValueError(message("best_of_below_n", best_of=self.best_of, n=self.n))
        if self.best_of > 1 and self._greedy_decoding and not os.environ.get(N_GREEDY_VARIABLE):
            raise ValueError(message("greedy_best_of", best_of=self.best_of))
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
            raise ValueError(message("truncate_range", value=self.truncate_prompt_tokens))
        if self.guided_decoding is not None:
            self.guided_decoding._validate()

    @property
    def _greedy_decoding(self: Any) -> bool:
        if self.use_beam_search:
            return False
        is_unset = (self.temperature, self.top_p, self.top_k) == (None, None, None)
        return is_unset or self.top_k == 1 or self.top_p == 0.0 or self.temperature == 0

    def _setup(self: Any, tokenizer: Any, hf_model_config: Any, generation_config: Any) -> Any:
        """Take end_id from the tokenizer, which has one only, and tokenise what is text."""
        del hf_model_config, generation_config  # the compiled backend reads neither
        if self.end_id is None:
            self.end_id = tokenizer.eos_token_id
            self.pad_id = self.pad_id if self.pad_id is not None else tokenizer.pad_token_id
            self.pad_id = self.pad_id if self.pad_id is not None else self.end_id
        self._stop_word_ids = [tokenizer.encode_plain(word) for word in _as_list(self.stop)]
        self._bad_word_ids = [tokenizer.encode_plain(word) for word in _as_list(self.bad)]
        return self

    def _get_stop_reasons_and_words(self: Any) -> list[tuple[int | str, list[int]]]:
        pairs: list[tuple[int | str, list[int]]]
        pairs = [(token_id, [token_id]) for token_id in self.stop_token_ids or []]
        words = self._processed("stop", self._stop_word_ids)
        return pairs + list(zip(_as_list(self.stop), words, strict=True))

    def _get_bad_words(self: Any) -> list[list[int]]:
        words = [[token_id] for token_id in self.bad_token_ids or []]
        return words + self._processed("bad", self._bad_word_ids)

    def _processed(self: Any, name: str, words: list[list[int]] | None) -> list[list[int]]:
        text = getattr(self, name)
        if text is None:
            return []
        if words is None:
            raise RuntimeError(message("stop_not_set_up", name=name, value=text))
        return words


def _as_list(words: str | list[str] | None) -> list[str]:
    if words is None:
        return []
    return [words] if isinstance(words, str) else list(words)


GuidedDecodingParams = make_dataclass("GuidedDecodingParams", _Guided)
SamplingParams = make_dataclass("SamplingParams", _Sampling)
