"""Checks of the machine apart from its GPUs: system, CPU, disks, Python libraries, engines."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from deepinfer.device import Cpu, Gpu
from deepinfer.doctor.finding import Device, Finding, Status
from deepinfer.errors import EngineError
from deepinfer.manifest import find_damage, find_engine_folders, read_engine
from deepinfer.process import ProbeResult, run_probe
from deepinfer.terminal import format_bytes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MIN_PYTHON = (3, 11)
MIN_FREE_MEMORY_BYTES = 2 << 30  # the API process, OpenVINO and a small engine
MIN_FREE_DISK_BYTES = 10 << 30  # a checkpoint of a few billion parameters and its engine
MIN_OPEN_FILES = 4096  # one descriptor per connection, and some for the engine

OPENVINO_MACHINES = ("x86_64", "aarch64")
OPENVINO_PROBE = """
import json, openvino, openvino_genai
capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(json.dumps({"version": openvino_genai.__version__, "capabilities": capabilities}))
"""

# Purpose of a group of libraries, its extra, and the status if one of them is missing.
SERVING = ("serving", "", Status.FAILED)
LIBRARY_GROUPS = {
    Device.CPU: (
        SERVING,
        ("serving on the CPU", "openvino", Status.FAILED),
        ("building for the CPU", "openvino-build", Status.WARNING),
    ),
    Device.GPU: (SERVING,),
}


@dataclass(frozen=True)
class Space:
    """The file system of a folder that exists or will be created."""

    free_bytes: int
    is_writable: bool


def check_python(version: tuple[int, int, int], system: str, machine: str) -> Finding:
    seen = f"{'.'.join(map(str, version))} on {system} {machine}"
    if version[:2] < MIN_PYTHON:
        advice = f"install Python {'.'.join(map(str, MIN_PYTHON))} or later"
        return Finding("Python", Status.FAILED, seen, advice)
    if system != "Linux":
        return Finding(
            "Python", Status.WARNING, seen, "serve on Linux; other systems are not tested"
        )
    return Finding("Python", Status.OK, seen)


def check_memory(total_bytes: int, available_bytes: int) -> Finding:
    seen = f"{format_bytes(available_bytes)} of {format_bytes(total_bytes)} available"
    if available_bytes < MIN_FREE_MEMORY_BYTES:
        advice = f"free memory: a small engine needs up to {format_bytes(MIN_FREE_MEMORY_BYTES)}"
        return Finding("memory", Status.WARNING, seen, advice)
    return Finding("memory", Status.OK, seen)


def check_disk(topic: str, folder: Path, space: Space) -> Finding:
    seen = f"{format_bytes(space.free_bytes)} free at `{folder}`"
    if not space.is_writable:
        advice = "give this user write permission"
        return Finding(topic, Status.WARNING, f"{seen}, which is not writable", advice)
    if space.free_bytes < MIN_FREE_DISK_BYTES:
        advice = f"free {format_bytes(MIN_FREE_DISK_BYTES)} to build more than small models"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_open_files(soft_limit: int, hard_limit: int) -> Finding:
    if soft_limit == resource.RLIM_INFINITY:
        return Finding("open files", Status.OK, "no limit")
    seen = f"limit {soft_limit:,}; each connection uses one"
    if soft_limit >= MIN_OPEN_FILES:
        return Finding("open files", Status.OK, seen)
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= MIN_OPEN_FILES:
        advice = f"run `ulimit -n {MIN_OPEN_FILES}` before `deepinfer serve`"
    else:
        advice = f"raise the hard limit of {hard_limit} to {MIN_OPEN_FILES} in limits.conf"
    return Finding("open files", Status.WARNING, seen, advice)


def check_port(port: int, obstacle: str | None) -> Finding:
    topic = f"port {port}"
    if obstacle:
        return Finding(topic, Status.WARNING, obstacle, "use another port with `--port`")
    return Finding(topic, Status.OK, "free")


def hub_cache_dir(environ: Mapping[str, str]) -> Path:
    """The download folder of huggingface_hub, from the same variables that it reads."""
    if folder := environ.get("HF_HUB_CACHE"):
        return Path(folder)
    if folder := environ.get("HF_HOME"):
        return Path(folder) / "hub"
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "huggingface" / "hub"


def measure_space(folder: Path) -> Space:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return Space(shutil.disk_usage(existing).free, os.access(existing, os.W_OK))


def find_port_obstacle(port: int) -> str | None:
    """The reason why no server can listen on `port` now; None if one can."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None


def check_openvino(result: ProbeResult) -> Finding:
    topic = "OpenVINO"
    if result.exit_code == 0:
        probed = json.loads(result.stdout.splitlines()[-1])
        capabilities = ", ".join(probed["capabilities"])
        return Finding(
            topic, Status.OK, f"{probed['version']} loads; the CPU supports {capabilities}"
        )
    if result.exit_code < 0:
        advice = "use a CPU or a virtual machine with at least SSE4.2, preferably AVX2"
        return Finding(topic, Status.FAILED, f"loading it {result.failure}", advice)
    advice = "reinstall openvino-genai in the version that DeepInfer requires"
    return Finding(topic, Status.FAILED, f"does not load: {result.last_error_line}", advice)


