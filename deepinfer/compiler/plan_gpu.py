"""Everything about an engine for GPUs, put together from the rules and the footprint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import gpu, gpu_footprint, lora_plan, parallel
from deepinfer.compiler.architectures import Architecture
from deepinfer.compiler.budget import TOKENS_PER_BLOCK, Budget, MemoryModel
from deepinfer.compiler.calibration_plan import Calibration, choose_calibration
from deepinfer.compiler.capabilities import Capability
from deepinfer.compiler.devices import DRIVER_BYTES
from deepinfer.compiler.memory import LimitRules, Limits, choose_limits
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import BuildNeed, Decisions
from deepinfer.compiler.published import find_published
from deepinfer.compiler.roofline import Roofline, find_roofline
from deepinfer.compiler.targets import GpuTarget, TargetDevice
from deepinfer.compiler.tensorrt_llm_plan import TensorRtLlmPlan, choose_plugins
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
        return gpu.can_page_attention(self.precision, self.kv_cache_precision)

    @property
    def num_gpus(self) -> int:
        return self.parallelism.world_size

    def memory_on(self, device: TargetDevice) -> MemoryModel:
        """On each of the GPUs."""
        dims = self.checkpoint.dims
        free_bytes = min((_gpu(device).free_bytes or (device.memory_bytes,))[: self.num_gpus])
        return MemoryModel(
            usable_bytes=int(free_bytes * MEMORY_SHARE),
            weight_bytes=gpu_footprint.weight_bytes(
                self.checkpoint, self.precision, self.parallelism
            ),
            kv_bytes_per_token=gpu_footprint.kv_bytes_per_token(
                dims, self.kv_cache_precision, self.parallelism
            ),
            logits_bytes=gpu_footprint.logits_bytes(dims),
            overhead_bytes=lambda num_tokens: (
                gpu_footprint.overhead_bytes(dims, num_tokens, self.num_gpus)
                + gpu_footprint.lora_bytes(self.lora, self.parallelism)
            ),
            slot_bytes_per_token=gpu_footprint.SLOT_BYTES_PER_TOKEN,
        )


def decide(device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions) -> Decisions:
    """Raises PlanError for options that TensorRT-LLM on this GPU cannot meet together."""
    backend = _choose_backend(device, options)
    capability = gpu.capability_of(device)
    architecture = gpu.check_checkpoint(checkpoint)
    parallelism, parallel_choices = parallel.choose_parallelism(device, checkpoint.dims, options)
    lora, lora_choices = lora_plan.choose_lora(checkpoint, options)
    whole_card = _without_other_programs(device)

    def count_sequences(precision: str, seq_len: int) -> int:
        cache = gpu.choose_kv_cache_precision(capability, checkpoint, precision, options).value
        engine = _Engine(checkpoint, precision, cache, parallelism, lora)
        memory = engine.memory_on(whole_card)
        num_tokens = options.max_num_tokens or MAX_NUM_TOKENS
        asked = Budget(memory, options.max_seq_len or seq_len, num_tokens, SHARING)
        if asked.num_sequences < (options.max_batch_size or 1):
            return 0
        return replace(asked, max_seq_len=seq_len).num_full_sequences

    precision = gpu.choose_precision(capability, checkpoint, options, count_sequences)
    kv_cache = gpu.choose_kv_cache_precision(capability, checkpoint, precision.value, options)
    engine = _Engine(checkpoint, precision.value, kv_cache.value, parallelism, lora)
    smaller = _find_smaller(device, capability, engine, options)
    rules = _choose_rules(device, engine, architecture)
    limits = choose_limits(checkpoint, options, rules, engine.memory_on(device), smaller)
    calibration, calibration_choices = choose_calibration(
        device, checkpoint, precision.value, kv_cache.value, options
    )
    return Decisions(
        backend="tensorrt-llm",
        precision=precision.value,
        export_precision=gpu.base_precision(checkpoint, precision.value),
        group_size=None,
        kv_cache_precision=kv_cache.value,
        kv_bytes_per_token=gpu_footprint.kv_bytes_per_token(checkpoint.dims, kv_cache.value),
        limits=limits,
        settings=_runtime_settings(device, engine, options),
        build=_measure_build(device, checkpoint, precision.value, calibration),
        choices=(
            *(backend, precision, kv_cache),
            *parallel_choices,
            *calibration_choices,
            *lora_choices,
        ),
        warnings=_find_warnings(device, engine, architecture, limits),
        parallelism=parallelism,
        tensorrt_llm=_plan_library(device, engine, calibration, options),
        roofline=_find_roofline(device, engine, limits),
        lora=lora,
    )


def _runtime_settings(
    device: TargetDevice, engine: _Engine, options: BuildOptions
) -> dict[str, str | int | bool]:
    """What the payload must be loaded with; names of NCCL's are set in the environment."""
    return {
        "tokens_per_block": TOKENS_PER_BLOCK,
        "chunked_prefill": engine.is_paged,
        "block_reuse": engine.is_paged,
        **({"gather_logits": True} if options.gather_logits else {}),
        **parallel.nccl_env(device, engine.parallelism),
    }


