"""What the executor is told: the limits and configurations of LLM, and the engine's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class ExecutorConfig:
    """The limits and configurations that LLM handed to the executor, for a test to look at."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    max_beam_width: int
    kv_cache_config: Any
    scheduler_config: Any
    batching_type: Any
    enable_chunked_context: bool
    guided_decoding_config: Any = None
    gather_generation_logits: bool = False
    normalize_log_probs: bool = False
    extended_runtime_perf_knob_config: Any = None
    peft_cache_config: Any = None
    fail_fast_on_attention_window_too_large: bool = False


@dataclass
class EngineFacts:
    """What the executor knows of the engine: its limits, vocabulary and KV cache."""

    limits: dict[str, int]
    vocab_size: int
    tokens_per_block: int
    num_blocks: int
    takes_adapters: bool = False

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.tokens_per_block)
