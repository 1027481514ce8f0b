"""What TensorRT-LLM can build for a GPU, and what is best there when nobody says: pure rules.

The planner asks; nothing here reads a file or imports a library. What things weigh is said by
`gpu_footprint.py`, what a compute capability has by `capabilities.py`.
"""

from __future__ import annotations

from deepinfer.checkpoint import Checkpoint, Quantization
from deepinfer.compiler.capabilities import (
    CAPABILITIES,
    Capability,
    find_capability,
)
from deepinfer.compiler.target import TargetDevice
from deepinfer.compiler.wishes import AS_ASKED, BuildWishes
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice
from deepinfer.trtllm_release import CHECKED_VERSION

# Those causal language models of the library's MODEL_MAP that this compiler takes.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Phi3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
)
QUANT_ALGOS = {"fp8": "FP8", "nvfp4": "NVFP4", "int8": "W8A16", "int4": "W4A16"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
# From the smallest to the largest: the order in which a plan that does not fit offers them.
PRECISIONS = ("nvfp4", "fp8", "bf16", "fp16")
UNQUANTIZED = "give the checkpoint that it was made from; `--precision fp8` quantises it here"


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise PlanError for a checkpoint that the library cannot compile, whatever the GPU."""
    if checkpoint.architecture not in ARCHITECTURES:
        raise PlanError(
            f"{checkpoint.architecture} is not supported by the TensorRT-LLM backend",
            hint="supported: " + ", ".join(ARCHITECTURES),
        )
    if checkpoint.quantization is not None:
        return
    if checkpoint.quant_method == "modelopt":
        raise PlanError(
            f"`{checkpoint.id}` is quantised by ModelOpt and has no hf_quant_config.json, which "
            "the library reads",
            hint="download or export the checkpoint again, with that file",
        )
    if checkpoint.quant_method is not None:
        raise PlanError(
            f"`{checkpoint.id}` is quantised already ({checkpoint.quant_method}); TensorRT-LLM "
            f"{CHECKED_VERSION} builds engines from ModelOpt's FP8 and NVFP4 only",
            hint=UNQUANTIZED,
        )
    if checkpoint.precision not in ("fp32", "fp16", "bf16"):
        raise PlanError(
            f"the weights of `{checkpoint.id}` are {checkpoint.weights.dtype}; the TensorRT-LLM "
            "backend compiles from F32, F16 or BF16, or from ModelOpt's FP8 and NVFP4",
            hint=UNQUANTIZED,
        )


def capability_of(device: TargetDevice) -> Capability:
    """Raises PlanError for a compute capability that the library has no row for."""
    capability = find_capability(device.capability)
    if capability is None:
        raise PlanError(
            f"{device.name} is {device.capability}; TensorRT-LLM {CHECKED_VERSION} compiles "
            "for " + ", ".join(CAPABILITIES),
            hint="`--target cpu`",
        )
    return capability


def choose_precision(capability: Capability, checkpoint: Checkpoint, wishes: BuildWishes) -> Choice:
    """Raises PlanError for a precision that this GPU or this checkpoint does not have."""
    if checkpoint.quantization is not None:
        return _keep_precision(capability, checkpoint, checkpoint.quantization, wishes)
    name, wish = "precision", wishes.precision
    if wish != "auto":
        _check_precision(capability, wish, is_experimental=wishes.experimental)
        return Choice(name=name, value=wish, reason=AS_ASKED)
    if capability.has_fp8:
        reason = f"{capability.name} has FP8 tensor cores: half the bytes of bf16, twice its rate"
        return Choice(name=name, value="fp8", reason=reason)
    value = "fp16" if checkpoint.precision == "fp16" else "bf16"
    reason = f"{capability.name} ({capability.generation}) has no FP8 tensor cores"
    return Choice(name=name, value=value, reason=reason)


def _keep_precision(
    capability: Capability, checkpoint: Checkpoint, found: Quantization, wishes: BuildWishes
) -> Choice:
    """That of a checkpoint of ModelOpt's, which has its scales and needs no calibration."""
    names = {"FP8": "fp8", "NVFP4": "nvfp4"}
    precision = names.get(found.quant_algo)
    if precision is None:
        raise PlanError(
            f"`{checkpoint.id}` is quantised to {found.quant_algo}; this compiler takes "
            "ModelOpt's FP8 and NVFP4",
            hint=UNQUANTIZED,
        )
    if wishes.precision not in ("auto", precision):
        raise PlanError(
            f"`--precision {wishes.precision}`: `{checkpoint.id}` is quantised to "
            f"{found.quant_algo} already",
            hint=f"`--precision {precision}`, or give the checkpoint that it was made from",
        )
    _check_precision(capability, precision, is_experimental=wishes.experimental)
    if wishes.precision == precision:
        return Choice(name="precision", value=precision, reason=AS_ASKED)
    reason = f"the checkpoint's own: ModelOpt quantised it to {found.quant_algo}"
    return Choice(name="precision", value=precision, reason=reason)


def _check_precision(capability: Capability, precision: str, *, is_experimental: bool) -> None:
    if precision == "fp32":
        raise PlanError(
            "`--precision fp32`: the library's paged attention computes in 16 bits or fewer",
            hint="`--precision bf16`, or `--target cpu` for exact arithmetic",
        )
    algo = QUANT_ALGOS.get(precision)
    if algo is None or algo in capability.quant_algos:
        return
    what = f"`--precision {precision}` ({algo}) is not supported on {capability.name}"
    usual = "`--precision fp8`" if capability.has_fp8 else "`--precision bf16`"
    if algo in capability.refused:
        raise PlanError(f"{what}: the library's builder refuses it there", hint=usual)
    if algo in ("FP8", "NVFP4"):
        raise PlanError(f"{what}: {capability.generation} has no tensor cores for it", hint=usual)
    if not is_experimental:
        raise PlanError(
            f"{what} by TensorRT-LLM {CHECKED_VERSION}, though its builder lets it through",
            hint=f"{usual}, or `--experimental` to try it",
        )


def choose_kv_cache_precision(
    capability: Capability, checkpoint: Checkpoint, precision: str, wishes: BuildWishes
) -> Choice:
    """Raises PlanError for a KV cache that does not go with these weights."""
    name, wish = "kv_cache_precision", wishes.kv_cache_precision
    own = base_precision(checkpoint, precision)
    if wish in ("fp32", "int8"):
        raise PlanError(
            f"`--kv-cache-precision {wish}` would switch paged attention off, and with it the "
            "reuse of prompts",
            hint=f"`--kv-cache-precision {'fp8' if precision in ('fp8', 'nvfp4') else own}`",
        )
    if _has_fp8_cache(capability, checkpoint):
        return _keep_fp8_cache(checkpoint, wish)
    if wish == "auto":
        return _best_kv_cache(checkpoint, precision, own)
    if wish == "fp8":
        _check_fp8_cache(precision, own, is_experimental=wishes.experimental)
    elif wish != own:
        raise PlanError(
            f"`--kv-cache-precision {wish}`: beside fp8, the cache has the type that the engine "
            f"computes in, {own}",
            hint=f"`--kv-cache-precision {own}`",
        )
    return Choice(name=name, value=wish, reason=AS_ASKED)


def base_precision(checkpoint: Checkpoint, precision: str) -> str:
    """The 16-bit type of activations and of what is not quantised."""
    if precision in DTYPES:
        return precision
    by_dtype = checkpoint.weights.parameters_by_dtype
    return "fp16" if by_dtype.get("F16", 0) > by_dtype.get("BF16", 0) else "bf16"


def can_page_attention(precision: str, kv_cache_precision: str) -> bool:
    """An FP8 cache beside other weights: the builder then drops paged context attention."""
    return kv_cache_precision != "fp8" or precision in ("fp8", "nvfp4")


def _has_fp8_cache(capability: Capability, checkpoint: Checkpoint) -> bool:
    found = checkpoint.quantization
    if found is None or found.kv_cache_quant_algo is None:
        return False
    if found.kv_cache_quant_algo not in capability.kv_cache_quant_algos:
        raise PlanError(
            f"`{checkpoint.id}` asks for a KV cache of {found.kv_cache_quant_algo}; "
            f"{capability.name} has " + ", ".join(sorted(capability.kv_cache_quant_algos)),
            hint=UNQUANTIZED,
        )
    return True


def _keep_fp8_cache(checkpoint: Checkpoint, wish: str) -> Choice:
    if wish not in ("auto", "fp8"):
        raise PlanError(
            f"`--kv-cache-precision {wish}`: `{checkpoint.id}` is calibrated for an fp8 cache",
            hint="`--kv-cache-precision fp8`",
        )
    reason = AS_ASKED if wish == "fp8" else "the checkpoint's own: ModelOpt calibrated it"
    return Choice(name="kv_cache_precision", value="fp8", reason=reason)


def _best_kv_cache(checkpoint: Checkpoint, precision: str, own: str) -> Choice:
    if precision not in ("fp8", "nvfp4"):
        value, reason = own, "an fp8 cache needs fp8 or nvfp4 weights, or attention is not paged"
    elif checkpoint.quantization is not None:
        value, reason = own, "the checkpoint has no scales for an fp8 cache"
    else:
        value, reason = "fp8", "half of bf16, and attention over the prompt then runs in FP8 too"
    return Choice(name="kv_cache_precision", value=value, reason=reason)


def _check_fp8_cache(precision: str, own: str, *, is_experimental: bool) -> None:
    if not can_page_attention(precision, "fp8") and not is_experimental:
        raise PlanError(
            f"`--kv-cache-precision fp8` beside {precision} weights: the library then drops paged "
            "attention, and with it chunked prompts and the reuse of their cache",
            hint=f"`--kv-cache-precision {own}`, or `--precision fp8`, or `--experimental`",
        )
