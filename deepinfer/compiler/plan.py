"""What will be built and why, decided before anything heavy loads.

`make_plan` is pure: a device, a checkpoint and wishes in, a `BuildPlan` or a PlanError out. What a
kind of device can do stands in a module of rules (`cpu.py`), limits and memory in `limits.py`;
here the decisions come together.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import cpu, footprint
from deepinfer.compiler.limits import MemoryNeed, choose_limits
from deepinfer.compiler.target import TargetDevice
from deepinfer.compiler.wishes import AS_ASKED, BuildWishes
from deepinfer.errors import PlanError
from deepinfer.manifest import BackendName, Choice, EngineLimits, Parallelism, Record, Target
from deepinfer.terminal import format_bytes

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class BuildNeed(Record):
    """What the build itself needs, in bytes, against what is free."""

    memory_bytes: int
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int


class BuildPlan(Record):
    name: str
    model_id: str
    revision: str | None
    architecture: str
    num_parameters: int
    source_precision: str
    trust_remote_code: bool
    backend: BackendName
    target: Target
    precision: str
    export_precision: str  # of the weights before any compression
    group_size: int | None  # of int4
    kv_cache_precision: str
    kv_bytes_per_token: int
    limits: EngineLimits
    parallelism: Parallelism
    settings: dict[str, str | int | bool]
    memory: MemoryNeed
    build: BuildNeed
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()

    @property
    def automatic_choices(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.reason != AS_ASKED)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the engine will be.

        Memory and disk that happen to be free are left out, and so is a batch size that was
        derived from them: the same wish tomorrow is the same plan.
        """
        decided = self.model_dump(
            mode="json", exclude={"name", "memory", "build", "choices", "warnings"}
        )
        if any(choice.name == "max_batch_size" for choice in self.automatic_choices):
            decided["limits"]["max_batch_size"] = "auto"
        text = json.dumps(decided, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Formats:
    """In what the numbers are stored and computed."""

    precision: Choice
    group_size: Choice | None
    kv_cache_precision: Choice
    inference_precision: Choice

    @property
    def int4_group_size(self) -> int | None:
        return int(self.group_size.value) if self.group_size else None

    @property
    def choices(self) -> tuple[Choice, ...]:
        group_size = (self.group_size,) if self.group_size else ()
        return (self.precision, *group_size, self.kv_cache_precision, self.inference_precision)


def make_plan(device: TargetDevice, checkpoint: Checkpoint, wishes: BuildWishes) -> BuildPlan:
    """Decide everything about a build. Raises PlanError for wishes that cannot be met together."""
    backend = _choose_backend(wishes)
    cpu.check_checkpoint(checkpoint)
    formats = _choose_formats(device, checkpoint, wishes)
    precision = formats.precision.value
    weight_bytes = footprint.weight_bytes(
        checkpoint, precision, formats.int4_group_size or footprint.INT4_GROUP_SIZE
    )
    kv_bytes_per_token = footprint.kv_bytes_per_token(
        checkpoint.dims, formats.kv_cache_precision.value
    )
    limits = choose_limits(
        device,
        checkpoint,
        wishes,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=kv_bytes_per_token,
    )
    return BuildPlan(
        name=_choose_name(device, checkpoint, precision, wishes),
        model_id=checkpoint.id,
        revision=checkpoint.revision,
        architecture=checkpoint.architecture,
        num_parameters=checkpoint.num_parameters,
        source_precision=checkpoint.precision,
        trust_remote_code=wishes.trust_remote_code,
        backend="openvino",
        target=Target(
            kind="cpu", name=device.name, capability=device.capability, features=device.features
        ),
        precision=precision,
        export_precision=footprint.export_precision(checkpoint, precision),
        group_size=formats.int4_group_size,
        kv_cache_precision=formats.kv_cache_precision.value,
        kv_bytes_per_token=kv_bytes_per_token,
        limits=limits.engine,
        parallelism=Parallelism(),
        settings=cpu.runtime_settings(
            precision, formats.inference_precision.value, formats.kv_cache_precision.value
        ),
        memory=limits.memory,
        build=_measure_build(device, checkpoint, precision, weight_bytes),
        choices=(_choose_target(device, wishes), backend, *formats.choices, *limits.choices),
        warnings=_find_warnings(checkpoint),
    )


def _choose_target(device: TargetDevice, wishes: BuildWishes) -> Choice:
    reason = "this version compiles for the CPU only" if wishes.target == "auto" else AS_ASKED
    return Choice(name="target", value=f"{device.kind} ({device.name})", reason=reason)


def _choose_backend(wishes: BuildWishes) -> Choice:
    if wishes.backend == "tensorrt-llm":
        raise PlanError(
            "`--backend tensorrt-llm` compiles for GPUs; this version compiles for the CPU only",
            hint="`--backend openvino --target cpu`",
        )
    reason = AS_ASKED if wishes.backend == "openvino" else "the backend for CPUs"
    return Choice(name="backend", value="openvino", reason=reason)


def _choose_formats(device: TargetDevice, checkpoint: Checkpoint, wishes: BuildWishes) -> _Formats:
    precision = cpu.choose_precision(checkpoint, wishes)
    if wishes.group_size is not None and precision.value != "int4":
        raise PlanError(
            f"`--group-size` belongs to int4; this build is {precision.value}",
            hint="`--precision int4`, or leave `--group-size` away",
        )
    is_int4 = precision.value == "int4"
    return _Formats(
        precision=precision,
        group_size=cpu.choose_group_size(checkpoint, wishes) if is_int4 else None,
        kv_cache_precision=cpu.choose_kv_cache_precision(device, precision.value, wishes),
        inference_precision=cpu.choose_inference_precision(device, precision.value),
    )


def _choose_name(
    device: TargetDevice, checkpoint: Checkpoint, precision: str, wishes: BuildWishes
) -> str:
    if wishes.name is not None:
        if not NAME_PATTERN.fullmatch(wishes.name):
            raise PlanError(
                f"`{wishes.name}` cannot be the name of an engine",
                hint="letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
            )
        return wishes.name
    model = re.sub(r"[^a-z0-9._-]+", "-", checkpoint.id.rstrip("/").rsplit("/")[-1].lower())
    where = device.kind if device.kind == "cpu" else device.capability
    return f"{model.lstrip('._-') or 'model'}.{precision}.{where}"


def _measure_build(
    device: TargetDevice, checkpoint: Checkpoint, precision: str, weight_bytes: int
) -> BuildNeed:
    need = BuildNeed(
        memory_bytes=footprint.build_memory_bytes(checkpoint, precision, weight_bytes),
        free_memory_bytes=device.host_memory_bytes,
        disk_bytes=footprint.build_disk_bytes(checkpoint, precision, weight_bytes),
        free_disk_bytes=device.disk_bytes,
    )
    if need.memory_bytes > need.free_memory_bytes:
        raise PlanError(
            f"the build needs {format_bytes(need.memory_bytes)} of memory; "
            f"{format_bytes(need.free_memory_bytes)} are free",
            hint="build it on a larger machine and copy the engine folder here",
        )
    if need.disk_bytes > need.free_disk_bytes:
        raise PlanError(
            f"the build needs {format_bytes(need.disk_bytes)} of disk; "
            f"{format_bytes(need.free_disk_bytes)} are free",
            hint="free some, or choose another disk with `--output`",
        )
    return need


def _find_warnings(checkpoint: Checkpoint) -> tuple[str, ...]:
    warnings = []
    if not checkpoint.eos_token_ids:
        warnings.append("the checkpoint names no EOS token: answers end at their length limit only")
    if not checkpoint.has_chat_template:
        warnings.append("the checkpoint has no chat template: chat completions need one")
    return tuple(warnings)
