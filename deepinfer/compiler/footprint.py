"""What an engine for a CPU weighs, on disk and in memory: estimates in bytes.

Pure arithmetic, fitted to the measurements that stand beside the constants.
"""

from __future__ import annotations

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.compiler.budget import TOKENS_PER_BLOCK

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}
INT4_GROUP_SIZE = 128
QUANTIZED_KV_OVERHEAD = 8  # an 8-bit cache stores scale and zero point as two floats

# What a loaded engine holds beside its file, which stays mapped and can be dropped by the kernel:
# 0.72, 0.39, 0.24 GB of private memory for bf16, int8 and int4 files of 0.34, 0.17, 0.10 GB
# (168M parameters, AVX2), because kernels for one row and for many rows pack weights differently.
PACKED_COPIES = 2.0
RUNTIME_BYTES = 150_000_000
# A build: the libraries alone take 0.45 GB; weights that keep their type stay mapped from disk.
BUILD_LIBRARY_BYTES = 700_000_000
EXPORT_SHARE = 0.15  # of the exported bytes, for the graph and the pieces being compressed
CONFIG_BYTES = 50_000_000  # tokenizers, graph and manifest on disk


def weight_bytes(checkpoint: Checkpoint, precision: str, group_size: int = INT4_GROUP_SIZE) -> int:
    """Size of the payload's weights. `group_size` matters to int4 only."""
    total = checkpoint.num_parameters
    if precision in ("fp32", "fp16", "bf16"):
        return total * BITS[precision] // 8
    # Each row of an int8 matrix has a two-byte scale and a one-byte zero point.
    int8_bytes = 1 + 3 / checkpoint.dims.hidden_size
    if precision == "int8":
        return int(total * int8_bytes)
    # Embedding and LM head stay int8; each group of int4 has a two-byte scale and a half-byte zero.
    embedding = checkpoint.num_embedding_parameters
    int4_bytes = 0.5 + 2.5 / group_size
    return int((total - embedding) * int4_bytes + embedding * int8_bytes)


def kv_bytes_per_token(
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
    return num_vectors * 2 * dims.head_dim * BITS[kv_cache_precision] // 8


def overhead_bytes(dims: ModelDims, weight_bytes: int, max_num_tokens: int) -> int:
    """What a running engine needs beside weights, KV cache and logits."""
    repacked = int(weight_bytes * (PACKED_COPIES - 1))
    width = max(dims.intermediate_size, dims.num_experts * expert_size(dims))
    activations = 4 * max_num_tokens * (8 * dims.hidden_size + 3 * width)
    return RUNTIME_BYTES + repacked + activations


def logits_bytes(dims: ModelDims) -> int:
    """Of one running sequence: its scores in fp32, and their copy in the sampler."""
    return 2 * 4 * dims.vocab_size


def build_memory_bytes(checkpoint: Checkpoint, precision: str, weight_bytes: int) -> int:
    exported = export_bytes(checkpoint, precision)
    held = int(exported * EXPORT_SHARE) + weight_bytes
    if export_precision(checkpoint, precision) != checkpoint.precision:
        held += exported  # converted weights are private memory; the others stay mapped
    elif precision != "fp32":
        held += 4 * checkpoint.weights.expert_parameters
    return BUILD_LIBRARY_BYTES + held


def build_disk_bytes(checkpoint: Checkpoint, precision: str, weight_bytes: int) -> int:
    """The export and the payload that is made from it lie side by side for a while."""
    return export_bytes(checkpoint, precision) + weight_bytes + CONFIG_BYTES


def export_precision(checkpoint: Checkpoint, precision: str) -> str:
    """The type that the weights are exported in, before any compression."""
    return precision if precision in ("fp32", "fp16", "bf16") else checkpoint.precision


def export_bytes(checkpoint: Checkpoint, precision: str) -> int:
    size = BITS[export_precision(checkpoint, precision)] // 8
    experts = checkpoint.weights.expert_parameters
    # The exporter widens experts to fp32, whatever they were.
    return (checkpoint.num_parameters - experts) * size + experts * 4


def expert_size(dims: ModelDims) -> int:
    return dims.expert_intermediate_size or dims.intermediate_size
