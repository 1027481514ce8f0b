"""TensorRT-LLM, TensorRT and torch on a machine with a GPU: versions, and torch's kernels.

Versions are read from metadata; only torch is loaded, in a process of its own, because nothing
else tells for which GPUs it was compiled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deepinfer.device import Gpu
from deepinfer.doctor.finding import Device, Finding, Status, gpu_trouble
from deepinfer.doctor.process import ProbeResult, run_probe
from deepinfer.errors import BackendError
from deepinfer.trtllm_release import CHECKED_VERSION, USE_CONTAINER, require_release

# TensorRT's wheels carry CUDA's version in their names; the first that is installed counts.
TENSORRT_NAMES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
TORCH_PROBE = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "cuda_version": torch.version.cuda,
    "architectures": torch.cuda.get_arch_list(),
}))
"""
ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)(?P<only>a?)f?")


@dataclass(frozen=True)
class TorchBuild:
    version: str
    cuda_version: str | None  # None: made for the CPU
    architectures: tuple[str, ...]  # such as "sm_120"; empty when CUDA does not start


def check_tensorrt_llm(
    version_of: Callable[[str], str | None], device: Device = Device.CPU
) -> Finding:
    topic = "TensorRT-LLM"
    try:
        version = require_release(version_of)
    except BackendError as error:
        return Finding(topic, gpu_trouble(device), error.message, error.hint)
    tensorrt_version = next(filter(None, map(version_of, TENSORRT_NAMES)), None)
    if tensorrt_version is None:
        return Finding(topic, gpu_trouble(device), f"{version}, without TensorRT", USE_CONTAINER)
    seen = f"{version}, TensorRT {tensorrt_version}"
    if version != CHECKED_VERSION:
        seen += f"; DeepInfer is checked against {CHECKED_VERSION}"
    return Finding(topic, Status.OK, seen)


def check_torch(result: ProbeResult, gpus: Sequence[Gpu], device: Device = Device.CPU) -> Finding:
    topic = "torch"
    if result.exit_code != 0:
        seen = f"does not load: {result.last_error_line}"
        return Finding(topic, gpu_trouble(device), seen, USE_CONTAINER)
    build = read_torch_build(result.stdout)
    if build.cuda_version is None and device is Device.CPU:
        return Finding(topic, Status.OK, f"{build.version}, made for the CPU")
    trouble = describe_torch_trouble(build, gpus)
    if trouble is None:
        seen = f"{build.version}, CUDA {build.cuda_version}, {' '.join(build.architectures)}"
        return Finding(topic, Status.OK, seen)
    seen, advice = trouble
    return Finding(topic, gpu_trouble(device), f"{build.version} {seen}", advice)


def read_torch_build(stdout: str) -> TorchBuild:
    answer = json.loads(stdout.splitlines()[-1])
    return TorchBuild(answer["version"], answer["cuda_version"], tuple(answer["architectures"]))


def describe_torch_trouble(build: TorchBuild, gpus: Sequence[Gpu]) -> tuple[str, str] | None:
    """What is wrong with a torch on these GPUs, and what to do; None when nothing is."""
    if build.cuda_version is None:
        return "is made for the CPU", USE_CONTAINER
    if not build.architectures:
        advice = "update the driver if it is older than that CUDA; else run `nvidia-smi`"
        return f"does not start CUDA {build.cuda_version}", advice
    missing = sorted({gpu.capability for gpu in gpus if not has_kernels(build.architectures, gpu)})
    if missing:
        has = " ".join(build.architectures)
        advice = f"{USE_CONTAINER}; elsewhere, sm_120 needs a torch for CUDA 12.8 or later"
        return f"has no kernels for {', '.join(missing)}, only for {has}", advice
    return None


def has_kernels(architectures: Iterable[str], gpu: Gpu) -> bool:
    """Whether code for one of these runs on `gpu`.

    Machine code (sm) runs on its own and later minor versions of one major version, with an "a"
    only on its own; PTX (compute) is compiled for any later GPU.
    """
    for match in filter(None, map(ARCHITECTURE.fullmatch, architectures)):
        made_for = (int(match["major"]), int(match["minor"]))
        if made_for == gpu.compute_capability:
            return True
        is_same_major = made_for[0] == gpu.compute_capability[0]
        if made_for < gpu.compute_capability and not match["only"]:
            if match["kind"] == "compute" or is_same_major:
                return True
    return False


def probe_torch() -> ProbeResult:
    return run_probe(TORCH_PROBE)