def check_cpu(cpu: Cpu) -> Finding:
    cores = "1 core" if cpu.num_cores == 1 else f"{cpu.num_cores} cores"
    threads = "1 thread" if cpu.num_threads == 1 else f"{cpu.num_threads} threads"
    bf16 = "bf16 is native" if cpu.has_native_bf16 else "bf16 is computed in float32"
    int8 = "int8 is native" if cpu.has_native_int8 else "int8 is converted first"
    features = " ".join(sorted(cpu.features)) or "no known instruction set"
    seen = f"{cpu.name}, {cores}, {threads}; {features}; {bf16}, {int8}"
    if cpu.machine not in OPENVINO_MACHINES:
        advice = f"use one of {', '.join(OPENVINO_MACHINES)}: OpenVINO supports no other CPU"
        return Finding("CPU", Status.FAILED, seen, advice)
    if cpu.machine == "x86_64" and "avx2" not in cpu.features:
        return Finding(
            "CPU", Status.WARNING, seen, "use a CPU with AVX2; without it everything is slow"
        )
    return Finding("CPU", Status.OK, seen)


def probe_openvino() -> ProbeResult:
    return run_probe(OPENVINO_PROBE)


def check_engines(engine_dir: Path, gpus: Sequence[Gpu]) -> list[Finding]:
    """One finding if all engines are complete, else one per problem. Files are checked by size."""
    try:
        folders = find_engine_folders(engine_dir)
    except EngineError as error:
        return [Finding("engines", Status.WARNING, error.message, error.hint)]
    if not folders:
        folder = shlex.quote(str(engine_dir))
        advice = f"build one with `deepinfer build --model sample --output {folder}`"
        return [Finding("engines", Status.WARNING, f"none in `{engine_dir}`", advice)]
    problems = [finding for folder in folders if (finding := check_engine(folder, gpus))]
    names = ", ".join(folder.resolve().name for folder in folders)
    return problems or [Finding("engines", Status.OK, f"{len(folders)} in `{engine_dir}`: {names}")]


def check_engine(folder: Path, gpus: Sequence[Gpu]) -> Finding | None:
    """The first problem of an engine; None without one."""
    try:
        engine = read_engine(folder)
    except EngineError as error:
        return Finding("engines", Status.WARNING, error.message, error.hint)
    manifest = engine.manifest
    rebuild = f"rebuild it with `deepinfer build {manifest.source_flags} --force`"
    if damage := next(find_damage(engine, with_digests=False), None):
        return Finding(
            "engines", Status.WARNING, f"`{manifest.name}` is damaged: {damage}", rebuild
        )
    if manifest.target.kind == "gpu" and all(
        gpu.capability != manifest.target.capability for gpu in gpus
    ):
        has = ", ".join(sorted({gpu.capability for gpu in gpus})) or "no GPU"
        seen = (
            f"`{manifest.name}` was built for {manifest.target.capability}; this machine has {has}"
        )
        return Finding("engines", Status.WARNING, seen, rebuild)
    return None


def check_libraries(
    requirements: Sequence[str] | None,
    version_of: Callable[[str], str | None],
    device: Device = Device.CPU,
) -> list[Finding]:
    """Compare the installed versions with each group of DeepInfer's own `requirements`."""
    if requirements is None:
        extra = "[openvino]" if device is Device.CPU else ""
        return [
            Finding(
                "libraries",
                Status.WARNING,
                "DeepInfer runs from its source folder; the required versions are unknown",
                f"install it with `pip install -e '.{extra}'`",
            )
        ]
    return [
        check_group(topic, select_requirements(requirements, extra), version_of, if_missing=status)
        for topic, extra, status in LIBRARY_GROUPS[device]
    ]


def select_requirements(requirements: Iterable[str], extra: str) -> list[Requirement]:
    """The requirements of one extra, including the extras that it names; "" is the core."""
    from packaging.requirements import Requirement

    requirements = list(requirements)
    selected: list[Requirement] = []
    for requirement in map(Requirement, requirements):
        if not _is_in_extra(requirement, extra):
            continue
        if requirement.name == "deepinfer":
            for other in sorted(requirement.extras):
                selected.extend(select_requirements(requirements, other))
        else:
            selected.append(requirement)
    return selected


def _is_in_extra(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    is_core = requirement.marker.evaluate({"extra": ""})
    return requirement.marker.evaluate({"extra": extra}) and is_core == (not extra)


def check_group(
    topic: str,
    group: Iterable[Requirement],
    version_of: Callable[[str], str | None],
    *,
    if_missing: Status,
) -> Finding:
    """A missing library has the status `if_missing`; another version is a warning."""
    versions = {requirement: version_of(requirement.name) for requirement in group}
    missing = [requirement for requirement in versions if versions[requirement] is None]
    mismatched = [
        requirement
        for requirement, version in versions.items()
        if version and not requirement.specifier.contains(version, prereleases=True)
    ]
    if not missing and not mismatched:
        seen = ", ".join(f"{one.name} {version}" for one, version in versions.items())
        return Finding(topic, Status.OK, seen)
    seen = "; ".join(
        [
            *([f"not installed: {', '.join(one.name for one in missing)}"] if missing else []),
            *(f"{one.name} {versions[one]} is not {one.specifier}" for one in mismatched),
        ]
    )
    wanted = " ".join(f"'{one.name}{one.specifier}'" for one in [*missing, *mismatched])
    status = if_missing if missing else Status.WARNING
    return Finding(topic, status, seen, f"run `pip install {wanted}`")


def own_requirements() -> list[str] | None:
    """The requirements in DeepInfer's installed metadata; None if it is not installed."""
    try:
        return metadata.requires("deepinfer") or []
    except metadata.PackageNotFoundError:
        return None
