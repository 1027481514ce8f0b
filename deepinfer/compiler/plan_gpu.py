"""The plan of an engine for GPUs: what TensorRT-LLM supports, and the best default.

Pure rules; nothing here reads a file or imports a library. Tensor parallelism splits every layer
and adds up the parts after each; pipeline parallelism gives each GPU whole layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deepinfer.checkpoint import Checkpoint, ModelDims, Quantization
from deepinfer.compiler.architectures import Architecture, find_architecture
from deepinfer.compiler.calibration import Calibration, choose_calibration
from deepinfer.compiler.lora import choose_lora
from deepinfer.compiler.memory import (
    DEFAULT_MAX_SEQ_LEN,
    GPU_WEIGHT_BYTES,
    SLOT_BYTES_PER_TOKEN,
    TOKENS_PER_BLOCK,
    Budget,
    LimitRules,
    Limits,
    MemoryModel,
    choose_limits,
    gpu_build_disk_bytes,
    gpu_host_bytes,
    gpu_kv_bytes_per_token,
    gpu_min_host_bytes,
    gpu_overhead_bytes,
    gpu_weight_bytes,
    logits_bytes,
    lora_bytes,
)
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import (
    BuildNeed,
    EnginePlan,
    PluginValue,
    TensorRtLlmPlan,
)
from deepinfer.compiler.published import find_published
from deepinfer.compiler.roofline import find_roofline
from deepinfer.compiler.targets import (
    CAPABILITIES,
    DRIVER_BYTES,
    Capability,
    GpuTarget,
    TargetDevice,
    find_capability,
)
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice, LoraLimits, Parallelism
from deepinfer.terminal import format_bytes
from deepinfer.trtllm_release import CHECKED_VERSION

# The library gives the KV cache 0.9 of what is free beside the weights; 0.9 of all is less.
MEMORY_SHARE = 0.9
MAX_BATCH_SIZE = 256
MAX_NUM_TOKENS = 8192  # the library's own default
SHARING = 4  # the cache is paged, and most requests are far shorter than the longest
REPORTED_HEAD_DIM = 96  # of Phi-3 mini: TensorRT-LLM issue 8308
MIN_FULL_SEQUENCES = 8  # that a longer default context leaves room for
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
NO_PEER_ACCESS_ENV = {"NCCL_P2P_DISABLE": "1"}


@dataclass(frozen=True)
class _Engine:
    """An engine as far as memory and speed are concerned."""

    checkpoint: Checkpoint
    precision: str
    kv_cache_precision: str
    parallelism: Parallelism
    lora: LoraLimits | None = None

    @property
    def is_paged(self) -> bool:
        return can_page_attention(self.precision, self.kv_cache_precision)

    @property
    def num_gpus(self) -> int:
        return self.parallelism.world_size

    def memory_on(self, device: TargetDevice) -> MemoryModel:
        """On each of the GPUs."""
        dims = self.checkpoint.dims
        free_bytes = min((_gpu(device).free_bytes or (device.memory_bytes,))[: self.num_gpus])
        return MemoryModel(
            usable_bytes=int(free_bytes * MEMORY_SHARE),
            weight_bytes=gpu_weight_bytes(self.checkpoint, self.precision, self.parallelism),
            kv_bytes_per_token=gpu_kv_bytes_per_token(
                dims, self.kv_cache_precision, self.parallelism
            ),
            logits_bytes=logits_bytes(dims),
            overhead_bytes=lambda num_tokens: (
                gpu_overhead_bytes(dims, num_tokens, self.num_gpus)
                + lora_bytes(self.lora, self.parallelism)
            ),
            slot_bytes_per_token=SLOT_BYTES_PER_TOKEN,
        )


def plan_engine(device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions) -> EnginePlan:
    """Raises PlanError for options that TensorRT-LLM on this GPU cannot meet together."""
    if options.backend == "openvino":
        raise PlanError(
            f"`--backend openvino` compiles for CPUs; the target is a GPU, {device.name}",
            hint="`--backend tensorrt-llm`, or `--target cpu`",
        )
    if options.group_size is not None:
        raise PlanError(
            "`--group-size` applies to int4 on CPUs: TensorRT-LLM's own int4 has one scale per "
            "column",
            hint="omit it, or `--target cpu`",
        )
    reason = AS_ASKED if options.backend == "tensorrt-llm" else "the backend for NVIDIA GPUs"
    backend = Choice(name="backend", value="tensorrt-llm", reason=reason)
    capability = capability_of(device)
    architecture = check_checkpoint(checkpoint)
    parallelism, parallel_choices = choose_parallelism(device, checkpoint.dims, options)
    lora, lora_choices = choose_lora(checkpoint, options)
    whole_card = _without_other_programs(device)

    def count_sequences(precision: str, seq_len: int) -> int:
        cache = choose_kv_cache_precision(capability, checkpoint, precision, options).value
        engine = _Engine(checkpoint, precision, cache, parallelism, lora)
        memory = engine.memory_on(whole_card)
        num_tokens = options.max_num_tokens or MAX_NUM_TOKENS
        asked = Budget(memory, options.max_seq_len or seq_len, num_tokens, SHARING)
        if asked.num_sequences < (options.max_batch_size or 1):
            return 0
        return replace(asked, max_seq_len=seq_len).num_full_sequences

    precision = choose_precision(capability, checkpoint, options, count_sequences)
    kv_cache = choose_kv_cache_precision(capability, checkpoint, precision.value, options)
    engine = _Engine(checkpoint, precision.value, kv_cache.value, parallelism, lora)
    smaller = _find_smaller(device, capability, engine, options)
    rules = _choose_rules(device, engine, architecture)
    limits = choose_limits(checkpoint, options, rules, engine.memory_on(device), smaller)
    calibration, calibration_choices = choose_calibration(
        device, checkpoint, precision.value, kv_cache.value, options
    )
    is_calibrated_on_gpu = calibration.is_needed and calibration.device == "cuda"
    roofline = None
    if (model := _gpu(device).model) is not None:
        roofline = find_roofline(
            model,
            checkpoint,
            precision.value,
            limits.engine.max_batch_size,
            limits.memory.kv_cache_bytes * engine.num_gpus,
            parallelism,
        )
    return EnginePlan(
        backend="tensorrt-llm",
        target=device.target,
        precision=precision.value,
        export_precision=base_precision(checkpoint, precision.value),
        group_size=None,
        kv_cache_precision=kv_cache.value,
        kv_bytes_per_token=gpu_kv_bytes_per_token(checkpoint.dims, kv_cache.value),
        limits=limits.engine,
        memory=limits.memory,
        fitted_limits=limits.fitted,
        settings={
            "tokens_per_block": TOKENS_PER_BLOCK,
            "chunked_prefill": engine.is_paged,
            "block_reuse": engine.is_paged,
            **({"gather_logits": True} if options.gather_logits else {}),
            **nccl_env(device, engine.parallelism),  # set in the environment
        },
        build=BuildNeed(
            memory_bytes=gpu_host_bytes(
                checkpoint, precision.value, is_calibrated_on_gpu=is_calibrated_on_gpu
            ),
            min_memory_bytes=gpu_min_host_bytes(
                checkpoint, precision.value, is_calibrated_on_gpu=is_calibrated_on_gpu
            ),
            free_memory_bytes=device.host_memory_bytes,
            disk_bytes=gpu_build_disk_bytes(checkpoint, precision.value),
            free_disk_bytes=device.disk_bytes,
        ),
        choices=(
            *(backend, precision, kv_cache),
            *parallel_choices,
            *calibration_choices,
            *lora_choices,
            *limits.choices,
        ),
        warnings=_find_warnings(device, engine, architecture, limits),
        parallelism=parallelism,
        tensorrt_llm=_plan_library(device, engine, calibration, options),
        roofline=roofline,
        lora=lora,
    )


def _plan_library(
    device: TargetDevice, engine: _Engine, calibration: Calibration, options: BuildOptions
) -> TensorRtLlmPlan:
    dtype = DTYPES[base_precision(engine.checkpoint, engine.precision)]
    return TensorRtLlmPlan(
        dtype=dtype,
        quant_algo=QUANT_ALGOS.get(engine.precision),
        kv_cache_quant_algo="FP8" if engine.kv_cache_precision == "fp8" else None,
        is_prequantized=engine.checkpoint.quantization is not None,
        needs_calibration=calibration.is_needed,
        calib_device=calibration.device,
        calib_data=str(options.calib_data) if options.calib_data else None,
        calib_batches=calibration.num_batches,
        calib_max_seq_length=calibration.max_seq_length,
        plugins=choose_plugins(
            dtype,
            engine.precision,
            engine.kv_cache_precision,
            is_paged=engine.is_paged,
            num_gpus=engine.num_gpus,
            takes_adapters=engine.lora is not None,
        ),
        nccl_env=nccl_env(device, engine.parallelism),
        has_smoke_test=options.smoke_test,
    )


def _gpu(device: TargetDevice) -> GpuTarget:
    assert device.gpu is not None
    return device.gpu


def _without_other_programs(device: TargetDevice) -> TargetDevice:
    """The same cards with all memory free, so that other programs do not change the plan."""
    card = _gpu(device)
    free_bytes = card.total_bytes - DRIVER_BYTES
    cards = replace(card, free_bytes=tuple(free_bytes for _ in card.free_bytes))
    return replace(device, memory_bytes=free_bytes, gpu=cards)


def _choose_rules(device: TargetDevice, engine: _Engine, architecture: Architecture) -> LimitRules:
    each = "each of its GPUs" if engine.num_gpus > 1 else "the GPU"
    reason = "the library's default: a longer prompt is read in chunks, between others' tokens"
    if not engine.is_paged:
        reason = "the whole of the longest prompt: without paged attention it is read at once"
    return LimitRules(
        max_batch_size=MAX_BATCH_SIZE,
        max_num_tokens=MAX_NUM_TOKENS,
        num_tokens_reason=reason,
        sharing=SHARING,
        memory_name=f"the free memory of {each} ({device.name})",
        last_resort="a smaller model, or a GPU with more memory",
        is_chunked=engine.is_paged,
        min_full_sequences=MIN_FULL_SEQUENCES,
        is_bounded_by_rope_table=True,
        has_sliding_window=architecture.has_sliding_window,
    )


def _find_smaller(
    device: TargetDevice, capability: Capability, engine: _Engine, options: BuildOptions
) -> Mapping[str, MemoryModel]:
    """What would need less memory of each GPU, by the flags that ask for it."""
    found = {}
    if engine.kv_cache_precision != "fp8" and can_page_attention(engine.precision, "fp8"):
        fp8_cache = replace(engine, kv_cache_precision="fp8")
        found["--kv-cache-precision fp8"] = fp8_cache.memory_on(device)
    checkpoint = engine.checkpoint
    size = GPU_WEIGHT_BYTES
    for precision in list_precisions(capability, checkpoint):
        if size[precision] >= size[engine.precision]:
            continue
        cache: str = options.kv_cache_precision
        if cache == "auto":
            cache = choose_kv_cache_precision(capability, checkpoint, precision, options).value
        lower = replace(engine, precision=precision, kv_cache_precision=cache)
        found[f"--precision {precision}"] = lower.memory_on(device)
        if published := find_published(checkpoint.id, precision):
            flags = "" if options.precision == "auto" else f" --precision {precision}"
            found[f"--model {published}{flags}"] = lower.memory_on(device)
    split = _split_in_two(device, engine)
    if split is not None:
        flag = "tensor" if split.parallelism.tensor_parallel_size > 1 else "pipeline"
        found[f"--{flag}-parallel-size 2"] = split.memory_on(device)
    return found


def _split_in_two(device: TargetDevice, engine: _Engine) -> _Engine | None:
    if engine.num_gpus > 1 or (device.is_here and len(_gpu(device).free_bytes) < 2):
        return None
    halves = Parallelism(pipeline_parallel_size=2)
    if _gpu(device).has_peer_access:
        halves = Parallelism(tensor_parallel_size=2)
    if find_obstacle(halves, engine.checkpoint.dims):
        return None
    return replace(engine, parallelism=halves)


def _find_warnings(
    device: TargetDevice, engine: _Engine, architecture: Architecture, limits: Limits
) -> tuple[str, ...]:
    warnings = []
    if engine.parallelism.tensor_parallel_size > 1 and nccl_env(device, engine.parallelism):
        warnings.append(
            f"tensor parallel over {device.name}: every layer's sums go through host memory; "
            "`--pipeline-parallel-size` sends far less"
        )
    checkpoint, precision = engine.checkpoint, engine.precision
    if not device.is_here:
        total = format_bytes(_gpu(device).total_bytes)
        warnings.append(
            f"this machine has no {device.name}: planned from a table, for one of {total}; build "
            "on a machine that has the card"
        )
    if architecture.status == "untried":
        warnings.append(
            f"{architecture.name} is untested: TensorRT-LLM {CHECKED_VERSION} compiles it, and its "
            "answers were never compared"
        )
    algo = QUANT_ALGOS.get(precision)
    if algo in ("FP8", "NVFP4") and algo not in architecture.listed:
        warnings.append(
            f"NVIDIA's table for TensorRT-LLM {CHECKED_VERSION} does not list {algo} for "
            f"{architecture.name}"
        )
    if algo == "NVFP4" and checkpoint.quantization is None:
        warnings.append(
            "NVFP4 by ModelOpt's max calibration costs more accuracy than FP8, and how much was "
            "not measured here: compare answers with `--precision fp8` or bf16"
        )
    if engine.kv_cache_precision == "fp8" and checkpoint.has_key_bias:
        warnings.append(
            "the model's keys have biases, and an fp8 KV cache is reported to break its answers "
            f"({KEY_BIAS_ISSUES})"
        )
    if engine.kv_cache_precision == "fp8" and checkpoint.dims.head_dim == REPORTED_HEAD_DIM:
        warnings.append(
            f"attention in FP8 over heads of {REPORTED_HEAD_DIM} is reported to abort on sm_100 "
            "(TensorRT-LLM issue 8308): `--kv-cache-precision bf16` does without"
        )
    window = checkpoint.sliding_window
    max_seq_len = limits.engine.max_seq_len
    if window is not None and window < max_seq_len and not architecture.has_sliding_window:
        warnings.append(
            f"the model's layers look back at {window:,} tokens, and the engine's at all "
            f"{max_seq_len:,}: longer sequences are computed as the model was not trained"
        )
    if precision == "fp16" and checkpoint.precision == "bf16":
        warnings.append("the weights are bf16: fp16 has less range, and large values overflow")
    if precision in ("int8", "int4") or not engine.is_paged:
        warnings.append("experimental: the library does not list this combination as supported")
    if engine.lora is not None and precision not in ("bf16", "fp16", "fp8"):
        warnings.append(f"LoRA adapters by request on {precision} weights are untested")
    return tuple(warnings)


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
        if not can_page_attention(precision, "fp8") and not options.experimental:
            raise PlanError(
                f"`--kv-cache-precision fp8` beside {precision} weights: the library then drops "
                "paged attention, and with it chunked prompts and the reuse of their cache",
                hint=f"`--kv-cache-precision {own}`, or `--precision fp8`, or `--experimental`",
            )
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


def choose_parallelism(
    device: TargetDevice, dims: ModelDims, options: BuildOptions
) -> tuple[Parallelism, tuple[Choice, ...]]:
    """Raises PlanError for sizes that the model or the machine does not allow."""
    parallelism = Parallelism(
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
    )
    obstacle = find_obstacle(parallelism, dims)
    if obstacle:
        raise PlanError(obstacle, hint="1, 2, 4 and 8 go with most models")
    num_gpus = parallelism.world_size
    assert device.gpu is not None
    if device.is_here and num_gpus > len(device.gpu.free_bytes):
        raise PlanError(
            f"the engine needs {num_gpus} GPUs; this machine has "
            f"{len(device.gpu.free_bytes)} {device.name}",
            hint="lower `--tensor-parallel-size` times `--pipeline-parallel-size`",
        )
    sizes = parallelism.model_dump()
    choices = [
        Choice(name=name, value=str(size), reason=AS_ASKED)
        for name, size in sizes.items()
        if size > 1
    ]
    if nccl_env(device, parallelism):
        value = ", ".join(f"{name}={value}" for name, value in NO_PEER_ACCESS_ENV.items())
        reason = "GeForce drivers allow no peer access, and NCCL can hang when it tries"
        choices.append(Choice(name="nccl_env", value=value, reason=reason))
    return parallelism, tuple(choices)


def find_obstacle(parallelism: Parallelism, dims: ModelDims) -> str | None:
    """Why the model cannot be split so; None when it can."""
    tensor, stages = parallelism.tensor_parallel_size, parallelism.pipeline_parallel_size
    for name, size in (
        ("attention heads", dims.num_attention_heads),
        ("MLP width", dims.expert_intermediate_size or dims.intermediate_size),
    ):
        if size % tensor:
            return f"`--tensor-parallel-size {tensor}` does not divide the {name} {size:,}"
    if dims.num_kv_heads % tensor and tensor % dims.num_kv_heads:
        return f"`--tensor-parallel-size {tensor}` does not divide the KV heads {dims.num_kv_heads}"
    if dims.num_layers % stages:
        return f"`--pipeline-parallel-size {stages}` does not divide the layers {dims.num_layers}"
    return None


def nccl_env(device: TargetDevice, parallelism: Parallelism) -> dict[str, str]:
    assert device.gpu is not None
    if parallelism.world_size == 1 or device.gpu.has_peer_access:
        return {}
    return dict(NO_PEER_ACCESS_ENV)


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
        # TensorRT's own FP8 products are the faster ones but for very small batches.
        "gemm_plugin": {"nvfp4": "nvfp4", "fp8": None}.get(precision, "auto"),
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
