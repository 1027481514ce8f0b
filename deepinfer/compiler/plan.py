"""Decides what is built and why, before any heavy library is imported.

`make_plan` is pure: a device, a checkpoint and options in, a `BuildPlan` or a PlanError out. Each
kind of device decides in a module of its own (`plan_cpu.py`, `plan_gpu.py`); this
module has what all plans have in common.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from deepinfer.adapter import Adapter, check_base
from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import plan_cpu, plan_gpu
from deepinfer.compiler.lora import record_adapter
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.plan_types import (
    BuildNeed,
    BuildPlan,
    EnginePlan,
    PlanHeader,
    PrecisionEstimate,
)
from deepinfer.compiler.published import find_published
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import (
    Choice,
    Origin,
)
from deepinfer.terminal import format_bytes
from deepinfer.validation import MAX_SHOWN_CHARS

NAME_DIGEST_CHARS = 8  # enough to tell the checkpoints of one folder apart
# A build's folder and its log have some letters more than the name.
MAX_NAME_CHARS = 200
MAX_MODEL_NAME_CHARS = 150
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def make_plan(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None = None,
    built: Mapping[str, Origin] = MappingProxyType({}),
) -> BuildPlan:
    """Decide everything about a build; `adapter` is to be merged into the checkpoint.

    `built` are the engines that exist already: an automatic name is never that of an engine of
    another model. `check_room` checks that this machine has room for the build.

    Raises PlanError for options that cannot be met together, CheckpointError for an adapter of
    another model.
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
        plan_gpu.check_checkpoint(checkpoint)
        return plan_gpu.list_precisions(plan_gpu.capability_of(device), checkpoint)
    plan_cpu.check_checkpoint(checkpoint)
    return list(plan_cpu.PERPLEXITY_COST)


def _make_plan(
    device: TargetDevice,
    checkpoint: Checkpoint,
    options: BuildOptions,
    adapter: Adapter | None,
    built: Mapping[str, Origin] = MappingProxyType({}),
) -> BuildPlan:
    if adapter is not None:
        check_base(adapter, checkpoint)
    make = plan_gpu.plan_engine if device.kind == "gpu" else plan_cpu.plan_engine
    engine = make(device, checkpoint, options)
    build = engine.build
    target = Choice(name="target", value=f"{device.kind} ({device.name})", reason=device.reason)
    choices = [target]
    warnings = _find_warnings(checkpoint)
    if adapter is not None:
        # The merged weights are on disk beside what is compiled from them.
        disk_bytes = build.disk_bytes + checkpoint.weights.num_bytes
        build = build.model_copy(update={"disk_bytes": disk_bytes})
        choices.append(
            Choice(
                name="adapter",
                value=f"{adapter.id}, rank {adapter.rank}",
                reason=f"merged into {len(adapter.modules)} layers: the engine always answers with "
                "it, at no cost",
            )
        )
        # An adapter fits any model of its shapes; only its configuration knows which was meant.
        base = adapter.base_model
        if base is not None and _last_name(base) != _last_name(checkpoint.id):
            warnings.append(
                f"the adapter names `{base}` as its base model, which may be another one than this"
            )
    warnings += engine.warnings
    if device.is_here:
        warnings += _find_shortages(build)
    header = PlanHeader(
        name=_choose_name(device, checkpoint, engine, options, adapter, built),
        model_id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        num_parameters=checkpoint.num_parameters,
        source_precision=checkpoint.precision,
        trust_remote_code=options.trust_remote_code,
        allow_untried_release=options.allow_untried_release,
    )
    decided: dict[str, Any] = dict(header) | dict(engine)
    decided |= {
        "adapter": record_adapter(adapter, checkpoint) if adapter else None,
        "build": build,
        "choices": (*choices, *engine.choices),
        "warnings": tuple(warnings),
    }
    return BuildPlan(**decided)


def _choose_name(
    device: TargetDevice,
    checkpoint: Checkpoint,
    engine: EnginePlan,
    options: BuildOptions,
    adapter: Adapter | None,
    built: Mapping[str, Origin],
) -> str:
    if options.name is not None:
        if not NAME_PATTERN.fullmatch(options.name) or len(options.name) > MAX_NAME_CHARS:
            raise PlanError(
                f"`{options.name[:MAX_SHOWN_CHARS]}` cannot be the name of an engine",
                hint=f"up to {MAX_NAME_CHARS} letters, digits, `.`, `_` and `-`, beginning with a "
                "letter or digit",
            )
        return options.name
    origin = Origin.of(checkpoint.id, checkpoint.source, adapter.source if adapter else None)
    where = device.kind if device.kind == "cpu" else device.capability.replace("_", "")
    cuts = {
        "tp": engine.parallelism.tensor_parallel_size,
        "pp": engine.parallelism.pipeline_parallel_size,
    }
    suffix = "".join(f".{cut}{size}" for cut, size in cuts.items() if size > 1)
    suffix += f".lora{engine.lora.max_rank}" if engine.lora else ""
    names = [
        f"{_shorten(model)}.{engine.precision}.{where}{suffix}"
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


def _shorten(model_name: str) -> str:
    """A name of its own, however long the model's is: a file system takes 255 bytes."""
    if len(model_name) <= MAX_MODEL_NAME_CHARS:
        return model_name
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:NAME_DIGEST_CHARS]
    return f"{model_name[:MAX_MODEL_NAME_CHARS]}-{digest}"


def _last_name(model_id: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", model_id.rstrip("/").rsplit("/")[-1].lower())


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


def _find_warnings(checkpoint: Checkpoint) -> list[str]:
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
    return warnings
