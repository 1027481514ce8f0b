"""The device that an engine is planned for, as little of it as a plan needs.

`--target` names a device; `resolve_target` turns the name and this machine into a `TargetDevice`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepinfer.device import Machine
from deepinfer.errors import PlanError

GPU_TARGET_NAMES = ("rtx5090", "rtx4090", "l40s", "h100", "h200", "b200")


@dataclass(frozen=True)
class TargetDevice:
    kind: str  # "cpu"
    name: str
    capability: str  # the machine type, such as "x86_64"
    features: tuple[str, ...]  # CPU instruction sets, sorted
    has_native_bf16: bool
    memory_bytes: int  # free now, for the engine
    host_memory_bytes: int  # free now, for the build
    disk_bytes: int  # free where the engine will be written


def resolve_target(target: str, machine: Machine, disk_bytes: int) -> TargetDevice:
    """The device that `target` names. Raises PlanError for one that nothing here compiles for."""
    if target not in ("auto", "cpu"):
        raise _refuse(target)
    return TargetDevice(
        kind="cpu",
        name=machine.cpu.name,
        capability=machine.cpu.machine,
        features=tuple(sorted(machine.cpu.features)),
        has_native_bf16=machine.cpu.has_native_bf16,
        memory_bytes=machine.available_memory_bytes,
        host_memory_bytes=machine.available_memory_bytes,
        disk_bytes=disk_bytes,
    )


def _refuse(target: str) -> PlanError:
    if target in GPU_TARGET_NAMES or re.fullmatch(r"sm_\d+", target):
        return PlanError(
            f"`--target {target}` is a GPU; this version compiles for the CPU only",
            hint="`--target cpu`",
        )
    return PlanError(f"there is no target `{target}`", hint="`--target cpu` or `--target auto`")
