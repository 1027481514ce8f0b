"""Memory of an engine: what a model takes, and the limits that fit into what a device has.

Pure arithmetic in bytes, fitted to the measurements beside the constants. An option that does not
fit is refused with the value that would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import MemoryNeed
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, EngineLimits, LoraLimits, Parallelism
from deepinfer.terminal import format_bytes

TOKENS_PER_BLOCK = 32  # of the KV cache: the CPU plugin has no other size, and both take this one
DEFAULT_MAX_SEQ_LEN = 4096
DEFAULT_ANSWER_LEN = 1024  # left for the answer when only --max-input-len is given
MIN_USEFUL_SEQ_LEN = 64  # shorter ones are not offered as a way out
MIN_USEFUL_NUM_TOKENS = 256
INT4_GROUP_SIZE = 128
QUANTIZED_KV_OVERHEAD = 8  # an 8-bit cache stores scale and zero point as two floats
# What a loaded engine holds beside its file, which stays mapped and can be dropped by the kernel:
# 0.72, 0.39, 0.24 GB of private memory for bf16, int8 and int4 files of 0.34, 0.17, 0.10 GB
# (168M parameters, AVX2), because kernels for one row and for many rows pack weights differently.
PACKED_COPIES = 2.0
CPU_RUNTIME_BYTES = 150_000_000
# A build: the libraries alone take 0.45 GB; weights that keep their type stay mapped from disk.
CPU_BUILD_LIBRARY_BYTES = 700_000_000
EXPORT_SHARE = 0.15  # of the exported bytes, for the graph and the pieces being compressed
CONFIG_BYTES = 50_000_000  # tokenizers, manifest, graph or timing cache on disk
BYTES_16 = 2  # of the types that embedding, LM head, norms and activations keep
CONTEXT_BYTES = 1_000_000_000  # CUDA context, TensorRT, cuBLAS and the executor's own buffers
NCCL_BYTES = 300_000_000  # its buffers, once there is more than one GPU
CALIBRATION_BYTES = 1_500_000_000  # context, activations and logits of one text
# The executor keeps a few numbers of four bytes for each token that each sequence may have: ids,
# log probabilities, the address of its cache.
SLOT_BYTES_PER_TOKEN = 20
GPU_BUILD_LIBRARY_BYTES = 4_000_000_000  # torch, TensorRT and ModelOpt in the building process
CPU_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
# An NVFP4 block of 16 weights shares an FP8 scale.
GPU_WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
    "int8": 1.0,
    "int4": 0.5,
}
GPU_KV_BYTES = {"bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True)
class MemoryModel:
    """What one device has, and what an engine of one precision takes of it."""

    usable_bytes: int
    weight_bytes: int
    kv_bytes_per_token: int
    logits_bytes: int  # of one sequence
    overhead_bytes: Callable[[int], int]  # of steps of N tokens
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


@dataclass(frozen=True)
class LimitRules:
    """What differs between kinds of devices."""

    max_batch_size: int  # default
    max_num_tokens: int  # default
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
    """A budget with what its error message needs when it is too small."""

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
    positions = checkpoint.max_positions
    if rules.is_bounded_by_rope_table:
        positions = checkpoint.dims.max_position_embeddings
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
    if not rules.is_chunked and int(max_tokens.value) < int(max_input.value):
        raise PlanError(
            f"`--max-num-tokens {max_tokens.value}` is below max_input_len "
            f"{int(max_input.value):,}, and this engine reads a prompt in one step",
            hint=f"`--max-num-tokens {max_input.value}`, or `--max-input-len {max_tokens.value}`",
        )
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


def _choose_usual_seq_len(
    checkpoint: Checkpoint, options: BuildOptions, positions: int, rules: LimitRules
) -> Choice:
    """The requested length, or one that is enough for most requests."""
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
    length = max(DEFAULT_MAX_SEQ_LEN, longest_input + DEFAULT_ANSWER_LEN)
    if length >= positions:
        reason = f"all of the model's positions{ending}"
        return Choice(name=name, value=str(positions), reason=reason)
    if length > DEFAULT_MAX_SEQ_LEN:
        reason = f"the longest input and {DEFAULT_ANSWER_LEN:,} tokens of answer"
    else:
        reason = f"enough for most chats; the model itself has {positions:,} positions"
    return Choice(name=name, value=str(length), reason=reason)


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
        reason = f"memory would hold {_count_sequences(budget)}; more are queued"
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


def cpu_weight_bytes(
    checkpoint: Checkpoint, precision: str, group_size: int = INT4_GROUP_SIZE
) -> int:
    """Size of the payload's weights. `group_size` matters to int4 only."""
    total = checkpoint.num_parameters
    if precision in ("fp32", "fp16", "bf16"):
        return total * CPU_BITS[precision] // 8
    # Each row of an int8 matrix has a two-byte scale and a one-byte zero point.
    int8_bytes = 1 + 3 / checkpoint.dims.hidden_size
    if precision == "int8":
        return int(total * int8_bytes)
    # Embedding and LM head stay int8; each group of int4 has a two-byte scale and a half-byte zero.
    embedding = checkpoint.num_embedding_parameters
    int4_bytes = 0.5 + 2.5 / group_size
    return int((total - embedding) * int4_bytes + embedding * int8_bytes)


