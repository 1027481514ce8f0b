"""What TensorRT-LLM's builder is told beyond limits and precision: the library's own names.

Values only; who calls the library with them is the compiler.
"""

from __future__ import annotations

from deepinfer.compiler.budget import TOKENS_PER_BLOCK
from deepinfer.manifest import Record

CALIB_BATCHES = 512  # of one text, as the library's CalibConfig has it
CALIB_BATCHES_ON_CPU = 64  # where each takes seconds, not milliseconds
CALIB_MAX_SEQ_LENGTH = 512  # tokens of a text, as the library's CalibConfig has it

# PEFT's names of linear layers, as the library's own `LoraConfig` has them.
LORA_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "gate_up_proj": "mlp_gate_up",
    "down_proj": "mlp_4h_to_h",
}

PluginValue = str | bool | int | None


class TensorRtLlmPlan(Record):
    dtype: str  # "bfloat16" or "float16"
    quant_algo: str | None
    kv_cache_quant_algo: str | None
    is_prequantized: bool  # by ModelOpt: the checkpoint has its scales
    needs_calibration: bool
    calib_device: str  # "cuda" or "cpu"
    calib_data: str | None  # as asked for; None is the set that ships with DeepInfer
    calib_batches: int
    calib_max_seq_length: int
    plugins: dict[str, PluginValue]  # fields of PluginConfig
    nccl_env: dict[str, str]
    has_smoke_test: bool


def choose_plugins(
    dtype: str,
    precision: str,
    kv_cache_precision: str,
    *,
    is_paged: bool,
    num_gpus: int,
    takes_adapters: bool = False,
) -> dict[str, PluginValue]:
    return {
        "dtype": dtype,
        "gemm_plugin": _choose_gemm_plugin(precision),
        "nccl_plugin": "auto" if num_gpus > 1 else None,
        "context_fmha": True,
        "remove_input_padding": True,
        "paged_kv_cache": True,
        "tokens_per_block": TOKENS_PER_BLOCK,
        "use_paged_context_fmha": is_paged,
        # The library switches it off again unless weights and cache are both quantised.
        "use_fp8_context_fmha": precision in ("fp8", "nvfp4") and kv_cache_precision == "fp8",
        # Both need peer access, or pay off beyond one GPU only.
        "reduce_fusion": False,
        "user_buffer": False,
        **({"lora_plugin": "auto"} if takes_adapters else {}),  # computes in the base type
    }


def _choose_gemm_plugin(precision: str) -> str | None:
    if precision == "nvfp4":
        return "nvfp4"
    # TensorRT's own FP8 products are the faster ones but for very small batches.
    return None if precision == "fp8" else "auto"
