"""What OpenVINO can do on a CPU, and what is best there when nobody says: pure rules.

The planner asks; nothing here reads a file or imports a library. What things weigh is said by
`footprint.py`.
"""

from __future__ import annotations

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.compiler.footprint import BITS, expert_size
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice

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
        if BITS[precision] < BITS[checkpoint.precision] and _can_store(precision, checkpoint)
    }
    for precision in sorted(candidates, key=lambda precision: BITS[precision]):
        cost = candidates[precision]
        if cost is not None and cost < MAX_PERPLEXITY_COST:
            return Choice(name="precision", value=precision, reason=_explain_costs(candidates))
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
    """How many int4 weights share a scale. Raises PlanError when a matrix cannot be cut so."""
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
        reason = f"the largest usual one that divides every row: {_narrowest(widths)}"
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


def _explain_costs(costs: dict[str, float | None]) -> str:
    measured = [f"{name} {cost:.2%}" for name, cost in costs.items() if cost is not None]
    return "the lowest that costs less than 1% perplexity on the sample: " + ", ".join(measured)


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


def _narrowest(widths: dict[str, int]) -> str:
    name = min(widths, key=lambda name: widths[name] & -widths[name])
    return f"{name} {widths[name]:,}"
