"""The NVIDIA GPUs: their driver, what they are, their free memory, and how they reach each other.

Knows what TensorRT-LLM asks of a GPU and its driver, and nothing about whether it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.device import Gpu, GpuReading
from deepinfer.doctor.finding import Device, Finding, Status, gpu_trouble
from deepinfer.terminal import format_bytes
from deepinfer.trtllm_release import CHECKED_VERSION

MIN_CUDA_VERSION = (13, 0)  # what the TensorRT-LLM 1.2.1 container is made with
MIN_DRIVER_VERSION = 580  # the first for CUDA 13
MIN_CAPABILITY = (8, 0)  # the oldest on TensorRT-LLM's list of hardware
# The 5090 and its relatives: unknown to older drivers, and to NVIDIA's closed kernel modules.
BLACKWELL_CAPABILITY = (12, 0)
MIN_BLACKWELL_DRIVER_VERSION = 570
MIN_FREE_SHARE = 0.8  # of a GPU's memory; a plan counts on nearly all of it


def check_gpus(reading: GpuReading, device: Device = Device.CPU) -> list[Finding]:
    findings = [check_driver(reading.gpus, device)] if reading.gpus else []
    findings += [check_gpu(gpu, device) for gpu in reading.gpus]
    advice = "run `nvidia-smi`; after an update of the driver, restart the machine"
    findings += [Finding("GPU", Status.WARNING, fault, advice) for fault in reading.faults]
    if len(reading.gpus) > 1:
        findings.append(check_peers(reading.blocked_peers))
    if not reading.gpus and device is Device.GPU:
        findings.append(_missing_gpu())
    return findings or [Finding("GPU", Status.OK, "no NVIDIA GPU; engines run on the CPU")]


def _missing_gpu() -> Finding:
    advice = "start the container with `--gpus all`; its host needs the NVIDIA Container Toolkit"
    return Finding("GPU", Status.FAILED, "none to see, and TensorRT-LLM needs one", advice)


def check_driver(gpus: Sequence[Gpu], device: Device = Device.CPU) -> Finding:
    driver_version, cuda_version = gpus[0].driver_version, gpus[0].cuda_version
    seen = f"{driver_version}, CUDA {cuda_version}"
    # CUDA's version and not the driver's own: data-centre GPUs can have a newer CUDA on top.
    if tuple(map(int, cuda_version.split("."))) >= MIN_CUDA_VERSION:
        return Finding("GPU driver", Status.OK, seen)
    wanted = ".".join(map(str, MIN_CUDA_VERSION))
    advice = (
        f"install NVIDIA driver {MIN_DRIVER_VERSION} or later: "
        f"TensorRT-LLM {CHECKED_VERSION} needs CUDA {wanted}"
    )
    is_blackwell = any(gpu.compute_capability >= BLACKWELL_CAPABILITY for gpu in gpus)
    if is_blackwell and int(driver_version.split(".")[0]) < MIN_BLACKWELL_DRIVER_VERSION:
        advice += f", and sm_120 the open kernel modules of {MIN_BLACKWELL_DRIVER_VERSION} or later"
    return Finding("GPU driver", gpu_trouble(device), seen, advice)


def check_gpu(gpu: Gpu, device: Device = Device.CPU) -> Finding:
    topic = f"GPU {gpu.index}"
    seen = (
        f"{gpu.name} ({gpu.capability}), {format_bytes(gpu.free_memory_bytes)} of "
        f"{format_bytes(gpu.total_memory_bytes)} free"
    )
    if gpu.compute_capability < MIN_CAPABILITY:
        advice = "use a GPU of sm_80 or later: TensorRT-LLM runs on no older one"
        return Finding(topic, gpu_trouble(device), seen, advice)
    if gpu.free_memory_bytes < MIN_FREE_SHARE * gpu.total_memory_bytes:
        advice = "end what holds its memory: `nvidia-smi` lists the processes"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_peers(blocked: Sequence[tuple[int, int]]) -> Finding:
    """Whether NCCL can copy between GPUs directly; a GeForce driver does not allow it."""
    topic = "GPU peers"
    if not blocked:
        return Finding(topic, Status.OK, "each GPU reaches the memory of the others")
    pairs = ", ".join(f"{first} and {second}" for first, second in blocked)
    advice = "split models with `--pipeline-parallel-size`; they are served with NCCL_P2P_DISABLE=1"
    seen = f"no access to each other's memory, as usual for GeForce: {pairs}"
    return Finding(topic, Status.WARNING, seen, advice)
