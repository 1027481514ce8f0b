"""Checks of NVIDIA GPUs and of the libraries that TensorRT-LLM needs.

Versions come from metadata. Child processes find out the rest: for which GPUs torch was compiled,
and whether CUDA, TensorRT, MPI and TensorRT-LLM load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepinfer.device import Gpu, GpuReading
from deepinfer.doctor.finding import Device, Finding, Status, gpu_problem_status
from deepinfer.errors import BackendError
from deepinfer.process import ProbeResult, run_probe
from deepinfer.terminal import format_bytes
from deepinfer.trtllm_libraries import (
    CUDA_DRIVER_LIBRARY,
    MPI_LIBRARY,
    MPI_MODULE,
    TENSORRT_LLM_MODULE,
    TENSORRT_MODULE,
    Load,
    cuda_runtime_library,
    find_tensorrt_version,
    how_to_find,
    missing_library,
    tensorrt_libraries,
)
from deepinfer.trtllm_release import CHECKED_VERSION, USE_CONTAINER, require_release

MIN_CUDA_VERSION = (13, 0)  # of the TensorRT-LLM 1.2.1 container
MIN_DRIVER_VERSION = 580  # the first for CUDA 13
MIN_CAPABILITY = (8, 0)  # the oldest on TensorRT-LLM's list of hardware
# The 5090 and other sm_120 GPUs need a recent driver with NVIDIA's open kernel modules.
BLACKWELL_CAPABILITY = (12, 0)
MIN_BLACKWELL_DRIVER_VERSION = 570
MIN_FREE_SHARE = 0.8  # of a GPU's memory; a plan uses nearly all of it

TORCH_PROBE = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "cuda_version": torch.version.cuda,
    "architectures": torch.cuda.get_arch_list(),
}))
"""
GIVE_GPUS = "start the container with `--gpus all`; its host needs the NVIDIA Container Toolkit"
# Error codes of cuInit (cuda.h), with what they mean and what to do.
CUDA_ERRORS: dict[int, tuple[str, str | None]] = {
    100: ("CUDA finds no GPU", GIVE_GPUS),
    802: (
        "the GPU is not ready yet",
        "wait for NVIDIA's Fabric Manager, or start it: GPUs with NVSwitch need it",
    ),
    803: (
        "the driver's kernel module and its libraries are of different versions",
        "restart the machine",
    ),
    804: (
        "a newer libcuda than the driver's is loaded, which this GPU does not support",
        "install driver 590 or later on the host, or remove /usr/local/cuda/compat from "
        "LD_LIBRARY_PATH and /etc/ld.so.conf.d",
    ),
}
CUDA_ERROR = re.compile(r"cuInit returns (\d+)")
ARCHITECTURE = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)(?P<only>a?)f?")


def check_gpus(reading: GpuReading, device: Device = Device.CPU) -> list[Finding]:
    findings = [check_driver(reading.gpus, device)] if reading.gpus else []
    findings += [check_gpu(gpu, device) for gpu in reading.gpus]
    advice = "run `nvidia-smi`; after an update of the driver, restart the machine"
    findings += [Finding("GPU", Status.WARNING, fault, advice) for fault in reading.faults]
    if len(reading.gpus) > 1:
        findings.append(check_peers(reading.blocked_peers))
    if not reading.gpus and device is Device.GPU:
        seen = "no GPU is visible, and TensorRT-LLM needs one"
        findings.append(Finding("GPU", Status.FAILED, seen, GIVE_GPUS))
    return findings or [Finding("GPU", Status.OK, "no NVIDIA GPU; engines run on the CPU")]


def check_driver(gpus: Sequence[Gpu], device: Device = Device.CPU) -> Finding:
    driver_version, cuda_version = gpus[0].driver_version, gpus[0].cuda_version
    seen = f"{driver_version}, CUDA {cuda_version}"
    # CUDA's version, not the driver's: data-centre GPUs can use a newer CUDA with an old driver.
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
    return Finding("GPU driver", gpu_problem_status(device), seen, advice)


