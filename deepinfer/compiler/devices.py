"""The GPUs that `--target` knows by name, so that a plan for one can be made on any machine.

Where each figure comes from stands beside the table; none was measured here. What a compute
capability can do is said by `capabilities.py`.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

MIB = 2**20
# What the driver keeps of an idle card: NVML counts it as used. Unverified.
DRIVER_BYTES = 600 * MIB
# Marks of cards that share a desktop card's name and are others: less memory, another rate.
LAPTOP_MARKS = ("laptop", "mobile", "maxq", "notebook")


@dataclass(frozen=True)
class GpuModel:
    target: str  # as `--target` names it
    name: str  # as NVML names it
    capability: str
    memory_bytes: int  # in total, as NVML reports it
    bandwidth_bytes_per_s: float
    flops_16: float  # dense, a second, of FP16 and BF16, summed up in FP32
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
    """Whether the driver lets a card read another's memory: GeForce drivers do not."""
    return "GeForce" not in nvml_name
