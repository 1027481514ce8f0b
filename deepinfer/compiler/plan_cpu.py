"""The plan of an engine for a CPU: what OpenVINO supports there, and the best default.

Pure rules; nothing here reads a file or imports a library.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.compiler.memory import (
    CPU_BITS,
    INT4_GROUP_SIZE,
    LimitRules,
    MemoryModel,
    choose_limits,
    cpu_build_disk_bytes,
    cpu_build_memory_bytes,
    cpu_kv_bytes_per_token,
    cpu_overhead_bytes,
    cpu_weight_bytes,
    expert_size,
    export_precision,
    logits_bytes,
)
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import BuildNeed, EnginePlan
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import CACHED_TOKENS_KEY, MIN_FULL_SEQUENCES, Choice

MEMORY_SHARE = 0.9  # of what is free; the rest is for the API process and other programs
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
ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "GraniteForCausalLM",
    "Olmo2ForCausalLM",
    "SmolLM3ForCausalLM",
)
# optimum-intel 2.1.0 exports these with transformers up to 5.0; the pinned one is 5.5.4.
ARCHITECTURES_OF_OLDER_TRANSFORMERS = (
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
)
# Relative rise in perplexity against fp32 weights and an fp32 KV cache on the sample's held-out
# text: 13,212 tokens, by benchmarks/quality.py; docs/performance.md has the whole table. None is
# not measured, and then never chosen by itself.
MAX_PERPLEXITY_COST = 0.01
PERPLEXITY_COST: dict[str, float | None] = {
    "int4": 0.0022,
    "int8": 0.0,
    "bf16": 0.0,
    "fp16": 0.0,
    "fp32": 0.0,
}
KV_PERPLEXITY_COST: dict[str, float | None] = {"int8": 0.0, "fp16": None, "fp32": 0.0}
OPENVINO_TYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "u8"}
BY_TOKEN, BY_CHANNEL = "by token", "by channel"  # what the keys of an int8 cache share a scale over
GROUP_SIZES = (128, 64, 32)  # of int4, best first: smaller ones store more scales
# How many activations of a token share a scale when they meet weights of 8 and 4 bits. OpenVINO's
# own default is 32; docs/performance.md has what each size gave and cost.
ACTIVATION_GROUP_SIZE = 128


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
        return self.key_cache_scales is not None and self.key_cache_scales.value == BY_CHANNEL

    @property
    def settings(self) -> dict[str, str | int | bool]:
        activations = self.activation_group_size
        return runtime_settings(
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
            choose_pinning(),
        )
        return tuple(choice for choice in choices if choice is not None)


def plan_engine(device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions) -> EnginePlan:
    """Raises PlanError for options that OpenVINO on this CPU cannot meet together."""
    if options.backend == "tensorrt-llm":
        raise PlanError(
            f"`--backend tensorrt-llm` compiles for GPUs; the target is a CPU, {device.name}",
            hint="`--backend openvino`, or a GPU such as `--target rtx5090`",
        )
    reason = AS_ASKED if options.backend == "openvino" else "the backend for CPUs"
    backend = Choice(name="backend", value="openvino", reason=reason)
    _refuse_gpu_options(options)
    check_checkpoint(checkpoint)
    formats = _choose_formats(device, checkpoint, options)
    precision = formats.precision.value
    weight_bytes = cpu_weight_bytes(
        checkpoint, precision, formats.int4_group_size or INT4_GROUP_SIZE
    )
    kv_bytes_per_token = cpu_kv_bytes_per_token(
        checkpoint.dims,
        formats.kv_cache_precision.value,
        has_scales_by_channel=formats.has_scales_by_channel,
    )
    memory = MemoryModel(
        usable_bytes=int(device.memory_bytes * MEMORY_SHARE),
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
        logits_bytes=logits_bytes(checkpoint.dims),
        overhead_bytes=lambda num_tokens: cpu_overhead_bytes(
            checkpoint.dims, weight_bytes, num_tokens
        ),
    )
    limits = choose_limits(checkpoint, options, RULES, memory, {})
    build_memory_bytes = cpu_build_memory_bytes(checkpoint, precision, weight_bytes)
    return EnginePlan(
        backend="openvino",
        target=device.target,
        precision=precision,
        export_precision=export_precision(checkpoint, precision),
        group_size=formats.int4_group_size,
        kv_cache_precision=formats.kv_cache_precision.value,
        kv_bytes_per_token=kv_bytes_per_token,
        limits=limits.engine,
        memory=limits.memory,
        fitted_limits=limits.fitted,
        settings=formats.settings | {CACHED_TOKENS_KEY: limits.cached_tokens_per_sequence},
        build=BuildNeed(
            memory_bytes=build_memory_bytes,
            min_memory_bytes=build_memory_bytes,  # fitted to measured builds, so not too high
            free_memory_bytes=device.host_memory_bytes,
            disk_bytes=cpu_build_disk_bytes(checkpoint, precision, weight_bytes),
            free_disk_bytes=device.disk_bytes,
        ),
        choices=(backend, *formats.choices, *limits.choices),
        warnings=(WITHOUT_PREFIX_CACHE,) if formats.has_scales_by_channel else (),
    )


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
                hint="omit it, or name a GPU such as `--target rtx5090`",
            )


def _choose_formats(
    device: TargetDevice, checkpoint: Checkpoint, options: BuildOptions
) -> _Formats:
    precision = choose_precision(checkpoint, options)
    if options.group_size is not None and precision.value != "int4":
        raise PlanError(
            f"`--group-size` belongs to int4; this build is {precision.value}",
            hint="`--precision int4`, or omit `--group-size`",
        )
    is_int4 = precision.value == "int4"
    group_size = choose_group_size(checkpoint, options) if is_int4 else None
    kv_cache_precision = choose_kv_cache_precision(device, checkpoint, precision.value, options)
    return _Formats(
        precision=precision,
        group_size=group_size,
        kv_cache_precision=kv_cache_precision,
        key_cache_scales=choose_key_quantization(checkpoint, kv_cache_precision.value),
        inference_precision=choose_inference_precision(
            device, precision.value, kv_cache_precision.value
        ),
        activation_group_size=choose_activation_group_size(
            precision.value, int(group_size.value) if group_size else None
        ),
    )


def check_architecture(name: str) -> None:
    """Raise PlanError for models that the exporter cannot compile."""
    supported = "supported: " + ", ".join(ARCHITECTURES)
    if name in ARCHITECTURES_OF_OLDER_TRANSFORMERS:
        raise PlanError(
            f"{name} is not supported: optimum-intel 2.1.0 exports it with transformers up to 5.0 "
            "only, and the other libraries here need 5.5.4",
            hint=supported,
        )
    if name not in ARCHITECTURES:
        raise PlanError(f"{name} is not supported by the CPU backend", hint=supported)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Raise PlanError for a checkpoint that the exporter cannot compile."""
    check_architecture(checkpoint.architecture)
    if checkpoint.quant_method is not None:
        raise PlanError(
            f"`{checkpoint.id}` is quantised already ({checkpoint.quant_method}); the CPU backend "
            "compiles from fp32, fp16 or bf16 weights",
            hint="give the checkpoint that it was made from, and `--precision int8` or int4",
        )
    if checkpoint.precision not in ("fp32", "fp16", "bf16"):
        raise PlanError(
            f"the weights of `{checkpoint.id}` are {checkpoint.weights.dtype}; the CPU backend "
            "compiles from F32, F16 or BF16"
        )


