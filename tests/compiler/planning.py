"""Devices and checkpoints for the planner, made of numbers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.compiler.target import TargetDevice
from deepinfer.weights import Weights

GIB = 2**30

LAPTOP = TargetDevice(
    kind="cpu",
    name="Some CPU",
    capability="x86_64",
    features=("avx2", "f16c", "fma"),
    has_native_bf16=False,
    memory_bytes=16 * GIB,
    host_memory_bytes=16 * GIB,
    disk_bytes=500 * GIB,
)
BF16_SERVER = replace(
    LAPTOP,
    name="Some Server",
    features=("amx_bf16", "avx2", "avx512_bf16"),
    has_native_bf16=True,
    memory_bytes=256 * GIB,
    host_memory_bytes=256 * GIB,
)

# The shape of Qwen2.5-0.5B-Instruct and its parameters, as on the hub.
QWEN_DIMS = ModelDims(
    hidden_size=896,
    num_layers=24,
    num_attention_heads=14,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=4864,
    vocab_size=151_936,
    max_position_embeddings=32_768,
)
# The shape of Llama-3.1-8B-Instruct.
LLAMA_DIMS = ModelDims(
    hidden_size=4096,
    num_layers=32,
    num_attention_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14_336,
    vocab_size=128_256,
    max_position_embeddings=131_072,
)


def make_weights(parameters: int, embedding: int, lm_head: int = 0, dtype: str = "BF16") -> Weights:
    size = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}[dtype]
    return Weights(
        files=("model.safetensors",),
        num_bytes=parameters * size,
        parameters_by_dtype={dtype: parameters},
        embedding_parameters=embedding,
        lm_head_parameters=lm_head,
        expert_parameters=0,
    )


QWEN = Checkpoint(
    id="Qwen/Qwen2.5-0.5B-Instruct",
    source="Qwen/Qwen2.5-0.5B-Instruct",
    revision="0" * 40,
    folder=Path("/nowhere"),
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    dims=QWEN_DIMS,
    weights=make_weights(494_032_768, 136_134_656),
    is_tied=True,
    eos_token_ids=(151_643, 151_645),
    has_chat_template=True,
)
LLAMA = replace(
    QWEN,
    id="meta-llama/Llama-3.1-8B-Instruct",
    source="meta-llama/Llama-3.1-8B-Instruct",
    architecture="LlamaForCausalLM",
    model_type="llama",
    dims=LLAMA_DIMS,
    weights=make_weights(8_030_261_248, 525_336_576, 525_336_576),
    is_tied=False,
)


def with_dims(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(checkpoint, dims=replace(checkpoint.dims, **changes))


def with_dtype(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    weights = checkpoint.weights
    return replace(
        checkpoint,
        weights=make_weights(
            weights.num_parameters, weights.embedding_parameters, weights.lm_head_parameters, dtype
        ),
    )
