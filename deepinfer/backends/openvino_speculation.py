"""Speculative decoding on OpenVINO's executor: guesses at the next tokens, judged in one step.

A guess comes from a draft, a smaller engine with the same tokens, or from the sequence itself:
where its last tokens have stood before, what followed them then is guessed to follow again (prompt
lookup). The library makes and judges the guesses; this module knows what it takes for that:

- Every sequence carries the full number of guesses in every step, filled up with padding. They
  have slots in the KV cache, which the host has to count, or the request ends early.
- A step must have room for every sequence with its guesses. One that is left out of a step is
  given guesses twice, and then exceeds its limit of tokens.
- Beside a draft, a prompt must be prefilled whole. Of one that is cut in pieces while others
  decode, the first token comes twice: seen in most of 60 answers with 64 tokens a step.
- The prefix cache must be off. With it, blocks that have held guesses are found again for prompts
  that they are wrong for: seen as other tokens in about 1 of 200 continued conversations.
- Beside a draft, sampled answers come out wrong: for one prompt of three, 436 of 3,000 were others
  than the same seeds give alone, some without their first token, and the first tokens were spread
  otherwise than chance explains. Greedy ones do not depend on the draft.
- `min_new_tokens` counts guesses as tokens, so that end and stop tokens come too early.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.engine import EngineOptions
from deepinfer.errors import UnsupportedParameter
from deepinfer.generation import SamplingParams
from deepinfer.manifest import EngineFolder, EngineLimits, read_engine

MAX_NGRAM_LEN = 3  # last tokens that are looked for; shorter runs are looked for after longer ones


@dataclass(frozen=True)
class Speculation:
    """`num_guesses` tokens a step and sequence; 0 leaves the library as it is."""

    num_guesses: int
    draft: EngineFolder | None = None  # None: guesses come from the sequence itself

    @classmethod
    def choose(cls, options: EngineOptions) -> Speculation:
        """Raises EngineError when there is no engine where the draft should be."""
        draft = None if options.draft_engine is None else read_engine(Path(options.draft_engine))
        return cls(options.num_guesses, draft)

    @property
    def draft_kv_bytes_per_token(self) -> int:
        return self.draft.manifest.kv_bytes_per_token if self.draft else 0

    @property
    def allows_prefix_cache(self) -> bool:
        return not self.num_guesses

    @property
    def splits_prompts(self) -> bool:
        """Whether a long prompt is prefilled in pieces, between the decode steps of others."""
        return self.draft is None

    def batched_tokens(self, limits: EngineLimits) -> int:
        """Tokens of a step: those of the engine, or more where it takes more."""
        if not self.num_guesses:
            return limits.max_num_tokens
        longest_prompt = 0 if self.splits_prompts else limits.max_seq_len
        decoded = limits.max_batch_size * (1 + self.num_guesses)
        return max(limits.max_num_tokens, decoded, longest_prompt)

    def check(self, sampling: SamplingParams) -> None:
        """Raise UnsupportedParameter for what the library would not honour."""
        if self.draft is not None and not sampling.is_greedy:
            raise UnsupportedParameter(
                "a draft engine guesses for greedy requests only: OpenVINO loses tokens of "
                "sampled ones; send `temperature` 0, or have the server run without "
                "`--draft-engine`",
                param="temperature",
            )
        if self.num_guesses and sampling.min_tokens:
            raise UnsupportedParameter(
                "`min_tokens` is not kept by OpenVINO's speculative decoding, which this server "
                "runs with; it is without `--prompt-lookup` and `--draft-engine`",
                param="min_tokens",
            )

    def configure(self, config: Any) -> None:
        """Ask for guesses in a request's configuration; such a pipeline takes no other request."""
        if self.num_guesses:
            config.num_assistant_tokens = self.num_guesses
            if self.draft is None:
                config.max_ngram_size = MAX_NGRAM_LEN