def _plan_library(
    device: TargetDevice, engine: _Engine, calibration: Calibration, options: BuildOptions
) -> TensorRtLlmPlan:
    dtype = gpu.DTYPES[gpu.base_precision(engine.checkpoint, engine.precision)]
    return TensorRtLlmPlan(
        dtype=dtype,
        quant_algo=gpu.QUANT_ALGOS.get(engine.precision),
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
        nccl_env=parallel.nccl_env(device, engine.parallelism),
        has_smoke_test=options.smoke_test,
    )


def _gpu(device: TargetDevice) -> GpuTarget:
    assert device.gpu is not None
    return device.gpu


def _choose_backend(device: TargetDevice, options: BuildOptions) -> Choice:
    if options.backend == "openvino":
        raise PlanError(
            f"`--backend openvino` compiles for CPUs; the target is a GPU, {device.name}",
            hint="`--backend tensorrt-llm`, or `--target cpu`",
        )
    if options.group_size is not None:
        raise PlanError(
            "`--group-size` belongs to int4 on CPUs: TensorRT-LLM's own int4 has a scale a column",
            hint="leave it away, or `--target cpu`",
        )
    reason = AS_ASKED if options.backend == "tensorrt-llm" else "the backend for NVIDIA GPUs"
    return Choice(name="backend", value="tensorrt-llm", reason=reason)


def _without_other_programs(device: TargetDevice) -> TargetDevice:
    """The same cards with nothing on them, so that what runs today decides nothing."""
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
    if engine.kv_cache_precision != "fp8" and gpu.can_page_attention(engine.precision, "fp8"):
        fp8_cache = replace(engine, kv_cache_precision="fp8")
        found["--kv-cache-precision fp8"] = fp8_cache.memory_on(device)
    checkpoint = engine.checkpoint
    size = gpu_footprint.WEIGHT_BYTES
    for precision in gpu.list_precisions(capability, checkpoint):
        if size[precision] >= size[engine.precision]:
            continue
        cache: str = options.kv_cache_precision
        if cache == "auto":
            cache = gpu.choose_kv_cache_precision(capability, checkpoint, precision, options).value
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
    if parallel.find_obstacle(halves, engine.checkpoint.dims):
        return None
    return replace(engine, parallelism=halves)


def _measure_build(
    device: TargetDevice, checkpoint: Checkpoint, precision: str, calibration: Calibration
) -> BuildNeed:
    is_on_gpu = calibration.is_needed and calibration.device == "cuda"
    return BuildNeed(
        memory_bytes=gpu_footprint.host_bytes(
            checkpoint, precision, is_calibrated_on_gpu=is_on_gpu
        ),
        min_memory_bytes=gpu_footprint.min_host_bytes(
            checkpoint, precision, is_calibrated_on_gpu=is_on_gpu
        ),
        free_memory_bytes=device.host_memory_bytes,
        disk_bytes=gpu_footprint.build_disk_bytes(checkpoint, precision),
        free_disk_bytes=device.disk_bytes,
    )


def _find_roofline(device: TargetDevice, engine: _Engine, limits: Limits) -> Roofline | None:
    model = _gpu(device).model
    if model is None:
        return None
    return find_roofline(
        model,
        engine.checkpoint,
        engine.precision,
        limits.engine.max_batch_size,
        limits.memory.kv_cache_bytes * engine.num_gpus,
        engine.parallelism,
    )


def _find_warnings(
    device: TargetDevice, engine: _Engine, architecture: Architecture, limits: Limits
) -> tuple[str, ...]:
    warnings = list(parallel.find_warnings(device, engine.parallelism))
    checkpoint, precision = engine.checkpoint, engine.precision
    if not device.is_here:
        total = format_bytes(_gpu(device).total_bytes)
        warnings.append(
            f"this machine has no {device.name}: planned from a table, for one of {total}; build "
            "on a machine that has the card"
        )
    if architecture.status == "untried":
        warnings.append(
            f"nobody has tried {architecture.name} here: TensorRT-LLM {CHECKED_VERSION} compiles "
            "it, and its answers were never compared"
        )
    algo = gpu.QUANT_ALGOS.get(precision)
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
            f"({gpu.KEY_BIAS_ISSUES})"
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
        warnings.append(
            f"nobody has recorded how TensorRT-LLM adapts {precision} weights by request"
        )
    return tuple(warnings)