def check_gpu(gpu: Gpu, device: Device = Device.CPU) -> Finding:
    topic = f"GPU {gpu.index}"
    seen = (
        f"{gpu.name} ({gpu.capability}), {format_bytes(gpu.free_memory_bytes)} of "
        f"{format_bytes(gpu.total_memory_bytes)} free"
    )
    if gpu.compute_capability < MIN_CAPABILITY:
        advice = "use a GPU of sm_80 or later: TensorRT-LLM supports no older one"
        return Finding(topic, gpu_problem_status(device), seen, advice)
    if gpu.free_memory_bytes < MIN_FREE_SHARE * gpu.total_memory_bytes:
        advice = "stop other processes that use its memory: `nvidia-smi` lists them"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_peers(blocked: Sequence[tuple[int, int]]) -> Finding:
    """Whether NCCL can copy between GPUs directly, which GeForce drivers do not allow."""
    topic = "GPU peers"
    if not blocked:
        return Finding(topic, Status.OK, "each GPU reaches the memory of the others")
    pairs = ", ".join(f"{first} and {second}" for first, second in blocked)
    advice = "split models with `--pipeline-parallel-size`; they are served with NCCL_P2P_DISABLE=1"
    seen = f"no access to each other's memory, as usual for GeForce: {pairs}"
    return Finding(topic, Status.WARNING, seen, advice)


@dataclass(frozen=True)
class TorchBuild:
    version: str
    cuda_version: str | None  # None: built for the CPU
    architectures: tuple[str, ...]  # such as "sm_120"; empty if CUDA does not start


def check_tensorrt_llm(
    version_of: Callable[[str], str | None], device: Device = Device.CPU
) -> Finding:
    topic = "TensorRT-LLM"
    try:
        version = require_release(version_of)
    except BackendError as error:
        return Finding(topic, gpu_problem_status(device), error.message, error.hint)
    tensorrt_version = find_tensorrt_version(version_of)
    if tensorrt_version is None:
        return Finding(
            topic, gpu_problem_status(device), f"{version}, without TensorRT", USE_CONTAINER
        )
    return Finding(topic, Status.OK, f"{version}, TensorRT {tensorrt_version}")


@dataclass(frozen=True)
class LibraryGroup:
    """Libraries and modules of one finding, and what to do if they do not load."""

    topic: str
    names: tuple[str, ...]
    advice: str


def library_groups(version_of: Callable[[str], str | None]) -> tuple[LibraryGroup, ...]:
    """The libraries that an installed TensorRT-LLM needs, in loading order."""
    version = version_of("tensorrt-llm")
    if version is None:
        return ()
    tensorrt_version = find_tensorrt_version(version_of)
    return (
        LibraryGroup("CUDA", (CUDA_DRIVER_LIBRARY, cuda_runtime_library(version)), GIVE_GPUS),
        LibraryGroup(
            "TensorRT", (TENSORRT_MODULE, *tensorrt_libraries(tensorrt_version)), USE_CONTAINER
        ),
        LibraryGroup(
            "MPI",
            (MPI_LIBRARY, MPI_MODULE),
            f"{USE_CONTAINER}; otherwise install Open MPI 4 and an mpi4py that is built for it",
        ),
        LibraryGroup(
            "importing TensorRT-LLM",
            (TENSORRT_LLM_MODULE,),
            f"{USE_CONTAINER}; `python -c 'import {TENSORRT_LLM_MODULE}'` shows the whole error",
        ),
    )


def try_loading_groups(
    groups: Sequence[LibraryGroup], version_of: Callable[[str], str | None], load: Load
) -> Mapping[str, str | None]:
    """The error of each library, or None. Loads torch first, whose packages may contain CUDA."""
    names = [name for group in groups for name in group.names]
    return load(["torch", *names] if names and version_of("torch") else names)