def choose_precision(checkpoint: Checkpoint, options: BuildOptions) -> Choice:
    """Raises PlanError for a precision that CPUs do not have."""
    if options.precision in ("fp8", "nvfp4"):
        raise PlanError(
            f"`--precision {options.precision}` needs GPU tensor cores; no CPU computes in it",
            hint="`--precision int8`, or int4 for the least memory",
        )
    if options.precision != "auto":
        return Choice(name="precision", value=options.precision, reason=AS_ASKED)
    candidates = {
        precision: cost
        for precision, cost in PERPLEXITY_COST.items()
        if CPU_BITS[precision] < CPU_BITS[checkpoint.precision]
        and _can_store(precision, checkpoint)
    }
    for precision in sorted(candidates, key=lambda precision: CPU_BITS[precision]):
        cost = candidates[precision]
        if cost is not None and cost < MAX_PERPLEXITY_COST:
            measured = [f"{name} {one:.2%}" for name, one in candidates.items() if one is not None]
            reason = "the lowest that costs less than 1% perplexity on the sample: "
            reason += ", ".join(measured)
            return Choice(name="precision", value=precision, reason=reason)
    return Choice(
        name="precision",
        value=checkpoint.precision,
        reason="the checkpoint's own: nothing lower is known to cost less than 1% perplexity",
    )


