"""The device that an engine is planned for, as little of it as a plan needs.

`--target` names a device; `resolve_target` turns the name and this machine into a `TargetDevice`.
Whether TensorRT-LLM is installed is told from outside: nothing here imports or looks for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.compiler.capabilities import CAPABILITIES, find_capability
from deepinfer.compiler.devices import (
    DRIVER_BYTES,
    GPU_MODELS,
    GpuModel,
    find_gpu_model,
    find_gpu_model_by_name,
    find_nearest,
    has_peer_access,
    is_laptop_gpu,
    parse_capability,
    simplify_name,
)
from deepinfer.compiler.options import AS_ASKED, RequestedBackend
from deepinfer.device import Gpu, Machine
from deepinfer.errors import PlanError
from deepinfer.terminal import format_bytes
from deepinfer.trtllm_release import CHECKED_VERSION, CONTAINER


@dataclass(frozen=True)
class GpuTarget:
    """What a plan for GPUs needs beside name and capability. All cards of one plan are alike."""

    model: GpuModel | None  # None: a card whose speed is not known here
    total_bytes: int  # of one card
    free_bytes: tuple[int, ...]  # of each card in this machine; empty when there is none
    has_peer_access: bool

    @property
    def is_here(self) -> bool:
        return bool(self.free_bytes)


@dataclass(frozen=True)
class TargetDevice:
    kind: str  # "cpu" or "gpu"
    name: str
    capability: str  # the machine type, such as "x86_64", or "sm_120"
    features: tuple[str, ...]  # CPU instruction sets, sorted
    has_native_bf16: bool
    memory_bytes: int  # free now, for the engine; of one GPU
    host_memory_bytes: int  # free now, for the build
    disk_bytes: int  # free where the engine will be written
    reason: str = AS_ASKED
    gpu: GpuTarget | None = None

    @property
    def is_here(self) -> bool:
        return self.gpu is None or self.gpu.is_here


def resolve_target(
    target: str,
    machine: Machine,
    disk_bytes: int,
    *,
    backend: RequestedBackend = "auto",
    has_tensorrt_llm: bool = False,
) -> TargetDevice:
    """The device that `target` names. Raises PlanError for one that nothing here compiles for.

    A GPU by name gives a plan on any machine; one that is in this machine is taken as it is.
    """
    if target.lower() == "cpu":
        return _make_cpu(machine, disk_bytes, AS_ASKED)
    if target.lower() == "auto":
        gpu, reason = _choose_gpu(machine, backend, has_tensorrt_llm=has_tensorrt_llm)
        if gpu is None:
            return _make_cpu(machine, disk_bytes, reason)
        return _make_gpu(gpu, machine, disk_bytes, reason)
    for gpu in machine.gpus:
        if _is_named(target, gpu):
            return _make_gpu(gpu, machine, disk_bytes, AS_ASKED)
    model = find_gpu_model(target)
    if model is None:
        raise _refuse(target)
    return _make_absent_gpu(model, target, machine, disk_bytes)


def require_here(device: TargetDevice) -> None:
    """Raise PlanError for a GPU that is not in this machine: it can be planned for, not built."""
    if not device.is_here:
        raise PlanError(
            f"this machine has no {device.name}: an engine is built on the GPU that it is for",
            hint="`--dry-run` prints the plan; `--target auto` takes what this machine has",
        )


def _choose_gpu(
    machine: Machine, backend: RequestedBackend, *, has_tensorrt_llm: bool
) -> tuple[Gpu | None, str]:
    """The GPU that `--target auto` means, or None for the CPU; and why."""
    if backend == "openvino":
        return None, "the OpenVINO backend compiles for CPUs"
    supported = [gpu for gpu in machine.gpus if find_capability(gpu.capability)]
    if not supported:
        reason = _why_none(machine)
        if backend == "tensorrt-llm":
            raise PlanError(
                f"`--backend tensorrt-llm` compiles for GPUs; {reason}",
                hint="`--target rtx5090 --dry-run` plans for one that is not here",
            )
        return None, reason
    gpu = supported[0]
    if has_tensorrt_llm or backend == "tensorrt-llm":
        return gpu, f"this machine has this GPU, and TensorRT-LLM compiles for {gpu.capability}"
    reason = f"TensorRT-LLM is not installed: run in {CONTAINER} to use the {gpu.name}"
    return None, reason


def _why_none(machine: Machine) -> str:
    if not machine.gpus:
        return "this machine has no NVIDIA GPU"
    gpu = machine.gpus[0]
    return (
        f"{gpu.name} is {gpu.capability}, and TensorRT-LLM {CHECKED_VERSION} compiles for "
        + ", ".join(CAPABILITIES)
    )


def _is_named(target: str, gpu: Gpu) -> bool:
    if find_capability(gpu.capability) is None:
        return False
    if parse_capability(target) == gpu.capability:
        return True
    model = find_gpu_model_by_name(gpu.name, gpu.capability)
    names = (simplify_name(gpu.name), *(model.names if model else ()))
    return simplify_name(target) in names


def _make_cpu(machine: Machine, disk_bytes: int, reason: str) -> TargetDevice:
    return TargetDevice(
        kind="cpu",
        name=machine.cpu.name,
        capability=machine.cpu.machine,
        features=tuple(sorted(machine.cpu.features)),
        has_native_bf16=machine.cpu.has_native_bf16,
        memory_bytes=machine.available_memory_bytes,
        host_memory_bytes=machine.available_memory_bytes,
        disk_bytes=disk_bytes,
        reason=reason,
    )


def _make_gpu(gpu: Gpu, machine: Machine, disk_bytes: int, reason: str) -> TargetDevice:
    alike = [one for one in machine.gpus if one.name == gpu.name]
    return TargetDevice(
        kind="gpu",
        name=gpu.name,
        capability=gpu.capability,
        features=(),
        has_native_bf16=True,
        memory_bytes=gpu.free_memory_bytes,
        host_memory_bytes=machine.available_memory_bytes,
        disk_bytes=disk_bytes,
        reason=reason,
        gpu=GpuTarget(
            model=find_gpu_model_by_name(gpu.name, gpu.capability),
            total_bytes=gpu.total_memory_bytes,
            free_bytes=tuple(one.free_memory_bytes for one in alike),
            has_peer_access=has_peer_access(gpu.name) and not _are_peers_blocked(machine, alike),
        ),
    )


def _are_peers_blocked(machine: Machine, gpus: list[Gpu]) -> bool:
    indices = {gpu.index for gpu in gpus}
    return any(indices.issuperset(pair) for pair in machine.blocked_peers)


def _make_absent_gpu(
    model: GpuModel, target: str, machine: Machine, disk_bytes: int
) -> TargetDevice:
    reason = AS_ASKED
    if parse_capability(target) is not None:
        others = [row.target for row in GPU_MODELS if row.capability == model.capability]
        reason = (
            f"{model.capability} alone is taken for this card, of "
            f"{format_bytes(model.memory_bytes)}; name yours: "
            + ", ".join(f"`{other}`" for other in others)
        )
    elif simplify_name(target) == "a100":
        reason = "the one with 80 GB; `--target a100-40gb` is the other"
    return TargetDevice(
        kind="gpu",
        name=model.name,
        capability=model.capability,
        features=(),
        has_native_bf16=True,
        memory_bytes=model.memory_bytes - DRIVER_BYTES,
        host_memory_bytes=machine.available_memory_bytes,
        disk_bytes=disk_bytes,
        reason=reason,
        gpu=GpuTarget(
            model=model,
            total_bytes=model.memory_bytes,
            free_bytes=(),
            has_peer_access=has_peer_access(model.name),
        ),
    )


def _refuse(target: str) -> PlanError:
    known = ", ".join(f"`{model.target}`" for model in GPU_MODELS)
    hint = f"`auto`, `cpu`, {known}, or a compute capability such as `sm_120`"
    capability = parse_capability(target)
    if capability is not None:
        if capability in CAPABILITIES:
            hint = f"plan for it on a machine that has such a card, or take {known}"
        return PlanError(
            f"no {capability} card is known here, and this machine has none", hint=hint
        )
    if is_laptop_gpu(target):
        return PlanError(
            f"no card `{target}` is known here, and this machine has none: a laptop's card is "
            "another one than the desktop's of its name",
            hint="`--target auto` on the machine that has it",
        )
    nearest = find_nearest(target)
    if nearest is not None:
        hint = f"did you mean `{nearest.target}`? Known are {known}"
    return PlanError(f"there is no target `{target}`", hint=hint)