def cpu_kv_bytes_per_token(
    dims: ModelDims, kv_cache_precision: str, *, has_scales_by_channel: bool = False
) -> int:
    """Bytes of keys and values of one token, over all layers.

    An int8 cache scales values by token over their channels, and keys likewise or, with
    `has_scales_by_channel`, by channel over a block of tokens.
    """
    num_vectors = dims.num_layers * dims.num_kv_heads
    if kv_cache_precision == "int8":
        value_bytes = dims.head_dim + QUANTIZED_KV_OVERHEAD
        if not has_scales_by_channel:
            return num_vectors * 2 * value_bytes
        key_bytes = dims.head_dim * (TOKENS_PER_BLOCK + QUANTIZED_KV_OVERHEAD) / TOKENS_PER_BLOCK
        return int(num_vectors * (key_bytes + value_bytes))
    return num_vectors * 2 * dims.head_dim * CPU_BITS[kv_cache_precision] // 8


def cpu_overhead_bytes(dims: ModelDims, weight_bytes: int, max_num_tokens: int) -> int:
    """What a running engine needs beside weights, KV cache and logits."""
    repacked = int(weight_bytes * (PACKED_COPIES - 1))
    width = max(dims.intermediate_size, dims.num_experts * expert_size(dims))
    activations = 4 * max_num_tokens * (8 * dims.hidden_size + 3 * width)
    return CPU_RUNTIME_BYTES + repacked + activations


def logits_bytes(dims: ModelDims) -> int:
    """Of one running sequence: its scores in fp32, and their copy in the sampler."""
    return 2 * 4 * dims.vocab_size


def cpu_build_memory_bytes(checkpoint: Checkpoint, precision: str, weight_bytes: int) -> int:
    exported = export_bytes(checkpoint, precision)
    held = int(exported * EXPORT_SHARE) + weight_bytes
    if export_precision(checkpoint, precision) != checkpoint.precision:
        held += exported  # converted weights are private memory; the others stay mapped
    elif precision != "fp32":
        held += 4 * checkpoint.weights.expert_parameters
    return CPU_BUILD_LIBRARY_BYTES + held


def cpu_build_disk_bytes(checkpoint: Checkpoint, precision: str, weight_bytes: int) -> int:
    """The export and the payload that is made from it are on disk together for a while."""
    return export_bytes(checkpoint, precision) + weight_bytes + CONFIG_BYTES


def export_precision(checkpoint: Checkpoint, precision: str) -> str:
    """The type that the weights are exported in, before any compression."""
    return precision if precision in ("fp32", "fp16", "bf16") else checkpoint.precision


def export_bytes(checkpoint: Checkpoint, precision: str) -> int:
    size = CPU_BITS[export_precision(checkpoint, precision)] // 8
    experts = checkpoint.weights.expert_parameters
    # The exporter widens experts to fp32, whatever they were.
    return (checkpoint.num_parameters - experts) * size + experts * 4


def expert_size(dims: ModelDims) -> int:
    return dims.expert_intermediate_size or dims.intermediate_size


@dataclass(frozen=True)
class LayerParameters:
    """Parameters by what reads them. A tied LM head is counted: the library may copy it."""

    layers: int
    experts: int  # of the layers
    embedding: int
    lm_head: int

    @property
    def total(self) -> int:
        return self.layers + self.embedding + self.lm_head


def count_parameters(checkpoint: Checkpoint) -> LayerParameters:
    weights = checkpoint.weights
    is_packed = checkpoint.quantization is not None and checkpoint.quantization.is_packed
    experts = checkpoint.dims.num_expert_parameters if is_packed else weights.expert_parameters
    return LayerParameters(
        layers=checkpoint.num_parameters - checkpoint.num_embedding_parameters,
        experts=experts,
        embedding=weights.embedding_parameters,
        lm_head=weights.embedding_parameters if checkpoint.is_tied else weights.lm_head_parameters,
    )


