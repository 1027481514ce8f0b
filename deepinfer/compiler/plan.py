"""What will be built and why, decided before anything heavy loads.

`make_plan` is pure: a device, a checkpoint and options in, a `BuildPlan` or a PlanError out. Each
kind of device decides in a module of its own (`plan_cpu.py`, `plan_gpu.py`); here is what all
plans have in common.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from deepinfer.adapter import Adapter, check_base
from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import cpu, gpu, plan_cpu, plan_gpu
from deepinfer.compiler.budget import MemoryNeed
from deepinfer.compiler.lora import record_adapter
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan_types import BuildNeed, Decisions
from deepinfer.compiler.published import find_published
from deepinfer.compiler.roofline import Roofline
from deepinfer.compiler.targets import TargetDevice
from deepinfer.compiler.tensorrt_llm_plan import TensorRtLlmPlan
from deepinfer.errors import PlanError
from deepinfer.manifest import (
    AdapterRecord,
    BackendName,
    Choice,
    EngineLimits,
    LoraLimits,
    Origin,
    Parallelism,
    Record,
    Target,
)
from deepinfer.terminal import format_bytes

NAME_DIGEST_CHARS = 8  # enough to tell the checkpoints of one folder apart
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What is said about a plan, or happens to be free today, and decides nothing about the engine.
UNDIGESTED = (
    *("name", "memory", "build", "choices", "warnings", "roofline"),
    *("fitted_limits", "alternatives", "allow_untried_release"),
)


class PrecisionEstimate(Record):
    """What a plan in one precision would give, or why there is none."""

    precision: str
    obstacle: str | None = None
    kv_cache_precision: str | None = None
    memory: MemoryNeed | None = None
    limits: EngineLimits | None = None
    roofline: Roofline | None = None


class BuildPlan(Record):
    name: str
    model_id: str
    revision: str | None
    architecture: str
    num_parameters: int
    source_precision: str
    trust_remote_code: bool
    allow_untried_release: bool = False  # of TensorRT-LLM
    backend: BackendName
    target: Target
    precision: str
    export_precision: str  # of the weights before any compression, and of what is not compressed
    group_size: int | None  # of int4
    kv_cache_precision: str
    kv_bytes_per_token: int
    limits: EngineLimits
    lora: LoraLimits | None = None  # of engines that take adapters
    adapter: AdapterRecord | None = None  # that is merged into the weights
    parallelism: Parallelism
    settings: dict[str, str | int | bool]
    memory: MemoryNeed  # of each device
    build: BuildNeed
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()
    tensorrt_llm: TensorRtLlmPlan | None = None  # of its engines only
    roofline: Roofline | None = None  # of GPUs whose speed is known
    fitted_limits: tuple[str, ...] = ()  # those that follow from how much memory is free
    alternatives: tuple[PrecisionEstimate, ...] = ()  # that an automatic precision was chosen from

    @property
    def automatic_choices(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.reason != AS_ASKED)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the engine will be.

        Memory and disk that happen to be free are left out, and so are limits that were fitted
        into them: the same options give the same plan tomorrow.
        """
        decided = self.model_dump(mode="json", exclude=set(UNDIGESTED))
        decided["limits"].update({name: "auto" for name in self.fitted_limits})
        for name in ("lora", "adapter"):
            if decided[name] is None:
                del decided[name]
        if self.tensorrt_llm is None:
            del decided["tensorrt_llm"]
        else:
            del decided["tensorrt_llm"]["has_smoke_test"]
        text = json.dumps(decided, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None = None,
    built: Mapping[str, Origin] = MappingProxyType({}),
) -> BuildPlan:
    """Decide everything about a build; `adapter` is to be merged into the checkpoint.

    `built` are the engines that exist already: a name that was not asked for is never that of an
    engine of another model.
    Raises PlanError for options that cannot be met together, CheckpointError for an adapter of
    another model. Whether this machine has room for the build is for `check_room`.
    """
    plan = _make_plan(device, checkpoint, options, adapter, built)
    is_choice = device.kind == "gpu" and checkpoint.quantization is None
    if options.precision != "auto" or not is_choice:
        return plan
    others = compare_precisions(device, checkpoint, options, adapter)
    return plan.model_copy(
        update={"alternatives": tuple(one for one in others if one.precision != plan.precision)}
    )


