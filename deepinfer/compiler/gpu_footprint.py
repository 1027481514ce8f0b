"""What a TensorRT-LLM engine weighs on each GPU, and what its build takes: estimates in bytes.

Pure arithmetic. No figure here was measured on a card; each errs on the side of too much.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.manifest import LoraLimits, Parallelism

BYTES_16 = 2  # of the types that embedding, LM head, norms and activations keep
# An NVFP4 block of 16 weights shares an FP8 scale.
WEIGHT_BYTES = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
    "int8": 1.0,
    "int4": 0.5,
}
KV_BYTES = {"bf16": 2, "fp16": 2, "fp8": 1}

CONTEXT_BYTES = 1_000_000_000  # CUDA context, TensorRT, cuBLAS and the executor's own buffers
NCCL_BYTES = 300_000_000  # its buffers, once there is more than one GPU
CALIBRATION_BYTES = 1_500_000_000  # context, activations and logits of one text
# The executor keeps a few numbers of four bytes for each token that each sequence may have: ids,
# log probabilities, where its cache lies.
SLOT_BYTES_PER_TOKEN = 20
BUILD_LIBRARY_BYTES = 4_000_000_000  # torch, TensorRT and ModelOpt in the building process
CONFIG_BYTES = 50_000_000  # tokenizers, timing cache and manifest on disk


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
    return int(parameters.layers * WEIGHT_BYTES[precision])


def weight_bytes(checkpoint: Checkpoint, precision: str, parallelism: Parallelism) -> int:
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


def kv_bytes_per_token(
    dims: ModelDims, kv_cache_precision: str, parallelism: Parallelism | None = None
) -> int:
    """Of one token over all layers, or of the part of them that one GPU has."""
    parallelism = parallelism or Parallelism()
    num_heads = -(-dims.num_kv_heads // parallelism.tensor_parallel_size)
    num_layers = -(-dims.num_layers // parallelism.pipeline_parallel_size)
    return num_layers * num_heads * 2 * dims.head_dim * KV_BYTES[kv_cache_precision]


def overhead_bytes(dims: ModelDims, max_num_tokens: int, num_gpus: int) -> int:
    """What a running engine needs beside weights, KV cache and logits."""
    experts_width = dims.num_experts_per_token * dims.expert_intermediate_size
    width = max(dims.intermediate_size, experts_width)
    # A few copies of the hidden states and of the MLP's inner ones live at a time.
    activations = BYTES_16 * max_num_tokens * (8 * dims.hidden_size + 3 * width)
    return CONTEXT_BYTES + activations + (NCCL_BYTES if num_gpus > 1 else 0)


def lora_bytes(lora: LoraLimits | None, parallelism: Parallelism) -> int:
    """Of the adapters that one GPU holds its part of."""
    return lora.cache_bytes // parallelism.world_size if lora else 0


def logits_bytes(dims: ModelDims) -> int:
    """Of one running sequence: its scores in fp32, and their copy in the sampler."""
    return 2 * 4 * dims.vocab_size


def calibration_bytes(checkpoint: Checkpoint) -> int:
    """Of a GPU on which ModelOpt runs the model in 16 bits, and exports it.

    The export joins queries, keys and values of all layers while it still has their parts.
    """
    dims = checkpoint.dims
    num_outputs = dims.head_dim * (dims.num_attention_heads + 2 * dims.num_kv_heads)
    joined = dims.num_layers * dims.hidden_size * num_outputs
    return (checkpoint.num_parameters + joined) * BYTES_16 + CALIBRATION_BYTES


def min_host_bytes(checkpoint: Checkpoint, precision: str, *, is_calibrated_on_gpu: bool) -> int:
    """One copy of the weights, without which no build can end.

    A model that the GPU calibrates goes there shard by shard, and comes back quantised. All others
    lie in host memory as the checkpoint has them: to be quantised there, or to be compiled.
    """
    if is_calibrated_on_gpu or checkpoint.quantization is not None:
        return engine_bytes(checkpoint, precision)
    return checkpoint.weights.num_bytes


def host_bytes(checkpoint: Checkpoint, precision: str, *, is_calibrated_on_gpu: bool) -> int:
    """What a build takes of the host's memory: libraries, one copy, and the engine beside it."""
    copy = min_host_bytes(checkpoint, precision, is_calibrated_on_gpu=is_calibrated_on_gpu)
    return BUILD_LIBRARY_BYTES + copy + engine_bytes(checkpoint, precision)


def build_disk_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """The quantised checkpoint, the engine made from it and its copy lie side by side."""
    return 3 * engine_bytes(checkpoint, precision) + CONFIG_BYTES
