"""Memory handed out to weights, overhead and sequences: how many fit, and how long ones.

Pure arithmetic over bytes; where they come from is said by the footprints of each kind of device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepinfer.manifest import Record

TOKENS_PER_BLOCK = 32  # of the KV cache: the CPU plugin has no other size, and both take this one


class MemoryNeed(Record):
    """What the engine needs when it runs full, in bytes of one device, against what it may use."""

    weight_bytes: int
    kv_cache_bytes: int  # of max_batch_size sequences, as full as they are taken to be
    overhead_bytes: int
    usable_bytes: int
    num_full_sequences: int  # sequences of max_seq_len tokens that fit side by side
    longest_seq_len: int  # tokens of one sequence that has the memory to itself

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.overhead_bytes


@dataclass(frozen=True)
class MemoryModel:
    """What one device has, and what an engine of one precision takes of it."""

    usable_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    logits_bytes: int  # of one sequence
    overhead_bytes: Callable[[int], int]  # of steps of so many tokens
    slot_bytes_per_token: int = 0  # of each sequence that may run, however short it is


@dataclass(frozen=True)
class Budget:
    """Memory for sequences of up to `max_seq_len` tokens, read in steps of `max_num_tokens`.

    `sharing` sequences take the cache of one full one: more than 1 where the library pages the
    cache among sequences that are not all full at once. The cache is never smaller than
    `min_full` full ones take, or than the batch when that is smaller.
    """

    memory: MemoryModel
    max_seq_len: int
    max_num_tokens: int
    sharing: int
    min_full: int = 1

    @property
    def overhead_bytes(self) -> int:
        return self.memory.overhead_bytes(self.max_num_tokens)

    @property
    def free_bytes(self) -> int:
        memory = self.memory
        return max(0, memory.usable_bytes - memory.weight_bytes - self.overhead_bytes)

    @property
    def kv_bytes_per_sequence(self) -> int:
        num_blocks = -(-self.max_seq_len // TOKENS_PER_BLOCK)
        return num_blocks * TOKENS_PER_BLOCK * self.memory.kv_bytes_per_token

    @property
    def slot_bytes(self) -> int:
        """What a sequence needs beside its KV cache, which it shares with no other."""
        return self.memory.logits_bytes + self.memory.slot_bytes_per_token * self.max_seq_len

    @property
    def num_full_sequences(self) -> int:
        return self.free_bytes // (self.kv_bytes_per_sequence + self.slot_bytes)

    @property
    def num_sequences(self) -> int:
        """Sequences that may run at once; none when not even one full one fits."""
        if not self.num_full_sequences:
            return 0
        shared = self.free_bytes * self.sharing
        num_shared = shared // (self.kv_bytes_per_sequence + self.sharing * self.slot_bytes)
        # A few sequences still need the cache of full ones.
        num_full = min(self.min_full, self.num_full_sequences)
        free_bytes = self.free_bytes - num_full * self.kv_bytes_per_sequence
        return min(num_shared, free_bytes // self.slot_bytes)

    def longest_seq_len(self, batch_size: int) -> int:
        """Tokens, in whole blocks, that each of `batch_size` sequences could have."""
        memory = self.memory
        free_bytes = max(0, self.free_bytes - batch_size * memory.logits_bytes)
        num_full = max(1, batch_size / self.sharing)
        token_bytes = num_full * memory.kv_bytes_per_token
        token_bytes += batch_size * memory.slot_bytes_per_token
        return int(free_bytes // (TOKENS_PER_BLOCK * token_bytes)) * TOKENS_PER_BLOCK

    def kv_cache_bytes(self, batch_size: int) -> int:
        full = self.kv_bytes_per_sequence
        return max(min(batch_size, self.min_full) * full, batch_size * full // self.sharing)

    def need(self, batch_size: int, max_positions: int) -> MemoryNeed:
        return MemoryNeed(
            weight_bytes=self.memory.weight_bytes,
            kv_cache_bytes=self.kv_cache_bytes(batch_size),
            overhead_bytes=self.overhead_bytes + batch_size * self.slot_bytes,
            usable_bytes=self.memory.usable_bytes,
            num_full_sequences=self.num_full_sequences,
            longest_seq_len=min(self.longest_seq_len(1), max_positions),
        )
