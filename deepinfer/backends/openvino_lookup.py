"""Prompt lookup on OpenVINO's executor: guesses at the next tokens, taken from the sequence itself.

Where the last tokens of a sequence have stood before, what followed them then is guessed to follow
again. One step of the model judges all guesses, so that text which repeats itself comes several
tokens a step. The library makes and judges the guesses; this module knows what it takes for that:

- Every sequence carries the full number of guesses in every step, filled up with padding. They
  have slots in the KV cache, which the host has to count, or the request ends early.
- A step must have room for every sequence with its guesses. One that is left out of a step is
  given guesses twice, and then exceeds its limit of tokens.
- The prefix cache must be off. With it, blocks that have held guesses are found again for prompts
  that they are wrong for: seen as other tokens in about 1 of 200 continued conversations.
- `min_new_tokens` counts guesses as tokens, so that end and stop tokens come too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepinfer.errors import UnsupportedParameter
from deepinfer.generation import SamplingParams

MAX_NGRAM_LEN = 3  # last tokens that are looked for; shorter runs are looked for after longer ones


@dataclass(frozen=True)
class PromptLookup:
    """`num_guesses` tokens a step and sequence; 0 leaves the library as it is."""

    num_guesses: int

    @property
    def properties(self) -> dict[str, Any]:
        """What the pipeline is told when it is made."""
        return {"prompt_lookup": True} if self.num_guesses else {}

    @property
    def allows_prefix_cache(self) -> bool:
        return not self.num_guesses

    def batched_tokens(self, max_num_tokens: int, max_batch_size: int) -> int:
        """Tokens of a step: those of the engine, or more where a full batch decodes more."""
        if not self.num_guesses:
            return max_num_tokens
        return max(max_num_tokens, max_batch_size * (1 + self.num_guesses))

    def check(self, sampling: SamplingParams) -> None:
        """Raise UnsupportedParameter for what the library would not honour."""
        if self.num_guesses and sampling.min_tokens:
            raise UnsupportedParameter(
                "`min_tokens` is not kept by OpenVINO's prompt lookup, which this server runs "
                "with; it is without `--prompt-lookup`",
                param="min_tokens",
            )

    def configure(self, config: Any) -> None:
        """Ask for guesses in a request's configuration; such a pipeline takes no other request."""
        if self.num_guesses:
            config.num_assistant_tokens = self.num_guesses
            config.max_ngram_size = MAX_NGRAM_LEN
