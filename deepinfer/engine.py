"""What the API process and the engine process tell each other about an engine as a whole.

Both sides import this module; it knows neither of them.
"""

from __future__ import annotations

import msgspec


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a server decides about an engine process, apart from what the engine itself says."""

    max_seq_len: int | None = None  # tokens of prompt and answer; None: as the engine was built
    max_waiting: int = 1024  # requests that may wait before more are refused
    max_waiting_tokens: int = 4_000_000  # of their prompts together
    resume_attempts: int = 5  # engine deaths that a running request outlives
    hang_timeout_s: float = 10.0  # without an answer and without computing, before it is killed
    kv_cache_bytes: int | None = None  # None: as much as full batches need, within free memory
    kv_cache_fraction: float | None = None  # of the memory free at loading; None: the backend's own
    num_threads: int | None = None  # None: every CPU that the process may use
    prompt_lookup: int = 0  # tokens a step and sequence that are guessed from the sequence itself
    draft_engine: str | None = None  # absolute path of an engine that guesses, in place of that
    draft_tokens: int = 0  # that it guesses
    allow_untried_release: bool = False  # of TensorRT-LLM

    @property
    def num_guesses(self) -> int:
        """Tokens that are guessed for each sequence and step."""
        return self.prompt_lookup if self.draft_engine is None else self.draft_tokens


class Capacity(msgspec.Struct, frozen=True):
    """What a loaded backend holds at once."""

    max_batch_size: int  # sequences
    num_blocks: int  # KV cache blocks
    tokens_per_block: int
    guesses_per_sequence: int = 0  # tokens of the cache that are held beyond a sequence's own

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens takes at worst."""
        return -(-(num_tokens + self.guesses_per_sequence) // self.tokens_per_block)

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.tokens_per_block


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How busy an engine process is, sent along with every step."""

    num_running: int = 0
    num_waiting: int = 0
    num_used_blocks: int = 0


class EngineStatus(msgspec.Struct, frozen=True):
    """Where an engine process is in its life. `percent` counts the loading only."""

    phase: str
    percent: int = 0
    message: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.phase == READY


# Phases that others decide on; a backend names its own phases of loading.
STARTING = "starting"
READY = "ready"
RESTARTING = "restarting"
FAILED = "failed"
STOPPED = "stopped"
