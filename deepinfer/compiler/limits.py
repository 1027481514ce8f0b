"""How long, how many and how much at once: the limits of an engine, fitted into memory.

Pure. Every wish that does not fit is refused with the number that would.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import footprint
from deepinfer.compiler.target import TargetDevice
from deepinfer.compiler.wishes import AS_ASKED, BuildWishes
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, EngineLimits, Record
from deepinfer.terminal import format_bytes

DEFAULT_MAX_SEQ_LEN = 4096
DEFAULT_ANSWER_LEN = 1024  # left for the answer when only --max-input-len is given
DEFAULT_MAX_BATCH_SIZE = 64
# A step with more prompt tokens in it makes every running answer wait longer: at 12 streams the
# 99th percentile between tokens was 0.5 s with 256 and 1.0 s with 1,024 (494M parameters, 2 cores).
DEFAULT_MAX_NUM_TOKENS = 256
MIN_USEFUL_SEQ_LEN = 64  # shorter ones are not offered as a way out
MEMORY_SHARE = 0.9  # of what is free; the rest is for the API process and everybody else


class MemoryNeed(Record):
    """What the engine needs when it runs full, in bytes, against what it may use."""

    weight_bytes: int
    kv_cache_bytes: int  # of max_batch_size sequences of max_seq_len tokens
    overhead_bytes: int
    usable_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.overhead_bytes


@dataclass(frozen=True)
class Limits:
    """The limits, what they need, and the reason of each."""

    engine: EngineLimits
    memory: MemoryNeed
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class _Budget:
    """Memory to hand out to sequences of up to `max_seq_len` tokens."""

    usable_bytes: int
    weight_bytes: int
    overhead_bytes: int
    logits_bytes: int  # of one sequence
    kv_bytes_per_token: int
    max_seq_len: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.usable_bytes - self.weight_bytes - self.overhead_bytes)

    @property
    def kv_bytes_per_sequence(self) -> int:
        num_blocks = -(-self.max_seq_len // footprint.TOKENS_PER_BLOCK)
        return num_blocks * footprint.TOKENS_PER_BLOCK * self.kv_bytes_per_token

    @property
    def num_sequences(self) -> int:
        """Full sequences that fit."""
        return self.free_bytes // (self.kv_bytes_per_sequence + self.logits_bytes)

    def longest_seq_len(self, batch_size: int) -> int:
        """Tokens, in whole blocks, that `batch_size` sequences could have each."""
        kv_bytes = max(0, self.free_bytes // batch_size - self.logits_bytes)
        num_blocks = kv_bytes // (footprint.TOKENS_PER_BLOCK * self.kv_bytes_per_token)
        return num_blocks * footprint.TOKENS_PER_BLOCK

    def need(self, batch_size: int) -> MemoryNeed:
        return MemoryNeed(
            weight_bytes=self.weight_bytes,
            kv_cache_bytes=batch_size * self.kv_bytes_per_sequence,
            overhead_bytes=self.overhead_bytes + batch_size * self.logits_bytes,
            usable_bytes=self.usable_bytes,
        )


def choose_limits(
    device: TargetDevice,
    checkpoint: Checkpoint,
    wishes: BuildWishes,
    *,
    weight_bytes: int,
    kv_bytes_per_token: int,
) -> Limits:
    """Raises PlanError for limits that contradict the model, each other or the memory."""
    seq = _choose_max_seq_len(checkpoint, wishes)
    max_seq_len = int(seq.value)
    max_input = _choose_max_input_len(max_seq_len, wishes)
    budget = _Budget(
        usable_bytes=int(device.memory_bytes * MEMORY_SHARE),
        weight_bytes=weight_bytes,
        overhead_bytes=footprint.overhead_bytes(
            checkpoint.dims, weight_bytes, wishes.max_num_tokens or DEFAULT_MAX_NUM_TOKENS
        ),
        logits_bytes=footprint.logits_bytes(checkpoint.dims),
        kv_bytes_per_token=kv_bytes_per_token,
        max_seq_len=max_seq_len,
    )
    batch = _choose_max_batch_size(budget, wishes)
    max_tokens = _choose_max_num_tokens(int(batch.value), max_seq_len, wishes)
    return Limits(
        engine=EngineLimits(
            max_batch_size=int(batch.value),
            max_input_len=int(max_input.value),
            max_seq_len=max_seq_len,
            max_num_tokens=int(max_tokens.value),
        ),
        memory=budget.need(int(batch.value)),
        choices=(seq, max_input, batch, max_tokens),
    )


def _choose_max_seq_len(checkpoint: Checkpoint, wishes: BuildWishes) -> Choice:
    name = "max_seq_len"
    positions = checkpoint.dims.max_position_embeddings
    wish = wishes.max_seq_len
    if wish is not None:
        if wish > positions:
            raise PlanError(
                f"`--max-seq-len {wish}` is beyond the model's {positions:,} positions"
                + _why_positions_end(checkpoint),
                hint=f"`--max-seq-len {positions}`",
            )
        return Choice(name=name, value=str(wish), reason=AS_ASKED)
    if wishes.max_input_len is not None and wishes.max_input_len >= positions:
        raise PlanError(
            f"`--max-input-len {wishes.max_input_len}` leaves no room for an answer in the "
            f"model's {positions:,} positions" + _why_positions_end(checkpoint),
            hint=f"`--max-input-len {positions - 1}` or lower",
        )
    longest_input = wishes.max_input_len or 0
    wanted = max(DEFAULT_MAX_SEQ_LEN, longest_input + DEFAULT_ANSWER_LEN)
    if wanted >= positions:
        reason = "all of the model's positions" + _why_positions_end(checkpoint)
        return Choice(name=name, value=str(positions), reason=reason)
    if wanted > DEFAULT_MAX_SEQ_LEN:
        reason = f"the longest input and {DEFAULT_ANSWER_LEN:,} tokens of answer"
    else:
        reason = f"enough for most chats; the model itself has {positions:,} positions"
    return Choice(name=name, value=str(wanted), reason=reason)


def _why_positions_end(checkpoint: Checkpoint) -> str:
    if not checkpoint.is_length_limited_by_rope:
        return ""
    return " (its RoPE changes for longer sequences, which would change others in their batch)"


def _choose_max_input_len(max_seq_len: int, wishes: BuildWishes) -> Choice:
    name = "max_input_len"
    wish = wishes.max_input_len
    if wish is None:
        reason = "all of a sequence but one token of answer"
        return Choice(name=name, value=str(max_seq_len - 1), reason=reason)
    if wish >= max_seq_len:
        raise PlanError(
            f"`--max-input-len {wish}` leaves no room for an answer in max_seq_len {max_seq_len}",
            hint=f"`--max-input-len {max_seq_len - 1}` or lower",
        )
    return Choice(name=name, value=str(wish), reason=AS_ASKED)


def _choose_max_batch_size(budget: _Budget, wishes: BuildWishes) -> Choice:
    name = "max_batch_size"
    wish = wishes.max_batch_size
    if wish is not None:
        if wish > budget.num_sequences:
            raise _does_not_fit(budget, wish)
        return Choice(name=name, value=str(wish), reason=AS_ASKED)
    if budget.num_sequences < 1:
        raise _does_not_fit(budget, 1)
    if budget.num_sequences >= DEFAULT_MAX_BATCH_SIZE:
        reason = f"memory would hold {budget.num_sequences:,} full sequences; more wait in line"
        return Choice(name=name, value=str(DEFAULT_MAX_BATCH_SIZE), reason=reason)
    # A power of two, so that a little more or less free memory gives the same engine.
    value = 1 << (budget.num_sequences.bit_length() - 1)
    reason = f"memory holds {budget.num_sequences:,} full sequences"
    return Choice(name=name, value=str(value), reason=reason)


def _choose_max_num_tokens(batch_size: int, max_seq_len: int, wishes: BuildWishes) -> Choice:
    name = "max_num_tokens"
    most = batch_size * max_seq_len
    wish = wishes.max_num_tokens
    if wish is None:
        value = min(max(DEFAULT_MAX_NUM_TOKENS, batch_size), most)
        reason = "short steps: a long prompt is read in pieces between the tokens of others"
        return Choice(name=name, value=str(value), reason=reason)
    if wish < batch_size:
        raise PlanError(
            f"`--max-num-tokens {wish}` is below max_batch_size {batch_size}: each running "
            "sequence takes one token of every step",
            hint=f"`--max-batch-size {wish}`, or `--max-num-tokens {batch_size}` or more",
        )
    if wish > most:
        raise PlanError(
            f"`--max-num-tokens {wish}` is more than {batch_size} sequences of {max_seq_len:,} "
            "tokens have",
            hint=f"`--max-num-tokens {most}` or lower",
        )
    return Choice(name=name, value=str(wish), reason=AS_ASKED)


def _does_not_fit(budget: _Budget, batch_size: int) -> PlanError:
    need = budget.need(batch_size)
    sequences = "sequence" if batch_size == 1 else "sequences"
    return PlanError(
        f"the engine needs {format_bytes(need.total_bytes)} and may use "
        f"{format_bytes(need.usable_bytes)} of this machine's free memory: "
        f"weights {format_bytes(need.weight_bytes)}, "
        f"KV cache {format_bytes(need.kv_cache_bytes)} for {batch_size} {sequences} of "
        f"{budget.max_seq_len:,} tokens, overhead {format_bytes(need.overhead_bytes)}",
        hint=_find_what_fits(budget, batch_size),
    )


def _find_what_fits(budget: _Budget, batch_size: int) -> str:
    shorter = budget.longest_seq_len(batch_size)
    ways = []
    if batch_size > 1 and budget.num_sequences >= 1:
        ways.append(f"`--max-batch-size {budget.num_sequences}`")
    if shorter >= MIN_USEFUL_SEQ_LEN:
        ways.append(f"`--max-seq-len {shorter}`")
    return " or ".join(ways) or "a lower `--precision`, or a machine with more free memory"
