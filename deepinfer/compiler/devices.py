"""The GPUs that `--target` knows by name, so that a plan for one can be made on any machine.

Where each figure comes from stands beside the table; none was measured here. What a compute
capability can do is said by `capabilities.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
# What the driver keeps of an idle card: NVML counts it as used. Unverified.
DRIVER_BYTES = 600 * MIB


@dataclass(frozen=True)
class GpuModel:
    target: str  # as `--target` names it
    name: str  # as NVML names it
    capability: str
    memory_bytes: int  # in total, as NVML reports it
    bandwidth_bytes_per_s: float
    flops_16: float  # dense, a second, of FP16 and BF16, summed up in FP32
    flops_fp8: float
    flops_fp4: float | None = None  # None: no such tensor cores


# Memory is what nvidia-smi prints in public logs of these cards. Bandwidth and rates are NVIDIA's
# data sheets' and architecture papers', dense (a half of the rates with sparsity) and with FP32
# accumulation, which GeForce cards halve and the library's kernels use. Those of the RTX 5090 are
# widely quoted from the Blackwell GeForce paper and unverified here; no row was checked on a card.
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
        target="rtx4090",
        name="NVIDIA GeForce RTX 4090",
        capability="sm_89",
        memory_bytes=24_564 * MIB,
        bandwidth_bytes_per_s=1008e9,
        flops_16=165.2e12,
        flops_fp8=330.3e12,
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
    ),
    GpuModel(
        target="h200",
        name="NVIDIA H200",
        capability="sm_90",
        memory_bytes=143_771 * MIB,
        bandwidth_bytes_per_s=4800e9,
        flops_16=989e12,
        flops_fp8=1979e12,
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


def find_gpu_model(target: str) -> GpuModel | None:
    """The row that `target` names: its own name, or the smallest card of a compute capability."""
    found = [model for model in GPU_MODELS if target in (model.target, model.capability)]
    # What fits the smallest fits the others of its kind.
    return min(found, key=lambda model: model.memory_bytes, default=None)


def find_gpu_model_by_name(nvml_name: str, capability: str) -> GpuModel | None:
    for model in GPU_MODELS:
        if (model.name, model.capability) == (nvml_name, capability):
            return model
    return None


def has_peer_access(nvml_name: str) -> bool:
    """Whether the driver lets a card read another's memory: GeForce drivers do not."""
    return "GeForce" not in nvml_name