def layer_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """All layers' weights; what stays in 16 bits is counted apart."""
    parameters = count_parameters(checkpoint)
    if checkpoint.quantization is not None and not checkpoint.has_counted_weights:
        in_files = checkpoint.num_embedding_parameters * BYTES_16
        return checkpoint.weights.num_bytes - in_files
    return int(parameters.layers * GPU_WEIGHT_BYTES[precision])


def gpu_weight_bytes(checkpoint: Checkpoint, precision: str, parallelism: Parallelism) -> int:
    """Of the GPU that holds most: the first and the last stage have embedding and LM head."""
    parameters = count_parameters(checkpoint)
    tensor, stages = parallelism.tensor_parallel_size, parallelism.pipeline_parallel_size
    ends = parameters.embedding + parameters.lm_head
    if stages > 1:
        ends = max(parameters.embedding, parameters.lm_head)
    layers = layer_bytes(checkpoint, precision) / stages
    return int((layers + ends * BYTES_16) / tensor)


def engine_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """All ranks together, as on disk."""
    parameters = count_parameters(checkpoint)
    ends = (parameters.embedding + parameters.lm_head) * BYTES_16
    return layer_bytes(checkpoint, precision) + ends


def gpu_kv_bytes_per_token(
    dims: ModelDims, kv_cache_precision: str, parallelism: Parallelism | None = None
) -> int:
    """Of one token over all layers, or of the part of them that one GPU has."""
    parallelism = parallelism or Parallelism()
    num_heads = -(-dims.num_kv_heads // parallelism.tensor_parallel_size)
    num_layers = -(-dims.num_layers // parallelism.pipeline_parallel_size)
    return num_layers * num_heads * 2 * dims.head_dim * GPU_KV_BYTES[kv_cache_precision]


def gpu_overhead_bytes(dims: ModelDims, max_num_tokens: int, num_gpus: int) -> int:
    """What a running engine needs beside weights, KV cache and logits."""
    experts_width = dims.num_experts_per_token * dims.expert_intermediate_size
    width = max(dims.intermediate_size, experts_width)
    # A few copies of the hidden states and of the MLP's inner ones live at a time.
    activations = BYTES_16 * max_num_tokens * (8 * dims.hidden_size + 3 * width)
    return CONTEXT_BYTES + activations + (NCCL_BYTES if num_gpus > 1 else 0)


def lora_bytes(lora: LoraLimits | None, parallelism: Parallelism) -> int:
    """Of the adapters that one GPU holds its part of."""
    return lora.cache_bytes // parallelism.world_size if lora else 0


def calibration_bytes(checkpoint: Checkpoint) -> int:
    """Of a GPU on which ModelOpt runs the model in 16 bits, and exports it.

    The export joins queries, keys and values of all layers while it still has their parts.
    """
    dims = checkpoint.dims
    num_outputs = dims.head_dim * (dims.num_attention_heads + 2 * dims.num_kv_heads)
    joined = dims.num_layers * dims.hidden_size * num_outputs
    return (checkpoint.num_parameters + joined) * BYTES_16 + CALIBRATION_BYTES


def gpu_min_host_bytes(
    checkpoint: Checkpoint, precision: str, *, is_calibrated_on_gpu: bool
) -> int:
    """One copy of the weights, without which no build can end.

    A model that the GPU calibrates is moved there shard by shard and comes back quantised. All
    others are in host memory as the checkpoint stores them.
    """
    if is_calibrated_on_gpu or checkpoint.quantization is not None:
        return engine_bytes(checkpoint, precision)
    return checkpoint.weights.num_bytes


def gpu_host_bytes(checkpoint: Checkpoint, precision: str, *, is_calibrated_on_gpu: bool) -> int:
    """What a build takes of the host's memory: libraries, one copy, and the engine beside it."""
    copy = gpu_min_host_bytes(checkpoint, precision, is_calibrated_on_gpu=is_calibrated_on_gpu)
    return GPU_BUILD_LIBRARY_BYTES + copy + engine_bytes(checkpoint, precision)


def gpu_build_disk_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """The quantised checkpoint, the engine made from it and its copy are on disk together."""
    return 3 * engine_bytes(checkpoint, precision) + CONFIG_BYTES