def choose_kv_cache_precision(
    device: TargetDevice, checkpoint: Checkpoint, precision: str, options: BuildOptions
) -> Choice:
    """Raises PlanError for a KV cache that this CPU cannot compute with."""
    name = "kv_cache_precision"
    requested = options.kv_cache_precision
    if requested == "fp8":
        raise PlanError(
            "`--kv-cache-precision fp8` needs GPU tensor cores", hint="`--kv-cache-precision int8`"
        )
    if requested == "bf16" and not device.has_native_bf16:
        raise PlanError(
            f"`--kv-cache-precision bf16` needs a CPU with bf16 instructions; {device.name} has "
            "none",
            hint="`--kv-cache-precision int8`, or fp16 or fp32",
        )
    if requested == "bf16" and precision in ("fp32", "fp16"):
        raise PlanError(
            f"`--kv-cache-precision bf16` goes with arithmetic in bf16; {precision} weights are "
            "computed in fp32",
            hint="`--kv-cache-precision int8`, or fp16 or fp32",
        )
    if requested != "auto":
        return Choice(name=name, value=requested, reason=AS_ASKED)
    if precision == "fp32":
        return Choice(name=name, value="fp32", reason="fp32 weights are there for exact arithmetic")
    if checkpoint.has_key_bias:
        reason = "biases give keys outliers, which 8 bits with one scale for each token would lose"
        return Choice(name=name, value="fp16", reason=reason)
    cost = KV_PERPLEXITY_COST["int8"]
    if cost is None:
        return Choice(name=name, value="int8", reason="a quarter of fp32, and OpenVINO's default")
    if cost < MAX_PERPLEXITY_COST:
        reason = f"costs {cost:.2%} perplexity on the sample's held-out text, and a quarter of fp32"
        return Choice(name=name, value="int8", reason=reason)
    reason = f"int8 would cost {cost:.2%} perplexity on the sample's held-out text"
    return Choice(name=name, value="fp16", reason=reason)


def choose_inference_precision(
    device: TargetDevice, precision: str, kv_cache_precision: str
) -> Choice:
    name = "inference_precision"
    if precision == "fp32":
        return Choice(name=name, value="fp32", reason="fp32 weights are there for exact arithmetic")
    if precision == "fp16":
        reason = "bf16 arithmetic would drop bits that fp16 weights have"
        return Choice(name=name, value="fp32", reason=reason)
    if not device.has_native_bf16:
        return Choice(name=name, value="fp32", reason="this CPU has no bf16 instructions")
    if kv_cache_precision == "fp32":
        reason = "OpenVINO reads an fp32 KV cache in fp32 arithmetic only"
        return Choice(name=name, value="fp32", reason=reason)
    return Choice(name=name, value="bf16", reason="this CPU has bf16 instructions")


def choose_activation_group_size(precision: str, int4_group_size: int | None) -> Choice | None:
    """None for weights that are multiplied as they are."""
    if precision not in ("int8", "int4"):
        return None
    size = min(ACTIVATION_GROUP_SIZE, int4_group_size or ACTIVATION_GROUP_SIZE)
    reason = "1.1 to 1.4 times as fast as 32, at no cost in perplexity that shows"
    if size < ACTIVATION_GROUP_SIZE:
        reason = "as many as weights that share a scale"
    return Choice(name="activation_group_size", value=str(size), reason=reason)


