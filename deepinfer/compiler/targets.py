"""The device that an engine is planned for, and what is known of each card and compute capability.

`--target` names a device; `resolve_target` turns the name and this machine into a `TargetDevice`.
Whether TensorRT-LLM is installed is a parameter: nothing here imports or looks for it.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from deepinfer.compiler.options import AS_ASKED, RequestedBackend
from deepinfer.device import Gpu, Machine
from deepinfer.errors import PlanError
from deepinfer.manifest import Target
from deepinfer.terminal import format_bytes
from deepinfer.trtllm_release import CHECKED_VERSION, CONTAINER

MXFP4_ALGOS = frozenset({"W4A16_MXFP4", "W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8"})
AWQ_ALGOS = frozenset({"W4A16_AWQ", "W4A8_AWQ"})
WEIGHT_ONLY_ALGOS = frozenset({"W8A16", "W4A16"})
MIB = 2**20
# What the driver keeps of an idle card: NVML counts it as used. Unverified.
DRIVER_BYTES = 600 * MIB


@dataclass(frozen=True)
class Capability:
    """`quant_algos` and `kv_cache_quant_algos` are in the matrix; `refused` by the builder."""

    name: str
    generation: str
    quant_algos: frozenset[str]
    kv_cache_quant_algos: frozenset[str]
    refused: frozenset[str] = frozenset()

    @property
    def has_fp8(self) -> bool:
        return "FP8" in self.quant_algos


# From the hardware table of the release's page on quantisation. It lists no row for weight-only
# INT8 and INT4, and an FP8 KV cache for Ampere, which without FP8 weights costs paged attention.
CAPABILITIES = {
    row.name: row
    for row in (
        Capability("sm_80", "Ampere", frozenset({"W4A16_AWQ"}), frozenset({"FP8"})),
        Capability("sm_86", "Ampere", frozenset({"W4A16_AWQ"}), frozenset({"FP8"})),
        Capability("sm_89", "Ada Lovelace", frozenset({"FP8"}) | AWQ_ALGOS, frozenset({"FP8"})),
        Capability(
            "sm_90",
            "Hopper",
            frozenset({"FP8", "FP8_BLOCK_SCALES", "FP8_PER_CHANNEL_PER_TOKEN"}) | AWQ_ALGOS,
            frozenset({"FP8"}),
        ),
        Capability(
            "sm_100",
            "Blackwell",
            frozenset({"FP8", "NVFP4", "FP8_BLOCK_SCALES"}) | MXFP4_ALGOS,
            frozenset({"FP8"}),
            refused=WEIGHT_ONLY_ALGOS,
        ),
        Capability(
            "sm_120",
            "Blackwell GeForce",
            frozenset({"FP8", "NVFP4"}) | MXFP4_ALGOS,
            frozenset({"FP8"}),
        ),
    )
}


def find_capability(name: str) -> Capability | None:
    return CAPABILITIES.get(name)


# Marks of cards that share a desktop card's name and are others: less memory, another rate.
LAPTOP_MARKS = ("laptop", "mobile", "maxq", "notebook")


@dataclass(frozen=True)
class GpuModel:
    target: str  # as `--target` names it
    name: str  # as NVML names it
    capability: str
    memory_bytes: int  # in total, as NVML reports it
    bandwidth_bytes_per_s: float
    flops_16: float  # dense, per second, of FP16 and BF16, accumulated in FP32
    flops_fp8: float | None = None  # None: no such tensor cores
    flops_fp4: float | None = None
    aliases: tuple[str, ...] = ()  # as `simplify_name` leaves them

    @property
    def names(self) -> tuple[str, ...]:
        return (simplify_name(self.target), simplify_name(self.name), *self.aliases)


# Memory is what nvidia-smi prints in public logs of these cards. Bandwidth and rates are NVIDIA's
# data sheets' and architecture papers' (Ampere, Ada, Hopper, Blackwell GeForce and RTX PRO), dense
# (a half of the rates with sparsity) and with FP32 accumulation, which GeForce cards halve and the
# library's kernels use. Rates of the Blackwell cards are from general knowledge of those papers and
# unverified here; no row was checked on a card. The first row of a compute capability is the one
# that its bare name, such as `sm_120`, assumes.
GPU_MODELS = (
    GpuModel(
        target="rtx5090",
        name="NVIDIA GeForce RTX 5090",
        capability="sm_120",
        memory_bytes=32_607 * MIB,
        bandwidth_bytes_per_s=1792e9,
        flops_16=209.5e12,
        flops_fp8=419e12,
        flops_fp4=1676e12,
    ),
    GpuModel(
        target="rtx5080",
        name="NVIDIA GeForce RTX 5080",
        capability="sm_120",
        memory_bytes=16_303 * MIB,
        bandwidth_bytes_per_s=960e9,
        flops_16=112.6e12,
        flops_fp8=225.1e12,
        flops_fp4=900.4e12,
    ),
    GpuModel(
        target="rtx5070ti",
        name="NVIDIA GeForce RTX 5070 Ti",
        capability="sm_120",
        memory_bytes=16_303 * MIB,
        bandwidth_bytes_per_s=896e9,
        flops_16=87.9e12,
        flops_fp8=175.8e12,
        flops_fp4=703e12,
    ),
    GpuModel(
        target="rtx5070",
        name="NVIDIA GeForce RTX 5070",
        capability="sm_120",
        memory_bytes=12_227 * MIB,
        bandwidth_bytes_per_s=672e9,
        flops_16=61.7e12,
        flops_fp8=123.5e12,
        flops_fp4=493.9e12,
    ),
    GpuModel(
        target="rtx5060ti",  # the one with 16 GB; NVML names the one with 8 GB alike
        name="NVIDIA GeForce RTX 5060 Ti",
        capability="sm_120",
        memory_bytes=16_311 * MIB,
        bandwidth_bytes_per_s=448e9,
        flops_16=47.4e12,
        flops_fp8=94.9e12,
        flops_fp4=379.6e12,
        aliases=("rtx5060ti16gb",),
    ),
    GpuModel(
        target="rtxpro6000",
        name="NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        capability="sm_120",
        memory_bytes=97_887 * MIB,
        bandwidth_bytes_per_s=1792e9,
        flops_16=503.8e12,
        flops_fp8=1007.6e12,
        flops_fp4=2015.2e12,
        aliases=("rtxpro6000blackwell", "rtxpro6000blackwellserveredition"),
    ),
    GpuModel(
        target="rtx4090",
        name="NVIDIA GeForce RTX 4090",
        capability="sm_89",
        memory_bytes=24_564 * MIB,
        bandwidth_bytes_per_s=1008e9,
        flops_16=165.2e12,
        flops_fp8=330.3e12,
    ),
    GpuModel(
        target="rtx4080",
        name="NVIDIA GeForce RTX 4080",
        capability="sm_89",
        memory_bytes=16_376 * MIB,
        bandwidth_bytes_per_s=716.8e9,
        flops_16=97.5e12,
        flops_fp8=194.9e12,
    ),
    GpuModel(
        target="l40s",
        name="NVIDIA L40S",
        capability="sm_89",
        memory_bytes=46_068 * MIB,
        bandwidth_bytes_per_s=864e9,
        flops_16=362e12,
        flops_fp8=733e12,
    ),
    GpuModel(
        target="h100",
        name="NVIDIA H100 80GB HBM3",
        capability="sm_90",
        memory_bytes=81_559 * MIB,
        bandwidth_bytes_per_s=3350e9,
        flops_16=989e12,
        flops_fp8=1979e12,
        aliases=("h100sxm", "h100sxm5", "h10080gb"),
    ),
    GpuModel(
        target="h200",
        name="NVIDIA H200",
        capability="sm_90",
        memory_bytes=143_771 * MIB,
        bandwidth_bytes_per_s=4800e9,
        flops_16=989e12,
        flops_fp8=1979e12,
        aliases=("h200sxm", "h200141gb"),
    ),
    GpuModel(
        target="a100-80gb",
        name="NVIDIA A100-SXM4-80GB",
        capability="sm_80",
        memory_bytes=81_920 * MIB,
        bandwidth_bytes_per_s=2039e9,
        flops_16=312e12,
        aliases=("a100", "a100sxm80gb"),
    ),
    GpuModel(
        target="a100-40gb",
        name="NVIDIA A100-SXM4-40GB",
        capability="sm_80",
        memory_bytes=40_960 * MIB,
        bandwidth_bytes_per_s=1555e9,
        flops_16=312e12,
        aliases=("a100sxm40gb",),
    ),
    GpuModel(
        target="b200",
        name="NVIDIA B200",
        capability="sm_100",
        memory_bytes=183_359 * MIB,
        bandwidth_bytes_per_s=8000e9,
        flops_16=2250e12,
        flops_fp8=4500e12,
        flops_fp4=9000e12,
    ),
)


def simplify_name(text: str) -> str:
    """A card's name without maker, line, case, spaces and dashes: `rtx5090` in every spelling."""
    name = re.sub(r"[^a-z0-9]", "", text.lower())
    name = name.removeprefix("nvidia").removeprefix("geforce")
    return f"rtx{name}" if re.match(r"(pro)?\d{4}", name) else name


