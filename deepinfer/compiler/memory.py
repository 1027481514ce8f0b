"""How long, how many and how much at once: the limits of an engine, fitted into memory.

Pure. Every option that does not fit is refused with the value that would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.budget import Budget, MemoryModel, MemoryNeed
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, EngineLimits
from deepinfer.terminal import format_bytes

DEFAULT_MAX_SEQ_LEN = 4096
DEFAULT_ANSWER_LEN = 1024  # left for the answer when only --max-input-len is given
MIN_USEFUL_SEQ_LEN = 64  # shorter ones are not offered as a way out
MIN_USEFUL_NUM_TOKENS = 256


@dataclass(frozen=True)
class LimitRules:
    """What differs between kinds of devices."""

    max_batch_size: int  # when nobody says
    max_num_tokens: int  # when nobody says
    num_tokens_reason: str
    sharing: int  # sequences that share the KV cache of one full one
    memory_name: str  # whose memory it is
    last_resort: str  # what to do when no limit is low enough
    is_chunked: bool = True  # whether a long prompt may be read in several steps
    # Full sequences that a longer default must leave room for; None keeps DEFAULT_MAX_SEQ_LEN.
    min_full_sequences: int | None = None
    num_cached_full: int = 1  # full sequences that the KV cache holds, however much is shared
    is_bounded_by_rope_table: bool = False  # one row for each of `max_position_embeddings`
    has_sliding_window: bool = True  # whether the engine looks back as far as the model, or at all


@dataclass(frozen=True)
class Limits:
    """The limits, what they need, and the reason of each.

    `fitted` are those, by name, that follow from how much memory happens to be free.
    """

    engine: EngineLimits
    memory: MemoryNeed
    choices: tuple[Choice, ...]
    # Tokens that the KV cache has for each sequence of a full batch, which share them: fewer than
    # the longest one takes where the length was not asked for.
    cached_tokens_per_sequence: int
    fitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Fit:
    """A budget with what to say when it is too small."""

    budget: Budget
    rules: LimitRules
    max_positions: int
    others: Mapping[str, MemoryModel] = field(default_factory=dict)


def choose_limits(
    checkpoint: Checkpoint,
    options: BuildOptions,
    rules: LimitRules,
    memory: MemoryModel,
    others: Mapping[str, MemoryModel],
) -> Limits:
    """`others` are the flags that would need less memory, with what they would need.

    Raises PlanError for limits that contradict the model, each other or the memory.
    """
    positions = _count_positions(checkpoint, rules)
    usual = _choose_usual_seq_len(checkpoint, options, positions, rules)
    longest_step = 0 if rules.is_chunked else (options.max_input_len or int(usual.value) - 1)
    num_tokens = options.max_num_tokens or max(rules.max_num_tokens, longest_step)
    budget = Budget(memory, int(usual.value), num_tokens, rules.sharing, rules.num_cached_full)
    seq = _lengthen(usual, budget, checkpoint, options, positions, rules)
    max_seq_len = int(seq.value)
    max_input = _choose_max_input_len(max_seq_len, options)
    # A longer sequence does not make the others longer: they share what one full one takes.
    sharing = rules.sharing * max(1, max_seq_len // budget.max_seq_len)
    budget = replace(budget, max_seq_len=max_seq_len, sharing=sharing)
    fit = _Fit(budget, rules, positions, others)
    batch = _choose_max_batch_size(fit, options)
    batch_size = int(batch.value)
    max_tokens = _choose_max_num_tokens(batch_size, max_seq_len, num_tokens, rules, options)
    _check_step(int(max_tokens.value), int(max_input.value), rules)
    choices = (seq, max_input, batch, max_tokens)
    is_lengthened = rules.min_full_sequences is not None and options.max_seq_len is None
    can_vary = ("max_batch_size", *(("max_seq_len", "max_input_len") if is_lengthened else ()))
    return Limits(
        engine=EngineLimits(
            max_batch_size=batch_size,
            max_input_len=int(max_input.value),
            max_seq_len=max_seq_len,
            max_num_tokens=int(max_tokens.value),
        ),
        memory=budget.need(batch_size, positions),
        choices=choices,
        cached_tokens_per_sequence=int(usual.value),
        fitted=tuple(
            choice.name
            for choice in choices
            if choice.reason != AS_ASKED and choice.name in can_vary
        ),
    )


def _count_positions(checkpoint: Checkpoint, rules: LimitRules) -> int:
    if rules.is_bounded_by_rope_table:
        return checkpoint.dims.max_position_embeddings
    return checkpoint.max_positions


def _choose_usual_seq_len(
    checkpoint: Checkpoint, options: BuildOptions, positions: int, rules: LimitRules
) -> Choice:
    """The length that is asked for, or that most requests need."""
    name = "max_seq_len"
    ending = _why_positions_end(checkpoint, positions, rules)
    requested = options.max_seq_len
    if requested is not None:
        if requested > positions:
            raise PlanError(
                f"`--max-seq-len {requested}` is beyond the model's {positions:,} positions"
                f"{ending}",
                hint=f"`--max-seq-len {positions}`",
            )
        return Choice(name=name, value=str(requested), reason=AS_ASKED)
    if options.max_input_len is not None and options.max_input_len >= positions:
        raise PlanError(
            f"`--max-input-len {options.max_input_len}` leaves no room for an answer in the "
            f"model's {positions:,} positions{ending}",
            hint=f"`--max-input-len {positions - 1}` or lower",
        )
    longest_input = options.max_input_len or 0
    wanted = max(DEFAULT_MAX_SEQ_LEN, longest_input + DEFAULT_ANSWER_LEN)
    if wanted >= positions:
        reason = f"all of the model's positions{ending}"
        return Choice(name=name, value=str(positions), reason=reason)
    if wanted > DEFAULT_MAX_SEQ_LEN:
        reason = f"the longest input and {DEFAULT_ANSWER_LEN:,} tokens of answer"
    else:
        reason = f"enough for most chats; the model itself has {positions:,} positions"
    return Choice(name=name, value=str(wanted), reason=reason)


def _lengthen(
    usual: Choice,
    budget: Budget,
    checkpoint: Checkpoint,
    options: BuildOptions,
    positions: int,
    rules: LimitRules,
) -> Choice:
    """The longest of the model's own length and the powers of two below it that leaves a batch.

    Few lengths to choose from, so that a little more or less free memory gives the same engine.
    """
    num_full = rules.min_full_sequences
    if num_full is None or usual.reason == AS_ASKED or not rules.is_chunked:
        return usual
    # Beyond its window a model would attend to what it never saw in training.
    window = None if rules.has_sliding_window else checkpoint.sliding_window
    longest = min(positions, window or positions)
    batch_size = options.max_batch_size or 1
    num_full = min(num_full, options.max_batch_size or num_full)
    powers = (1 << exponent for exponent in range(longest.bit_length() - 1, 0, -1))
    for length in (longest, *powers):
        if length <= int(usual.value):
            break
        sharing = budget.sharing * (length // budget.max_seq_len)
        longer = replace(budget, max_seq_len=length, sharing=sharing)
        if longer.num_full_sequences >= num_full and longer.num_sequences >= batch_size:
            if length == positions:
                why = "all of the model's positions"
                why += _why_positions_end(checkpoint, positions, rules)
            elif length == window:
                why = "as far as the model's layers look back"
            else:
                why = f"the longest power of two of the model's {longest:,} positions"
            reason = f"{why}, with room for {num_full} full sequences or more"
            return Choice(name=usual.name, value=str(length), reason=reason)
    if int(usual.value) != DEFAULT_MAX_SEQ_LEN or longest == DEFAULT_MAX_SEQ_LEN:
        return usual
    reason = (
        f"longer leaves no room for {num_full} full sequences"
        + (f" and {batch_size} at once" if batch_size > 1 else "")
        + f"; the model itself has {positions:,} positions"
    )
    return Choice(name=usual.name, value=usual.value, reason=reason)


def _why_positions_end(checkpoint: Checkpoint, positions: int, rules: LimitRules) -> str:
    if checkpoint.is_length_limited_by_rope:
        return " (its RoPE changes for longer sequences, which would change others in their batch)"
    if rules.is_bounded_by_rope_table and checkpoint.max_positions > positions:
        return (
            f" (YaRN reaches {checkpoint.max_positions:,}, and the library's table ends at the "
            "`max_position_embeddings` of config.json: raise that to it)"
        )
    return ""


def _choose_max_input_len(max_seq_len: int, options: BuildOptions) -> Choice:
    name = "max_input_len"
    requested = options.max_input_len
    if requested is None:
        reason = "all of a sequence but one token of answer"
        return Choice(name=name, value=str(max_seq_len - 1), reason=reason)
    if requested >= max_seq_len:
        raise PlanError(
            f"`--max-input-len {requested}` leaves no room for an answer in max_seq_len "
            f"{max_seq_len}",
            hint=f"`--max-input-len {max_seq_len - 1}` or lower",
        )
    return Choice(name=name, value=str(requested), reason=AS_ASKED)


def _choose_max_batch_size(fit: _Fit, options: BuildOptions) -> Choice:
    name = "max_batch_size"
    budget, rules = fit.budget, fit.rules
    requested = options.max_batch_size
    if requested is not None:
        if requested > budget.num_sequences:
            raise _does_not_fit(fit, requested)
        return Choice(name=name, value=str(requested), reason=AS_ASKED)
    if budget.num_sequences < 1:
        raise _does_not_fit(fit, 1)
    if budget.num_sequences >= rules.max_batch_size:
        reason = f"memory would hold {_count_sequences(budget)}; more wait in line"
        return Choice(name=name, value=str(rules.max_batch_size), reason=reason)
    # A power of two, so that a little more or less free memory gives the same engine.
    value = 1 << (budget.num_sequences.bit_length() - 1)
    reason = f"memory holds {_count_sequences(budget)}"
    return Choice(name=name, value=str(value), reason=reason)


def _count_sequences(budget: Budget) -> str:
    full = f"{budget.num_full_sequences:,} full sequences"
    if budget.sharing == 1:
        return full
    return f"{full}, or {budget.num_sequences:,} that fill 1/{budget.sharing} of theirs"


def _choose_max_num_tokens(
    batch_size: int, max_seq_len: int, default: int, rules: LimitRules, options: BuildOptions
) -> Choice:
    name = "max_num_tokens"
    most = batch_size * max_seq_len
    requested = options.max_num_tokens
    if requested is None:
        value = min(max(default, batch_size), most)
        return Choice(name=name, value=str(value), reason=rules.num_tokens_reason)
    if requested < batch_size:
        raise PlanError(
            f"`--max-num-tokens {requested}` is below max_batch_size {batch_size}: each running "
            "sequence takes one token of every step",
            hint=f"`--max-batch-size {requested}`, or `--max-num-tokens {batch_size}` or more",
        )
    if requested > most:
        raise PlanError(
            f"`--max-num-tokens {requested}` is more than {batch_size} sequences of "
            f"{max_seq_len:,} tokens have",
            hint=f"`--max-num-tokens {most}` or lower",
        )
    return Choice(name=name, value=str(requested), reason=AS_ASKED)


def _check_step(max_num_tokens: int, max_input_len: int, rules: LimitRules) -> None:
    if not rules.is_chunked and max_num_tokens < max_input_len:
        raise PlanError(
            f"`--max-num-tokens {max_num_tokens}` is below max_input_len {max_input_len:,}, and "
            "this engine reads a prompt in one step",
            hint=f"`--max-num-tokens {max_input_len}`, or `--max-input-len {max_num_tokens}`",
        )


def _does_not_fit(fit: _Fit, batch_size: int) -> PlanError:
    budget = fit.budget
    need = budget.need(batch_size, fit.max_positions)
    sequences = "sequence" if batch_size == 1 else "sequences"
    shared = f" that fill 1/{budget.sharing}" if batch_size > budget.sharing > 1 else ""
    return PlanError(
        f"the engine needs {format_bytes(need.total_bytes)} and may use "
        f"{format_bytes(need.usable_bytes)} of {fit.rules.memory_name}: "
        f"weights {format_bytes(need.weight_bytes)}, "
        f"KV cache {format_bytes(need.kv_cache_bytes)} for {batch_size} {sequences} of "
        f"{budget.max_seq_len:,} tokens{shared}, overhead {format_bytes(need.overhead_bytes)}",
        hint=_find_what_fits(fit, batch_size),
    )


def _find_what_fits(fit: _Fit, batch_size: int) -> str:
    budget = fit.budget
    ways = []
    if batch_size > 1 and budget.num_sequences >= 1:
        ways.append(f"`--max-batch-size {budget.num_sequences}`")
    shorter = budget.longest_seq_len(batch_size)
    if shorter >= MIN_USEFUL_SEQ_LEN:
        ways.append(f"`--max-seq-len {shorter}`")
    if num_tokens := _find_shorter_step(budget, batch_size):
        ways.append(f"`--max-num-tokens {num_tokens}`")
    ways += [
        f"`{flags}`"
        for flags, memory in fit.others.items()
        if replace(budget, memory=memory).num_sequences >= batch_size
    ]
    return " or ".join(ways) or fit.rules.last_resort


def _find_shorter_step(budget: Budget, batch_size: int) -> int | None:
    """The longest step, a power of two, that leaves room for the batch; None when none does."""
    num_tokens = 1 << ((budget.max_num_tokens - 1).bit_length() - 1)
    while num_tokens >= max(MIN_USEFUL_NUM_TOKENS, batch_size):
        if replace(budget, max_num_tokens=num_tokens).num_sequences >= batch_size:
            return num_tokens
        num_tokens //= 2
    return None