def check_loading(
    groups: Sequence[LibraryGroup],
    load_errors: Mapping[str, str | None],
    device: Device = Device.CPU,
) -> Iterator[Finding]:
    """A finding per group; TensorRT-LLM's own is omitted if an earlier group failed."""
    has_failed = False
    for group in groups:
        if has_failed and TENSORRT_LLM_MODULE in group.names:
            continue
        problem = next(
            filter(None, (_find_load_problem(name, load_errors) for name in group.names)), None
        )
        if problem is None:
            yield Finding(group.topic, Status.OK, f"{', '.join(group.names)} load")
            continue
        has_failed = True
        seen, advice = problem
        yield Finding(group.topic, gpu_problem_status(device), seen, advice or group.advice)


def _find_load_problem(
    name: str, load_errors: Mapping[str, str | None]
) -> tuple[str, str | None] | None:
    """The problem of a library, and the advice if there is one; None if it loaded."""
    if name not in load_errors:
        return f"{name} was not tried, because an earlier library did not respond", None
    error = load_errors[name]
    if error is None:
        return None
    if (library := missing_library(error)) is not None:
        seen = f"{name} does not load: the dynamic loader cannot find {library}"
        return seen, None if library == CUDA_DRIVER_LIBRARY else how_to_find(library)
    if found := CUDA_ERROR.search(error):
        meaning, advice = CUDA_ERRORS.get(int(found[1]), (error, None))
        return f"CUDA does not start: {meaning}", advice
    return f"{name} does not load: {error}", None


def check_torch(result: ProbeResult, gpus: Sequence[Gpu], device: Device = Device.CPU) -> Finding:
    topic = "torch"
    if result.exit_code != 0:
        seen = f"does not load: {result.last_error_line}"
        return Finding(topic, gpu_problem_status(device), seen, USE_CONTAINER)
    build = read_torch_build(result.stdout)
    if build.cuda_version is None and device is Device.CPU:
        return Finding(topic, Status.OK, f"{build.version}, built for the CPU")
    problem = find_torch_problem(build, gpus)
    if problem is None:
        seen = f"{build.version}, CUDA {build.cuda_version}, {' '.join(build.architectures)}"
        return Finding(topic, Status.OK, seen)
    seen, advice = problem
    return Finding(topic, gpu_problem_status(device), f"{build.version} {seen}", advice)


def read_torch_build(stdout: str) -> TorchBuild:
    probed = json.loads(stdout.splitlines()[-1])
    return TorchBuild(probed["version"], probed["cuda_version"], tuple(probed["architectures"]))


def find_torch_problem(build: TorchBuild, gpus: Sequence[Gpu]) -> tuple[str, str] | None:
    """The problem of a torch build on these GPUs, and the advice; None without one."""
    if build.cuda_version is None:
        return "is built for the CPU", USE_CONTAINER
    if not build.architectures:
        advice = "update the driver if it is older than that CUDA; else run `nvidia-smi`"
        return f"does not start CUDA {build.cuda_version}", advice
    missing = sorted({gpu.capability for gpu in gpus if not has_kernels(build.architectures, gpu)})
    if missing:
        has = " ".join(build.architectures)
        advice = f"{USE_CONTAINER}; otherwise sm_120 needs a torch for CUDA 12.8 or later"
        return f"has no kernels for {', '.join(missing)}, only for {has}", advice
    return None


def has_kernels(architectures: Iterable[str], gpu: Gpu) -> bool:
    """Whether code for one of `architectures` runs on `gpu`.

    Machine code (sm) runs on its own and later minor versions of one major version; with an "a",
    only on its own. PTX (compute) is compiled for any later GPU.
    """
    for match in filter(None, map(ARCHITECTURE.fullmatch, architectures)):
        built_for = (int(match["major"]), int(match["minor"]))
        if built_for == gpu.compute_capability:
            return True
        is_same_major = built_for[0] == gpu.compute_capability[0]
        if built_for < gpu.compute_capability and not match["only"]:
            if match["kind"] == "compute" or is_same_major:
                return True
    return False


def probe_torch() -> ProbeResult:
    return run_probe(TORCH_PROBE)
