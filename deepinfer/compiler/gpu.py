"""What TensorRT-LLM can build for a GPU, and what is best there when nobody says: pure rules.

The planner asks; nothing here reads a file or imports a library. What things weigh is said by
`gpu_footprint.py`, what a compute capability has by `capabilities.py`, and what an architecture
has by `architectures.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from deepinfer.checkpoint import Checkpoint, Quantization
from deepinfer.compiler.architectures import Architecture, find_architecture
from deepinfer.compiler.capabilities import (
    CAPABILITIES,
    Capability,
    find_capability,
)
from deepinfer.compiler.memory import DEFAULT_MAX_SEQ_LEN
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice
from deepinfer.trtllm_release import CHECKED_VERSION

QUANT_ALGOS = {"fp8": "FP8", "nvfp4": "NVFP4", "int8": "W8A16", "int4": "W4A16"}
PRECISION_OF_ALGO = {"FP8": "fp8", "NVFP4": "nvfp4"}  # that ModelOpt's checkpoints may have
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
# From the smallest to the largest: the order in which a plan that does not fit offers them.
PRECISIONS = ("nvfp4", "fp8", "bf16", "fp16")
UNQUANTIZED = "give the checkpoint that it was made from; `--precision fp8` quantises it here"
# Reports of broken answers from Qwen2 and Qwen2.5 with FP8 weights and an FP8 KV cache.
KEY_BIAS_ISSUES = "TensorRT-LLM issues 4218 and 2699"
# FP8 is left for NVFP4 where it holds fewer full sequences than this side by side.
MIN_FP8_SEQUENCES = 16
# RoPE's types that the library has tables for; "dynamic" only as Hunyuan's models have it.
ROPE_TYPES = frozenset({"default", "linear", "llama3", "longrope", "su", "yarn"})


def check_checkpoint(checkpoint: Checkpoint) -> Architecture:
    """Raise PlanError for a checkpoint that the library cannot compile, whatever the GPU."""
    architecture = find_architecture(checkpoint.architecture)
    _check_experts(checkpoint)
    _check_rope(checkpoint)
    if checkpoint.quantization is None:
        _check_weights(checkpoint)
    return architecture


def _check_experts(checkpoint: Checkpoint) -> None:
    # QWenConfig.from_hugging_face sets the normalisation of experts to NONE, whatever the model.
    if checkpoint.renormalizes_experts and checkpoint.architecture.startswith("Qwen"):
        raise PlanError(
            f"TensorRT-LLM {CHECKED_VERSION} would compute `{checkpoint.id}` wrong: it does not "
            "read `norm_topk_prob`, and leaves the chosen experts' weights as they are",
            hint="a dense model, such as Qwen3-8B or Qwen3-14B; its PyTorch runtime has this one, "
            "which DeepInfer does not use",
        )


def _check_rope(checkpoint: Checkpoint) -> None:
    rope = checkpoint.rope
    if rope.type not in ROPE_TYPES and not (rope.type == "dynamic" and rope.has_alpha):
        raise PlanError(
            f"`{checkpoint.id}` has RoPE of type `{rope.type}`, which TensorRT-LLM "
            f"{CHECKED_VERSION} cannot compile",
            hint="a checkpoint without `rope_scaling` in its config.json, or with `yarn`",
        )


def _check_weights(checkpoint: Checkpoint) -> None:
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


def choose_precision(
    capability: Capability,
    checkpoint: Checkpoint,
    options: BuildOptions,
    count_sequences: Callable[[str, int], int],
) -> Choice:
    """`count_sequences(precision, seq_len)` returns how many such sequences the whole card holds.

    It counts the card's total memory and not what is free today, so that the same options give the
    same engine, and returns 0 when the other options do not fit. Raises PlanError for a precision
    that this GPU or this checkpoint does not have.
    """
    if checkpoint.quantization is not None:
        return _keep_precision(capability, checkpoint, checkpoint.quantization, options)
    name, requested = "precision", options.precision
    if requested != "auto":
        _check_precision(capability, checkpoint, requested, is_experimental=options.experimental)
        return Choice(name=name, value=requested, reason=AS_ASKED)
    own = "fp16" if checkpoint.precision == "fp16" else "bf16"
    if not capability.has_fp8:
        reason = f"{capability.name} ({capability.generation}) has no FP8 tensor cores"
        return Choice(name=name, value=own, reason=reason)
    if obstacle := find_architecture(checkpoint.architecture).quant_refusals.get("FP8"):
        return Choice(name=name, value=own, reason=f"not fp8: {obstacle}")
    seq_len = min(DEFAULT_MAX_SEQ_LEN, checkpoint.dims.max_position_embeddings)
    num_fp8 = count_sequences("fp8", seq_len)
    if num_fp8 < MIN_FP8_SEQUENCES and "nvfp4" in list_precisions(capability, checkpoint):
        room = f"fp8 leaves room for {num_fp8}" if num_fp8 else "fp8 does not fit"
        reason = (
            f"{room}, nvfp4 for {count_sequences('nvfp4', seq_len)} sequences of {seq_len:,} "
            f"tokens; fp8 is taken where it holds {MIN_FP8_SEQUENCES}"
        )
        return Choice(name=name, value="nvfp4", reason=reason)
    reason = f"{capability.name} has FP8 tensor cores: half the bytes of bf16, twice its rate"
    return Choice(name=name, value="fp8", reason=reason)


def list_precisions(capability: Capability, checkpoint: Checkpoint) -> list[str]:
    """What this GPU computes this model in without `--experimental`, from the smallest on."""
    if checkpoint.quantization is not None:
        found = PRECISION_OF_ALGO.get(checkpoint.quantization.quant_algo)
        return [found] if found else []
    refusals = find_architecture(checkpoint.architecture).quant_refusals
    own = base_precision(checkpoint, "auto")
    return [
        precision
        for precision in PRECISIONS
        if (algo := QUANT_ALGOS.get(precision)) in capability.quant_algos
        and algo not in refusals
        or precision == own
    ]


def _keep_precision(
    capability: Capability, checkpoint: Checkpoint, found: Quantization, options: BuildOptions
) -> Choice:
    """That of a checkpoint of ModelOpt's, which has its scales and needs no calibration."""
    precision = PRECISION_OF_ALGO.get(found.quant_algo)
    if precision is None:
        raise PlanError(
            f"`{checkpoint.id}` is quantised to {found.quant_algo}; this compiler takes "
            "ModelOpt's FP8 and NVFP4",
            hint=UNQUANTIZED,
        )
    if options.precision not in ("auto", precision):
        raise PlanError(
            f"`--precision {options.precision}`: `{checkpoint.id}` is quantised to "
            f"{found.quant_algo} already",
            hint=f"`--precision {precision}`, or give the checkpoint that it was made from",
        )
    _check_precision(capability, checkpoint, precision, is_experimental=options.experimental)
    if options.precision == precision:
        return Choice(name="precision", value=precision, reason=AS_ASKED)
    reason = f"the checkpoint's own: ModelOpt quantised it to {found.quant_algo}"
    return Choice(name="precision", value=precision, reason=reason)