def compare_precisions(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None = None,
) -> tuple[PrecisionEstimate, ...]:
    """An estimate for each precision that the device has for this checkpoint, smallest first."""
    estimates = []
    for precision in list_precisions(device, checkpoint):
        requested = options.model_copy(update={"precision": precision})
        try:
            plan = _make_plan(device, checkpoint, requested, adapter)
        except PlanError as error:
            estimates.append(PrecisionEstimate(precision=precision, obstacle=error.message))
            continue
        estimates.append(
            PrecisionEstimate(
                precision=precision,
                kv_cache_precision=plan.kv_cache_precision,
                memory=plan.memory,
                limits=plan.limits,
                roofline=plan.roofline,
            )
        )
    return tuple(estimates)


def list_precisions(device: TargetDevice, checkpoint: Checkpoint) -> list[str]:
    """Raises PlanError for a checkpoint that this kind of device cannot have at all."""
    if device.kind == "gpu":
        gpu.check_checkpoint(checkpoint)
        return gpu.list_precisions(gpu.capability_of(device), checkpoint)
    cpu.check_checkpoint(checkpoint)
    return list(cpu.PERPLEXITY_COST)


def _make_plan(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None,
    built: Mapping[str, Origin] = MappingProxyType({}),
) -> BuildPlan:
    if adapter is not None:
        check_base(adapter, checkpoint)
    decide = plan_gpu.decide if device.kind == "gpu" else plan_cpu.decide
    decided = decide(device, checkpoint, options)
    name = _choose_name(device, checkpoint, decided, options, adapter, built)
    need = decided.build if adapter is None else _with_merged_copy(decided.build, checkpoint)
    target = Choice(name="target", value=f"{device.kind} ({device.name})", reason=device.reason)
    return BuildPlan(
        name=name,
        model_id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        num_parameters=checkpoint.num_parameters,
        source_precision=checkpoint.precision,
        trust_remote_code=options.trust_remote_code,
        allow_untried_release=options.allow_untried_release,
        backend=decided.backend,
        target=Target(
            kind="gpu" if device.kind == "gpu" else "cpu",
            name=device.name,
            capability=device.capability,
            features=device.features,
        ),
        precision=decided.precision,
        export_precision=decided.export_precision,
        group_size=decided.group_size,
        kv_cache_precision=decided.kv_cache_precision,
        kv_bytes_per_token=decided.kv_bytes_per_token,
        limits=decided.limits.engine,
        lora=decided.lora,
        adapter=record_adapter(adapter, checkpoint) if adapter else None,
        parallelism=decided.parallelism,
        settings=decided.settings,
        memory=decided.limits.memory,
        build=need,
        choices=(target, *_explain(adapter), *decided.choices, *decided.limits.choices),
        warnings=(
            *_find_warnings(checkpoint),
            *_doubt(adapter, checkpoint),
            *decided.warnings,
            *(_find_shortages(need) if device.is_here else ()),
        ),
        tensorrt_llm=decided.tensorrt_llm,
        roofline=decided.roofline,
        fitted_limits=decided.limits.fitted,
    )


def _choose_name(
    device: TargetDevice,
    checkpoint: Checkpoint,
    decided: Decisions,
    options: BuildOptions,
    adapter: Adapter | None,
    built: Mapping[str, Origin],
) -> str:
    if options.name is not None:
        if not NAME_PATTERN.fullmatch(options.name):
            raise PlanError(
                f"`{options.name}` cannot be the name of an engine",
                hint="letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
            )
        return options.name
    origin = Origin.of(checkpoint.id, checkpoint.source, adapter.source if adapter else None)
    where = device.kind if device.kind == "cpu" else device.capability.replace("_", "")
    cuts = {
        "tp": decided.parallelism.tensor_parallel_size,
        "pp": decided.parallelism.pipeline_parallel_size,
    }
    suffix = "".join(f".{cut}{size}" for cut, size in cuts.items() if size > 1)
    suffix += f".lora{decided.lora.max_rank}" if decided.lora else ""
    names = [
        f"{model}.{decided.precision}.{where}{suffix}"
        for model in _list_model_names(checkpoint.id, origin, adapter)
    ]
    own = (name for name in names if built.get(name) == origin)
    free = (name for name in names if name not in built)
    return next(own, None) or next(free, names[-1])