def choose_group_size(checkpoint: Checkpoint, options: BuildOptions) -> Choice:
    """How many int4 weights share a scale. Raises PlanError when a matrix cannot be divided so."""
    widths = _row_widths(checkpoint.dims)
    fitting = [size for size in GROUP_SIZES if _divides(size, widths)]
    fitting_text = ", ".join(map(str, fitting))
    if options.group_size is not None:
        for name, width in widths.items():
            if width % options.group_size:
                raise PlanError(
                    f"group size {options.group_size} does not divide the {name} {width:,}",
                    hint=f"`--group-size` of {fitting_text}" if fitting else "`--precision int8`",
                )
        return Choice(name="group_size", value=str(options.group_size), reason=AS_ASKED)
    if not fitting:
        narrow = ", ".join(f"{name} {width:,}" for name, width in widths.items())
        raise PlanError(
            f"int4 needs a group size of 32 or more that divides every row: {narrow}",
            hint="`--precision int8`",
        )
    if fitting[0] == GROUP_SIZES[0]:
        reason = "the usual one, and it divides every row"
    else:
        narrowest = min(widths, key=lambda name: widths[name] & -widths[name])
        reason = "the largest usual one that divides every row: "
        reason += f"{narrowest} {widths[narrowest]:,}"
    return Choice(name="group_size", value=str(fitting[0]), reason=reason)


def choose_key_quantization(checkpoint: Checkpoint, kv_cache_precision: str) -> Choice | None:
    """Over what the keys of an int8 cache share a scale; None for a cache of another type.

    With scales by channel, the library's default, each write of a token rounds the keys of its
    whole block anew. It writes the last token of a prompt again that is in the prefix cache up to
    its end, so that repeated prompts would get other answers: such engines go without that cache.
    """
    if kv_cache_precision != "int8":
        return None
    if checkpoint.has_key_bias:
        reason = "biases give keys outliers, which scales by token would lose"
        return Choice(name="key_cache_scales", value=BY_CHANNEL, reason=reason)
    reason = "scales by channel would change cached keys whenever a prompt is repeated"
    return Choice(name="key_cache_scales", value=BY_TOKEN, reason=reason)


def choose_pinning() -> Choice:
    reason = "a thread that is bound to a core waits for the API process there, and all with it"
    return Choice(name="thread_pinning", value="off", reason=reason)


def runtime_settings(
    inference_precision: str,
    kv_cache_precision: str,
    key_cache_scales: str | None,
    activation_group_size: int,
) -> dict[str, str | int | bool]:
    """What the payload must be loaded with, in the library's own words. A group of 0 is none."""
    modes = {BY_TOKEN: "BY_TOKEN", BY_CHANNEL: "BY_CHANNEL"}
    return {
        **({"key_cache_quant_mode": modes[key_cache_scales]} if key_cache_scales else {}),
        "inference_precision": OPENVINO_TYPES[inference_precision],
        "kv_cache_precision": OPENVINO_TYPES[kv_cache_precision],
        "dynamic_quantization_group_size": activation_group_size,
        "enable_cpu_pinning": False,  # as `choose_pinning` says
    }


def _can_store(precision: str, checkpoint: Checkpoint) -> bool:
    widths = _row_widths(checkpoint.dims)
    return precision != "int4" or any(_divides(size, widths) for size in GROUP_SIZES)


def _row_widths(dims: ModelDims) -> dict[str, int]:
    """The inner sizes of every matrix that int4 compresses, by name."""
    widths = {
        "hidden size": dims.hidden_size,
        "attention width": dims.num_attention_heads * dims.head_dim,
    }
    if dims.num_experts:
        widths["expert size"] = expert_size(dims)
    else:
        widths["intermediate size"] = dims.intermediate_size
    return widths


def _divides(size: int, widths: dict[str, int]) -> bool:
    return all(width % size == 0 for width in widths.values())