def _check_precision(
    capability: Capability, checkpoint: Checkpoint, precision: str, *, is_experimental: bool
) -> None:
    if precision == "fp32":
        raise PlanError(
            "`--precision fp32`: the library's paged attention computes in 16 bits or fewer",
            hint="`--precision bf16`, or `--target cpu` for exact arithmetic",
        )
    algo = QUANT_ALGOS.get(precision)
    refusals = find_architecture(checkpoint.architecture).quant_refusals
    if algo is not None and algo in refusals and checkpoint.quantization is None:
        raise PlanError(
            f"`--precision {precision}`: {checkpoint.architecture} cannot be quantised: "
            + refusals[algo],
            hint=f"`--precision {base_precision(checkpoint, 'auto')}`",
        )
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
    capability: Capability, checkpoint: Checkpoint, precision: str, options: BuildOptions
) -> Choice:
    """Raises PlanError for a KV cache that does not go with these weights."""
    name, requested = "kv_cache_precision", options.kv_cache_precision
    own = base_precision(checkpoint, precision)
    if requested in ("fp32", "int8"):
        raise PlanError(
            f"`--kv-cache-precision {requested}` would switch paged attention off, and with it the "
            "reuse of prompts",
            hint=f"`--kv-cache-precision {'fp8' if precision in ('fp8', 'nvfp4') else own}`",
        )
    if _has_fp8_cache(capability, checkpoint):
        return _keep_fp8_cache(checkpoint, requested)
    if requested == "auto":
        return _best_kv_cache(checkpoint, precision, own)
    if requested == "fp8":
        _check_fp8_cache(precision, own, is_experimental=options.experimental)
    elif requested != own:
        raise PlanError(
            f"`--kv-cache-precision {requested}`: the cache is fp8 or has the type that the engine "
            f"computes in, {own}",
            hint=f"`--kv-cache-precision {own}`",
        )
    return Choice(name=name, value=requested, reason=AS_ASKED)


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


def _keep_fp8_cache(checkpoint: Checkpoint, requested: str) -> Choice:
    if requested not in ("auto", "fp8"):
        raise PlanError(
            f"`--kv-cache-precision {requested}`: `{checkpoint.id}` is calibrated for an fp8 cache",
            hint="`--kv-cache-precision fp8`",
        )
    reason = AS_ASKED if requested == "fp8" else "the checkpoint's own: ModelOpt calibrated it"
    return Choice(name="kv_cache_precision", value="fp8", reason=reason)


def _best_kv_cache(checkpoint: Checkpoint, precision: str, own: str) -> Choice:
    if precision not in ("fp8", "nvfp4"):
        value, reason = own, "an fp8 cache needs fp8 or nvfp4 weights, or attention is not paged"
    elif checkpoint.quantization is not None:
        value, reason = own, "the checkpoint has no scales for an fp8 cache"
    elif checkpoint.has_key_bias:
        value, reason = own, f"its keys have biases, which fp8 cuts off ({KEY_BIAS_ISSUES})"
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
