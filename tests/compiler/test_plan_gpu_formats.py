"""Precisions, caches and checkpoints of GPUs: what goes together, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deepinfer.checkpoint import Checkpoint, Quantization
from deepinfer.compiler.architectures import list_architectures
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from tests.compiler.planning import (
    A100,
    B200,
    H100,
    LLAMA,
    LLAMA_FP8,
    LLAMA_FP8_ONLY,
    LLAMA_NVFP4,
    RTX4090,
    RTX5090,
    TWO_5090,
    library_of,
    plan,
    with_dtype,
)


def quantized(algo: str, kv_cache: str | None = None) -> Checkpoint:
    return replace(LLAMA_FP8, quantization=Quantization(algo, kv_cache))


FORMATS: dict[str, tuple[TargetDevice, Checkpoint, dict[str, Any], tuple[Any, ...]]] = {
    # precision, KV cache, dtype, quant_algo, kv_cache_quant_algo, gemm_plugin, FP8 attention
    "ada": (RTX4090, LLAMA, {}, ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True)),
    "hopper": (H100, LLAMA, {}, ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True)),
    "blackwell": (B200, LLAMA, {}, ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True)),
    "ampere": (A100, LLAMA, {}, ("bf16", "bf16", "bfloat16", None, None, "auto", False)),
    "ampere-fp16": (
        A100,
        with_dtype(LLAMA, "F16"),
        {},
        ("fp16", "fp16", "float16", None, None, "auto", False),
    ),
    "bf16": (
        RTX5090,
        LLAMA,
        {"precision": "bf16"},
        ("bf16", "bf16", "bfloat16", None, None, "auto", False),
    ),
    "fp16": (
        RTX5090,
        LLAMA,
        {"precision": "fp16"},
        ("fp16", "fp16", "float16", None, None, "auto", False),
    ),
    "fp8-of-fp16": (
        RTX5090,
        with_dtype(LLAMA, "F16"),
        {},
        ("fp8", "fp8", "float16", "FP8", "FP8", None, True),
    ),
    "fp8-of-fp32": (
        RTX5090,
        with_dtype(LLAMA, "F32"),
        {},
        ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True),
    ),
    "fp8-with-a-bf16-cache": (
        RTX5090,
        LLAMA,
        {"kv_cache_precision": "bf16"},
        ("fp8", "bf16", "bfloat16", "FP8", None, None, False),
    ),
    "nvfp4": (
        RTX5090,
        LLAMA,
        {"precision": "nvfp4"},
        ("nvfp4", "fp8", "bfloat16", "NVFP4", "FP8", "nvfp4", True),
    ),
    "modelopt-fp8": (RTX5090, LLAMA_FP8, {}, ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True)),
    "modelopt-nvfp4": (
        RTX5090,
        LLAMA_NVFP4,
        {},
        ("nvfp4", "fp8", "bfloat16", "NVFP4", "FP8", "nvfp4", True),
    ),
    "modelopt-without-scales-of-the-cache": (
        RTX5090,
        LLAMA_FP8_ONLY,
        {},
        ("fp8", "bf16", "bfloat16", "FP8", None, None, False),
    ),
    "modelopt-with-a-cache-as-asked": (
        RTX5090,
        LLAMA_FP8_ONLY,
        {"kv_cache_precision": "fp8"},
        ("fp8", "fp8", "bfloat16", "FP8", "FP8", None, True),
    ),
    "experimental-int8": (
        RTX5090,
        LLAMA,
        {"precision": "int8", "experimental": True},
        ("int8", "bf16", "bfloat16", "W8A16", None, "auto", False),
    ),
    "experimental-int4": (
        H100,
        LLAMA,
        {"precision": "int4", "experimental": True},
        ("int4", "bf16", "bfloat16", "W4A16", None, "auto", False),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name: str) -> None:
    device, checkpoint, options, expected = FORMATS[name]
    made = plan(device, checkpoint, **options)
    library = library_of(made)
    assert expected == (
        made.precision,
        made.kv_cache_precision,
        library.dtype,
        library.quant_algo,
        library.kv_cache_quant_algo,
        library.plugins["gemm_plugin"],
        library.plugins["use_fp8_context_fmha"],
    )
    assert library.is_prequantized == (checkpoint.quantization is not None)


def test_fp8_cache_beside_16_bit_weights_costs_paging_and_is_experimental() -> None:
    options = {"precision": "bf16", "kv_cache_precision": "fp8", "experimental": True}
    made = plan(RTX5090, LLAMA, **options)
    assert not library_of(made).plugins["use_paged_context_fmha"]
    assert not made.settings["chunked_prefill"] and not made.settings["block_reuse"]
    assert library_of(made).needs_calibration
    assert any(warning.startswith("experimental") for warning in made.warnings)
    long = plan(RTX5090, LLAMA, max_seq_len=10_000, **options)
    assert long.limits.max_num_tokens >= long.limits.max_input_len
    with pytest.raises(PlanError, match="this engine reads a prompt in one step"):
        plan(RTX5090, LLAMA, max_num_tokens=2048, **options)


REFUSED: dict[str, tuple[TargetDevice, Checkpoint, dict[str, Any], str, str]] = {
    "fp32": (RTX5090, LLAMA, {"precision": "fp32"}, "computes in 16 bits", "`--precision bf16`"),
    "nvfp4-on-ada": (
        RTX4090,
        LLAMA,
        {"precision": "nvfp4", "experimental": True},
        "(NVFP4) is not supported on sm_89: Ada Lovelace has no tensor cores for it",
        "`--precision fp8`",
    ),
    "fp8-on-ampere": (
        A100,
        LLAMA,
        {"precision": "fp8"},
        "(FP8) is not supported on sm_80",
        "`--precision bf16`",
    ),
    "int8": (
        RTX5090,
        LLAMA,
        {"precision": "int8"},
        "(W8A16) is not supported on sm_120 by TensorRT-LLM 1.2.1, though its builder lets it",
        "or `--experimental` to try it",
    ),
    "int4-that-the-builder-refuses": (
        B200,
        LLAMA,
        {"precision": "int4", "experimental": True},
        "(W4A16) is not supported on sm_100: the library's builder refuses it there",
        "`--precision fp8`",
    ),
    "group-size": (
        RTX5090,
        LLAMA,
        {"precision": "int4", "group_size": 64, "experimental": True},
        "`--group-size` applies to int4 on CPUs",
        "omit it",
    ),
    "int8-cache": (
        RTX5090,
        LLAMA,
        {"kv_cache_precision": "int8"},
        "would switch paged attention off",
        "`--kv-cache-precision fp8`",
    ),
    "cache-of-another-type": (
        RTX5090,
        LLAMA,
        {"kv_cache_precision": "fp16"},
        "the type that the engine computes in, bf16",
        "`--kv-cache-precision bf16`",
    ),
    "fp8-cache-beside-bf16": (
        RTX5090,
        LLAMA,
        {"precision": "bf16", "kv_cache_precision": "fp8"},
        "the library then drops paged attention",
        "`--kv-cache-precision bf16`, or `--precision fp8`, or `--experimental`",
    ),
    "openvino": (
        RTX5090,
        LLAMA,
        {"backend": "openvino"},
        "compiles for CPUs; the target is a GPU, NVIDIA GeForce RTX 5090",
        "`--target cpu`",
    ),
    "awq": (
        RTX5090,
        replace(LLAMA, quant_method="awq"),
        {"experimental": True},
        "is quantised already (awq)",
        "`--precision fp8` quantises it here",
    ),
    "gptq": (
        RTX4090,
        replace(LLAMA, quant_method="gptq"),
        {},
        "already (gptq)",
        "it was made from",
    ),
    "compressed-tensors": (
        RTX5090,
        replace(LLAMA, quant_method="compressed-tensors"),
        {},
        "already (compressed-tensors)",
        "it was made from",
    ),
    "fp8-of-others": (RTX5090, with_dtype(LLAMA, "F8_E4M3"), {}, "are F8_E4M3", "it was made from"),
    "modelopt-without-its-file": (
        RTX5090,
        replace(LLAMA, quant_method="modelopt"),
        {},
        "has no hf_quant_config.json",
        "with that file",
    ),
    "block-scaled-fp8": (
        RTX5090,
        quantized("FP8_BLOCK_SCALES"),
        {},
        "is quantised to FP8_BLOCK_SCALES",
        "it was made from",
    ),
    "modelopt-nvfp4-on-ada": (RTX4090, LLAMA_NVFP4, {}, "not supported on sm_89", "fp8"),
    "modelopt-in-another-precision": (
        RTX5090,
        LLAMA_FP8,
        {"precision": "bf16"},
        "is quantised to FP8 already",
        "`--precision fp8`",
    ),
    "modelopt-with-another-cache": (
        RTX5090,
        LLAMA_FP8,
        {"kv_cache_precision": "bf16"},
        "is calibrated for an fp8 cache",
        "`--kv-cache-precision fp8`",
    ),
    "nvfp4-cache": (
        RTX5090,
        quantized("NVFP4", "NVFP4"),
        {},
        "asks for a KV cache of NVFP4; sm_120 has FP8",
        "it was made from",
    ),
    "architecture": (
        RTX5090,
        replace(LLAMA, architecture="GptOssForCausalLM"),
        {},
        "TensorRT-LLM 1.2.1 has no compiled engine for GptOssForCausalLM; its PyTorch runtime has",
        "LlamaForCausalLM",
    ),
    "calibration-of-nothing": (
        RTX5090,
        LLAMA,
        {"precision": "bf16", "calib_data": "texts.txt"},
        "`--calib-data texts.txt` would not be read: bf16 weights need no calibration",
        "omit it",
    ),
    "calibration-of-modelopt": (
        RTX5090,
        LLAMA_FP8,
        {"calib_data": "texts.txt"},
        "ModelOpt calibrated the checkpoint already",
        "omit it",
    ),
    "heads": (
        H100,
        LLAMA,
        {"tensor_parallel_size": 3},
        "`--tensor-parallel-size 3` does not divide the attention heads 32",
        "1, 2, 4 and 8",
    ),
    "layers": (
        H100,
        LLAMA,
        {"pipeline_parallel_size": 3},
        "`--pipeline-parallel-size 3` does not divide the layers 32",
        "1, 2, 4 and 8",
    ),
    "more-gpus-than-there-are": (
        TWO_5090,
        LLAMA,
        {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
        "needs 4 GPUs; this machine has 2 NVIDIA GeForce RTX 5090",
        "`--tensor-parallel-size`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_options_are_refused(name: str) -> None:
    device, checkpoint, options, message, hint = REFUSED[name]
    with pytest.raises(PlanError) as caught:
        plan(device, checkpoint, **options)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not caught.value.message.endswith(".")


@pytest.mark.parametrize("architecture", list_architectures("supported", "untried"))
def test_supported_architecture_is_planned(architecture: str) -> None:
    assert plan(RTX5090, replace(LLAMA, architecture=architecture)).architecture == architecture
