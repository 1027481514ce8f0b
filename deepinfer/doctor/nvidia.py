"""TensorRT-LLM and the libraries below it on a machine with a GPU: versions, kernels, loading.

Versions are read from metadata. What they cannot tell is tried in processes of their own: for
which GPUs torch was compiled, and whether CUDA, TensorRT, MPI and TensorRT-LLM load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deepinfer.device import Gpu
from deepinfer.doctor.finding import Device, Finding, Status, gpu_trouble
from deepinfer.errors import BackendError
from deepinfer.process import ProbeResult, run_probe
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
from deepinfer.trtllm_release import USE_CONTAINER, require_release

TORCH_PROBE = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "cuda_version": torch.version.cuda,
    "architectures": torch.cuda.get_arch_list(),
}))
"""
GIVE_GPUS = "start the container with `--gpus all`; its host needs the NVIDIA Container Toolkit"
# What cuInit returns (cuda.h), where there is more to say than its number.
CUDA_ERRORS: dict[int, tuple[str, str | None]] = {
    100: ("CUDA finds no GPU", GIVE_GPUS),
    802: (
        "the GPU is not ready yet",
        "wait for NVIDIA's Fabric Manager, or start it: cards with NVSwitch need it",
    ),
    803: (
        "the driver's kernel module and its libraries are of different versions",
        "restart the machine",
    ),
    804: (
        "a newer libcuda than the driver's is loaded, which this kind of card does not take",
        "install driver 590 or later on the host, or take /usr/local/cuda/compat off "
        "LD_LIBRARY_PATH and /etc/ld.so.conf.d",
    ),
}
CUDA_ERROR = re.compile(r"cuInit returns (\d+)")
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
    tensorrt_version = find_tensorrt_version(version_of)
    if tensorrt_version is None:
        return Finding(topic, gpu_trouble(device), f"{version}, without TensorRT", USE_CONTAINER)
    return Finding(topic, Status.OK, f"{version}, TensorRT {tensorrt_version}")


@dataclass(frozen=True)
class LibraryGroup:
    """Libraries and modules that are one finding, with what to do when they do not load."""

    topic: str
    names: tuple[str, ...]
    advice: str


def library_groups(version_of: Callable[[str], str | None]) -> tuple[LibraryGroup, ...]:
    """What an installed TensorRT-LLM needs, in the order in which it is to be loaded."""
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
            f"{USE_CONTAINER}; elsewhere install Open MPI 4 and an mpi4py that is built for it",
        ),
        LibraryGroup(
            "importing TensorRT-LLM",
            (TENSORRT_LLM_MODULE,),
            f"{USE_CONTAINER}; `python -c 'import {TENSORRT_LLM_MODULE}'` says all of it",
        ),
    )


def try_loading_groups(
    groups: Sequence[LibraryGroup], version_of: Callable[[str], str | None], load: Load
) -> Mapping[str, str | None]:
    """What went wrong with each library, or None; torch first, whose packages may bring CUDA."""
    names = [name for group in groups for name in group.names]
    return load(["torch", *names] if names and version_of("torch") else names)


def check_loading(
    groups: Sequence[LibraryGroup],
    outcomes: Mapping[str, str | None],
    device: Device = Device.CPU,
) -> Iterator[Finding]:
    """A finding for each group; TensorRT-LLM's own is left out when it fails for the others'."""
    has_failed = False
    for group in groups:
        if has_failed and TENSORRT_LLM_MODULE in group.names:
            continue
        problem = next(filter(None, (_describe(name, outcomes) for name in group.names)), None)
        if problem is None:
            yield Finding(group.topic, Status.OK, f"{', '.join(group.names)} load")
            continue
        has_failed = True
        seen, advice = problem
        yield Finding(group.topic, gpu_trouble(device), seen, advice or group.advice)


def _describe(name: str, outcomes: Mapping[str, str | None]) -> tuple[str, str | None] | None:
    """What is wrong with a library, and what to do if that is known; None when it has loaded."""
    if name not in outcomes:
        return f"{name} was not tried, because one before it did not answer", None
    error = outcomes[name]
    if error is None:
        return None
    if (library := missing_library(error)) is not None:
        seen = f"{name} does not load: the dynamic loader does not find {library}"
        return seen, None if library == CUDA_DRIVER_LIBRARY else how_to_find(library)
    if found := CUDA_ERROR.search(error):
        words, advice = CUDA_ERRORS.get(int(found[1]), (error, None))
        return f"CUDA does not start: {words}", advice
    return f"{name} does not load: {error}", None


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
