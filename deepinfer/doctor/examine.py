"""Examines this machine and runs all checks in order.

A check is a function of what was read here, so that tests can run it on other machines. The doctor
changes nothing, and loads libraries in child processes only.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from deepinfer.device import GpuReading, query_gpus, read_cpu, read_memory
from deepinfer.doctor.finding import Device, Finding, Report, Status
from deepinfer.doctor.gpu import (
    check_gpus,
    check_loading,
    check_tensorrt_llm,
    check_torch,
    library_groups,
    probe_torch,
    try_loading_groups,
)
from deepinfer.doctor.machine import (
    check_cpu,
    check_disk,
    check_engines,
    check_libraries,
    check_memory,
    check_open_files,
    check_openvino,
    check_port,
    check_python,
    find_port_obstacle,
    hub_cache_dir,
    measure_space,
    own_requirements,
    probe_openvino,
)
from deepinfer.trtllm_libraries import try_loading
from deepinfer.trtllm_release import installed_version

NO_OPENVINO = Finding("OpenVINO", Status.OK, "not installed; engines run on the GPU")


def examine(engine_dir: Path, port: int) -> Report:
    """Takes seconds; half a minute with TensorRT-LLM, whose libraries child processes load."""
    cpu, gpus = read_cpu(), query_gpus()
    device = choose_device(installed_version)
    total_bytes, available_bytes = read_memory()
    cache_dir = hub_cache_dir(os.environ)
    findings = [
        check_python(sys.version_info[:3], platform.system(), cpu.machine),
        *check_libraries(own_requirements(), installed_version, device),
        check_openvino(probe_openvino()) if device is Device.CPU else NO_OPENVINO,
        check_cpu(cpu),
        *check_gpus(gpus, device),
        *check_gpu_libraries(gpus, device),
        check_memory(total_bytes, available_bytes),
        *check_engines(engine_dir, gpus.gpus),
        check_disk("disk for engines", engine_dir, measure_space(engine_dir)),
        check_disk("disk for checkpoints", cache_dir, measure_space(cache_dir)),
        check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        check_port(port, find_port_obstacle(port)),
    ]
    return Report(device, findings)


def choose_device(version_of: Callable[[str], str | None]) -> Device:
    """The GPU if TensorRT-LLM is the only backend, as in its container; otherwise the CPU."""
    has_tensorrt_llm = version_of("tensorrt-llm") is not None
    has_openvino = version_of("openvino-genai") is not None
    return Device.GPU if has_tensorrt_llm and not has_openvino else Device.CPU


def check_gpu_libraries(gpus: GpuReading, device: Device) -> Iterator[Finding]:
    if gpus.gpus or device is Device.GPU:
        yield check_tensorrt_llm(installed_version, device)
    if gpus.gpus and installed_version("torch"):
        yield check_torch(probe_torch(), gpus.gpus, device)
    if gpus.gpus or device is Device.GPU:
        groups = library_groups(installed_version)
        load_errors = try_loading_groups(groups, installed_version, try_loading)
        yield from check_loading(groups, load_errors, device)