def parse_capability(text: str) -> str | None:
    """`sm_120` in every spelling, or None for what is no compute capability."""
    match = re.fullmatch(r"sm[_ -]?(\d{2,3})", text.strip().lower())
    return f"sm_{match[1]}" if match else None


def find_gpu_model(target: str) -> GpuModel | None:
    """The row that `target` names; a compute capability means the first that has it."""
    capability, name = parse_capability(target), simplify_name(target)
    for model in GPU_MODELS:
        if capability == model.capability or name in model.names:
            return model
    return None


def find_gpu_model_by_name(nvml_name: str, capability: str) -> GpuModel | None:
    for model in GPU_MODELS:
        if (model.name, model.capability) == (nvml_name, capability):
            return model
    return None


def is_laptop_gpu(target: str) -> bool:
    return any(mark in simplify_name(target) for mark in LAPTOP_MARKS)


def find_nearest(target: str) -> GpuModel | None:
    """The row that `target` may be a slip of. None for a laptop's card, which has no row."""
    if is_laptop_gpu(target):
        return None
    by_name = {name: model for model in GPU_MODELS for name in model.names}
    nearest = difflib.get_close_matches(simplify_name(target), by_name, n=1, cutoff=0.7)
    return by_name[nearest[0]] if nearest else None


def has_peer_access(nvml_name: str) -> bool:
    """Whether the driver allows a card to read another's memory: GeForce drivers do not."""
    return "GeForce" not in nvml_name


@dataclass(frozen=True)
class GpuTarget:
    """What a plan for GPUs needs beside name and capability. All cards of one plan are equal."""

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

    @property
    def target(self) -> Target:
        return Target(
            kind="gpu" if self.kind == "gpu" else "cpu",
            name=self.name,
            capability=self.capability,
            features=self.features,
        )


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
    indices = {one.index for one in alike}
    blocked = any(indices.issuperset(pair) for pair in machine.blocked_peers)
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
            has_peer_access=has_peer_access(gpu.name) and not blocked,
        ),
    )


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
