"""Everything about an engine for a CPU, put together from the rules and the footprint."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import cpu, footprint
from deepinfer.compiler.budget import MemoryModel
from deepinfer.compiler.memory import LimitRules, choose_limits
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import BuildNeed, Decisions
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import CACHED_TOKENS_KEY, MIN_FULL_SEQUENCES, Choice

MEMORY_SHARE = 0.9  # of what is free; the rest is for the API process and everybody else
WITHOUT_PREFIX_CACHE = (
    "an int8 KV cache of a model with biases on its keys goes without the prefix cache: every "
    "prompt is computed whole; `--kv-cache-precision fp16` has it"
)
RULES = LimitRules(
    max_batch_size=64,
    # A step with more prompt tokens in it makes every running answer wait longer: at 12 streams the
    # 99th percentile between tokens was 0.5 s with 256 and 1.0 s with 1,024 (494M parameters, 2
    # cores).
    max_num_tokens=256,
    num_tokens_reason="short steps: a long prompt is read in pieces between the tokens of others",
    sharing=1,
    min_full_sequences=MIN_FULL_SEQUENCES,
    num_cached_full=MIN_FULL_SEQUENCES,
    has_sliding_window=False,  # tests hold it for Phi-3's graph only
    memory_name="this machine's free memory",
    last_resort="a lower `--precision`, or a machine with more free memory",
)


@dataclass(frozen=True)
class _Formats:
    """In what the numbers are stored and computed."""

    precision: Choice
    group_size: Choice | None
    kv_cache_precision: Choice
    key_cache_scales: Choice | None
    inference_precision: Choice
    activation_group_size: Choice | None

    @property
    def int4_group_size(self) -> int | None:
        return int(self.group_size.value) if self.group_size else None

    @property
    def has_scales_by_channel(self) -> bool:
        return self.key_cache_scales is not None and self.key_cache_scales.value == cpu.BY_CHANNEL

    @property
    def settings(self) -> dict[str, str | int | bool]:
        activations = self.activation_group_size
        return cpu.runtime_settings(
            self.inference_precision.value,
            self.kv_cache_precision.value,
            self.key_cache_scales.value if self.key_cache_scales else None,
            int(activations.value) if activations else 0,
        )

    @property
    def choices(self) -> tuple[Choice, ...]:
        choices = (
            self.precision,
            self.group_size,
            self.kv_cache_precision,
            self.key_cache_scales,
            self.inference_precision,
            self.activation_group_size,
            cpu.choose_pinning(),
        )
        return tuple(choice for choice in choices if choice is not None)


def decide(device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions) -> Decisions:
    """Raises PlanError for options that OpenVINO on this CPU cannot meet together."""
    backend = _choose_backend(device, options)
    _refuse_gpu_options(options)
    cpu.check_checkpoint(checkpoint)
    formats = _choose_formats(device, checkpoint, options)
    precision = formats.precision.value
    weight_bytes = footprint.weight_bytes(
        checkpoint, precision, formats.int4_group_size or footprint.INT4_GROUP_SIZE
    )
    kv_bytes_per_token = footprint.kv_bytes_per_token(
        checkpoint.dims,
        formats.kv_cache_precision.value,
        has_scales_by_channel=formats.has_scales_by_channel,
    )
    memory = MemoryModel(
        usable_bytes=int(device.memory_bytes * MEMORY_SHARE),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        logits_bytes=footprint.logits_bytes(checkpoint.dims),
        overhead_bytes=lambda num_tokens: footprint.overhead_bytes(
            checkpoint.dims, weight_bytes, num_tokens
        ),
    )
    limits = choose_limits(checkpoint, options, RULES, memory, {})
    return Decisions(
        backend="openvino",
        precision=precision,
        export_precision=footprint.export_precision(checkpoint, precision),
        group_size=formats.int4_group_size,
        kv_cache_precision=formats.kv_cache_precision.value,
        kv_bytes_per_token=kv_bytes_per_token,
        limits=limits,
        settings=formats.settings | {CACHED_TOKENS_KEY: limits.cached_tokens_per_sequence},
        build=_measure_build(device, checkpoint, precision, weight_bytes),
        choices=(backend, *formats.choices),
        warnings=(WITHOUT_PREFIX_CACHE,) if formats.has_scales_by_channel else (),
    )


def _choose_backend(device: TargetDevice, options: BuildOptions) -> Choice:
    if options.backend == "tensorrt-llm":
        raise PlanError(
            f"`--backend tensorrt-llm` compiles for GPUs; the target is a CPU, {device.name}",
            hint="`--backend openvino`, or a GPU such as `--target rtx5090`",
        )
    reason = AS_ASKED if options.backend == "openvino" else "the backend for CPUs"
    return Choice(name="backend", value="openvino", reason=reason)


def _refuse_gpu_options(options: BuildOptions) -> None:
    """Refuse what only builds for GPUs have."""
    if options.max_lora_rank is not None or options.max_loras is not None:
        flag = "--max-loras" if options.max_lora_rank is None else "--max-lora-rank"
        raise PlanError(
            f"`{flag}` belongs to builds for GPUs: the executor for CPUs takes no adapter by "
            "request",
            hint="`--lora <folder>` merges one adapter into an engine for the CPU",
        )
    flags = {
        f"--tensor-parallel-size {options.tensor_parallel_size}": options.tensor_parallel_size > 1,
        f"--pipeline-parallel-size {options.pipeline_parallel_size}": (
            options.pipeline_parallel_size > 1
        ),
        "--calib-data": options.calib_data is not None,
        "--no-smoke-test": not options.smoke_test,
        "--gather-logits": options.gather_logits,
    }
    for flag, is_given in flags.items():
        if is_given:
            raise PlanError(
                f"`{flag}` belongs to builds for GPUs; the target is a CPU",
                hint="leave it away, or name a GPU such as `--target rtx5090`",
            )


def _choose_formats(
    device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions
) -> _Formats:
    precision = cpu.choose_precision(checkpoint, options)
    if options.group_size is not None and precision.value != "int4":
        raise PlanError(
            f"`--group-size` belongs to int4; this build is {precision.value}",
            hint="`--precision int4`, or leave `--group-size` away",
        )
    is_int4 = precision.value == "int4"
    group_size = cpu.choose_group_size(checkpoint, options) if is_int4 else None
    kv_cache_precision = cpu.choose_kv_cache_precision(device, checkpoint, precision.value, options)
    return _Formats(
        precision=precision,
        group_size=group_size,
        kv_cache_precision=kv_cache_precision,
        key_cache_scales=cpu.choose_key_quantization(checkpoint, kv_cache_precision.value),
        inference_precision=cpu.choose_inference_precision(
            device, precision.value, kv_cache_precision.value
        ),
        activation_group_size=cpu.choose_activation_group_size(
            precision.value, int(group_size.value) if group_size else None
        ),
    )


def _measure_build(
    device: TargetDevice, checkpoint: Checkpoint, precision: str, weight_bytes: int
) -> BuildNeed:
    memory_bytes = footprint.build_memory_bytes(checkpoint, precision, weight_bytes)
    return BuildNeed(
        memory_bytes=memory_bytes,
        min_memory_bytes=memory_bytes,  # fitted to what builds took, and no estimate
        free_memory_bytes=device.host_memory_bytes,
        disk_bytes=footprint.build_disk_bytes(checkpoint, precision, weight_bytes),
        free_disk_bytes=device.disk_bytes,
    )