def _list_model_names(model_id: str, origin: Origin, adapter: Adapter | None) -> list[str]:
    """What the model may be called in its engine's name, the best first; the last is unique."""
    last = _last_name(model_id).lstrip("._-")
    adapted = "" if adapter is None else f"-{_last_name(adapter.id)}"
    digest = hashlib.sha256(str(origin).encode()).hexdigest()[:NAME_DIGEST_CHARS]
    if not last:  # none of its letters is ASCII
        return [f"model-{digest}{adapted}", f"model{adapted}"]  # the latter as once built
    organisation = _last_name(model_id.rstrip("/").rpartition("/")[0]).strip("._-")
    names = [last + adapted]
    if organisation:
        names.append(f"{organisation}-{last}{adapted}")
    return [*names, f"{last}{adapted}-{digest}"]


def _last_name(model_id: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", model_id.rstrip("/").rsplit("/")[-1].lower())


def _with_merged_copy(need: BuildNeed, checkpoint: Checkpoint) -> BuildNeed:
    """With room for the merged weights beside what is compiled from them."""
    disk_bytes = need.disk_bytes + checkpoint.weights.num_bytes
    return need.model_copy(update={"disk_bytes": disk_bytes})


def _explain(adapter: Adapter | None) -> tuple[Choice, ...]:
    if adapter is None:
        return ()
    value = f"{adapter.id}, rank {adapter.rank}"
    reason = (
        f"merged into {len(adapter.modules)} layers: the engine always answers with it, at no cost"
    )
    return (Choice(name="adapter", value=value, reason=reason),)


def _doubt(adapter: Adapter | None, checkpoint: Checkpoint) -> tuple[str, ...]:
    """An adapter fits any model of its shapes; only its configuration knows which one was meant."""
    base = adapter.base_model if adapter else None
    if base is None or _last_name(base) == _last_name(checkpoint.id):
        return ()
    return (f"the adapter names `{base}` as its base model, which may be another one than this",)


def _find_shortages(need: BuildNeed) -> tuple[str, ...]:
    """What a build on this machine would be short of, whether or not it can end."""
    shortages = []
    if need.memory_bytes > need.free_memory_bytes:
        shortages.append(
            f"the build is estimated to take {format_bytes(need.memory_bytes)} of this machine's "
            f"memory, of which {format_bytes(need.free_memory_bytes)} are free: it may swap, or "
            "be killed"
        )
    if need.disk_bytes > need.free_disk_bytes:
        shortages.append(
            f"the build needs {format_bytes(need.disk_bytes)} of disk; "
            f"{format_bytes(need.free_disk_bytes)} are free"
        )
    return tuple(shortages)


def check_room(plan: BuildPlan) -> None:
    """Raise PlanError when this machine cannot hold the build of `plan`, in memory or on disk."""
    need = plan.build
    if need.min_memory_bytes > need.free_memory_bytes:
        raise PlanError(
            f"the build needs {format_bytes(need.min_memory_bytes)} of this machine's memory at "
            f"least; {format_bytes(need.free_memory_bytes)} are free",
            hint=_find_memory(plan),
        )
    if need.disk_bytes > need.free_disk_bytes:
        raise PlanError(
            f"the build needs {format_bytes(need.disk_bytes)} of disk; "
            f"{format_bytes(need.free_disk_bytes)} are free",
            hint="free some, or choose another disk with `--output`",
        )


def _find_memory(plan: BuildPlan) -> str:
    if plan.backend != "tensorrt-llm":
        return "build it on a larger machine and copy the engine folder here"
    # An engine is compiled on the card that it is for, so another machine is no way out.
    ways = "close other programs, or add swap"
    published = find_published(plan.model_id, plan.precision)
    if published is not None:
        return f"{ways}; `--model {published}` is quantised already and needs less"
    if plan.tensorrt_llm is not None and not plan.tensorrt_llm.is_prequantized:
        ways += "; a checkpoint that ModelOpt has quantised already needs less"
    return ways


def _find_warnings(checkpoint: Checkpoint) -> tuple[str, ...]:
    warnings = []
    if checkpoint.has_counted_weights:
        warnings.append(
            "there are no weights here: the parameters are counted from the dimensions in "
            "config.json, and a build needs them all"
        )
    if not checkpoint.eos_token_ids:
        warnings.append("the checkpoint names no EOS token: answers end at their length limit only")
    if not checkpoint.has_chat_template:
        warnings.append("the checkpoint has no chat template: chat completions need one")
    return tuple(warnings)
