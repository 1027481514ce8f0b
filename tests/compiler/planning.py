"""Devices and checkpoints for the planner, made of numbers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import Checkpoint, ModelDims, Quantization
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.plan import make_plan
from deepinfer.compiler.plan_types import BuildPlan, TensorRtLlmPlan
from deepinfer.compiler.source import read_config_only_checkpoint
from deepinfer.compiler.targets import TargetDevice, resolve_target
from deepinfer.device import Cpu, Gpu, Machine
from deepinfer.weights import Weights

GIB = 2**30
CONFIGS = Path(__file__).parent.parent / "recorded" / "configs"

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
    has_key_bias=True,
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
    has_key_bias=False,
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


def make_gpu(
    name: str = "NVIDIA GeForce RTX 5090",
    capability: tuple[int, int] = (12, 0),
    *,
    index: int = 0,
    total_gib: float = 31.8,
    free_gib: float = 31.2,
) -> Gpu:
    return Gpu(
        index=index,
        name=name,
        total_memory_bytes=int(total_gib * GIB),
        free_memory_bytes=int(free_gib * GIB),
        compute_capability=capability,
        driver_version="580.126.20",
        cuda_version="13.0",
    )


def make_machine(*gpus: Gpu) -> Machine:
    return Machine(
        cpu=Cpu("A CPU", "x86_64", frozenset({"avx512_bf16", "avx2"}), num_cores=4, num_threads=8),
        gpus=gpus,
        total_memory_bytes=256 * GIB,
        available_memory_bytes=200 * GIB,
    )


def resolve(target: str, *gpus: Gpu, **settings: Any) -> TargetDevice:
    return resolve_target(target, make_machine(*gpus), 500 * GIB, **settings)


def read_config(name: str) -> Checkpoint:
    """A recorded configuration, with a chat template as the model has one."""
    return replace(read_config_only_checkpoint(CONFIGS / name), has_chat_template=True)


def plan(device: TargetDevice, checkpoint: Checkpoint, **options: Any) -> BuildPlan:
    return make_plan(device, checkpoint, BuildOptions(model=checkpoint.id, **options))


def reason(made: BuildPlan, name: str) -> str:
    (choice,) = [choice for choice in made.choices if choice.name == name]
    return choice.reason


def library_of(made: BuildPlan) -> TensorRtLlmPlan:
    assert made.tensorrt_llm is not None
    return made.tensorrt_llm


RTX5090 = resolve("rtx5090")
RTX4090 = resolve("rtx4090")
H100 = resolve("h100")
B200 = resolve("b200")
A100 = resolve("sm_80", make_gpu("NVIDIA A100-SXM4-80GB", (8, 0), total_gib=80, free_gib=79))
TWO_5090 = resolve("rtx5090", make_gpu(), make_gpu(index=1))

QWEN14 = replace(read_config("qwen3-14b-nvfp4"), quantization=None, quant_method=None)
QWEN32 = read_config("qwen3-32b")
LLAMA_FP8 = replace(
    with_dtype(LLAMA, "F8_E4M3"),
    quant_method="modelopt",
    quantization=Quantization("FP8", "FP8"),
)
LLAMA_NVFP4 = replace(LLAMA_FP8, quantization=Quantization("NVFP4", "FP8"))
LLAMA_FP8_ONLY = replace(LLAMA_FP8, quantization=Quantization("FP8"))
