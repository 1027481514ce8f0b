"""What works on this machine and what does not: a finding for each thing that DeepInfer needs.

Every check is a function of what was seen, so that it can be tried on made-up machines; `examine`
is the one place that looks. FAILED means that the main job, serving on the CPU, cannot work. The
doctor changes nothing, and knows the backends' libraries only by name and version.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from deepinfer.device import Cpu, Gpu, GpuReading, query_gpus, read_cpu, read_memory
from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, find_damage, find_engine_folders, read_engine
from deepinfer.terminal import format_bytes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MIN_PYTHON = (3, 11)
MIN_FREE_MEMORY_BYTES = 2 << 30  # the API process, OpenVINO and a small engine
MIN_FREE_DISK_BYTES = 10 << 30  # a checkpoint of a few billion parameters beside its engine
MIN_OPEN_FILES = 4096  # a descriptor for each connection, and some for the engine
MIN_CUDA_VERSION = (13, 0)  # what the TensorRT-LLM 1.2.1 container is made with
OPENVINO_MACHINES = ("x86_64", "aarch64")
PROBE_TIMEOUT_S = 120
PROBE = """
import json, openvino, openvino_genai
capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
print(json.dumps({"version": openvino_genai.__version__, "capabilities": capabilities}))
"""


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


# What a group of libraries is for, its extra, and how bad it is when one of them is missing.
LIBRARY_GROUPS = (
    ("serving", "", Status.FAILED),
    ("serving on the CPU", "openvino", Status.FAILED),
    ("building for the CPU", "openvino-build", Status.WARNING),
)


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Status
    seen: str
    advice: str | None = None  # the one thing to do; None when there is nothing to do


@dataclass(frozen=True)
class ProbeResult:
    """How a process that loads OpenVINO ended."""

    exit_code: int  # negative: the signal that killed it
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Space:
    """The file system that holds a folder, or will hold it when it is made."""

    free_bytes: int
    is_writable: bool


def examine(engine_dir: Path, port: int) -> list[Finding]:
    """Look at this machine. Takes a second or two, most of it to load OpenVINO in a process."""
    cpu, gpus = read_cpu(), query_gpus()
    total_bytes, available_bytes = read_memory()
    cache_dir = hub_cache_dir(os.environ)
    return [
        check_python(sys.version_info[:3], platform.system(), cpu.machine),
        *check_libraries(own_requirements(), installed_version, has_gpu=bool(gpus.gpus)),
        check_openvino(probe_openvino()),
        check_cpu(cpu),
        *check_gpus(gpus),
        check_memory(total_bytes, available_bytes),
        *check_engines(engine_dir, gpus.gpus),
        check_disk("disk for engines", engine_dir, measure_space(engine_dir)),
        check_disk("disk for checkpoints", cache_dir, measure_space(cache_dir)),
        check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        check_port(port, find_port_obstacle(port)),
    ]


def can_serve(findings: Iterable[Finding]) -> bool:
    return all(finding.status is not Status.FAILED for finding in findings)


def check_python(version: tuple[int, int, int], system: str, machine: str) -> Finding:
    seen = f"{'.'.join(map(str, version))} on {system} {machine}"
    if version[:2] < MIN_PYTHON:
        advice = f"install Python {'.'.join(map(str, MIN_PYTHON))} or later"
        return Finding("Python", Status.FAILED, seen, advice)
    if system != "Linux":
        return Finding(
            "Python", Status.WARNING, seen, "serve on Linux; elsewhere nothing is tested"
        )
    return Finding("Python", Status.OK, seen)


def check_libraries(
    requirements: Sequence[str] | None,
    version_of: Callable[[str], str | None],
    *,
    has_gpu: bool,
) -> list[Finding]:
    """Compare what is installed with each group of `requirements`, DeepInfer's own metadata."""
    if requirements is None:
        return [
            Finding(
                "libraries",
                Status.WARNING,
                "DeepInfer runs from its source folder; the versions it needs are not known",
                "install it with `pip install -e '.[openvino]'`",
            )
        ]

    findings = []
    for topic, extra, if_missing in LIBRARY_GROUPS:
        group = select_requirements(requirements, extra)
        findings.append(check_group(topic, group, version_of, if_missing=if_missing))
    if has_gpu:
        group = select_requirements(requirements, "tensorrt-llm")
        finding = check_group("TensorRT-LLM", group, version_of, if_missing=Status.WARNING)
        container = "run in the TensorRT-LLM container, as docs/backends.md says"
        findings.append(replace(finding, advice=finding.advice and container))
    return findings


def select_requirements(requirements: Iterable[str], extra: str) -> list[Requirement]:
    """The requirements of one extra, with what it takes from others, or of the core ("")."""
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
    """A missing library counts as `if_missing`; one of another version may work: a warning."""
    versions = {requirement: version_of(requirement.name) for requirement in group}
    missing = [requirement for requirement in versions if versions[requirement] is None]
    strange = [
        requirement
        for requirement, version in versions.items()
        if version and not requirement.specifier.contains(version, prereleases=True)
    ]
    if not missing and not strange:
        seen = ", ".join(f"{one.name} {version}" for one, version in versions.items())
        return Finding(topic, Status.OK, seen)
    seen = "; ".join(
        [
            *([f"not installed: {', '.join(one.name for one in missing)}"] if missing else []),
            *(f"{one.name} {versions[one]} is not {one.specifier}" for one in strange),
        ]
    )
    wanted = " ".join(f"'{one.name}{one.specifier}'" for one in [*missing, *strange])
    status = if_missing if missing else Status.WARNING
    return Finding(topic, status, seen, f"run `pip install {wanted}`")


def check_openvino(result: ProbeResult) -> Finding:
    topic = "OpenVINO"
    if result.exit_code == 0:
        answer = json.loads(result.stdout.splitlines()[-1])
        capabilities = ", ".join(answer["capabilities"])
        return Finding(
            topic, Status.OK, f"{answer['version']} loads; the CPU offers {capabilities}"
        )
    if result.exit_code < 0:
        name = signal.Signals(-result.exit_code).name
        advice = "use a CPU or a virtual machine that has at least SSE4.2, better AVX2"
        return Finding(topic, Status.FAILED, f"loading it crashes with {name}", advice)
    last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
    advice = "install openvino-genai again, in the version that DeepInfer asks for"
    return Finding(topic, Status.FAILED, f"does not load: {last_line}", advice)


def check_cpu(cpu: Cpu) -> Finding:
    cores = "1 core" if cpu.num_cores == 1 else f"{cpu.num_cores} cores"
    threads = "1 thread" if cpu.num_threads == 1 else f"{cpu.num_threads} threads"
    bf16 = "bf16 is native" if cpu.has_native_bf16 else "bf16 is computed in float32"
    int8 = "int8 is native" if cpu.has_native_int8 else "int8 is converted first"
    features = " ".join(sorted(cpu.features)) or "no known instruction set"
    seen = f"{cpu.name}, {cores}, {threads}; {features}; {bf16}, {int8}"
    if cpu.machine not in OPENVINO_MACHINES:
        advice = f"use one of {', '.join(OPENVINO_MACHINES)}: OpenVINO runs on no other CPU"
        return Finding("CPU", Status.FAILED, seen, advice)
    if cpu.machine == "x86_64" and "avx2" not in cpu.features:
        return Finding("CPU", Status.WARNING, seen, "use a CPU with AVX2; without it all is slow")
    return Finding("CPU", Status.OK, seen)


def check_gpus(reading: GpuReading) -> list[Finding]:
    findings = [check_gpu(gpu) for gpu in reading.gpus]
    advice = "run `nvidia-smi`; after an update of the driver, restart the machine"
    findings += [Finding("GPU", Status.WARNING, fault, advice) for fault in reading.faults]
    return findings or [Finding("GPU", Status.OK, "no NVIDIA GPU; engines run on the CPU")]


def check_gpu(gpu: Gpu) -> Finding:
    seen = (
        f"{gpu.name} ({gpu.capability}), {format_bytes(gpu.free_memory_bytes)} of "
        f"{format_bytes(gpu.total_memory_bytes)} free, driver {gpu.driver_version}, "
        f"CUDA {gpu.cuda_version}"
    )
    topic = f"GPU {gpu.index}"
    if tuple(map(int, gpu.cuda_version.split("."))) < MIN_CUDA_VERSION:
        advice = "install NVIDIA driver 580 or later: TensorRT-LLM 1.2.1 needs CUDA 13.0"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_memory(total_bytes: int, available_bytes: int) -> Finding:
    seen = f"{format_bytes(available_bytes)} of {format_bytes(total_bytes)} available"
    if available_bytes < MIN_FREE_MEMORY_BYTES:
        advice = f"free memory: a small engine takes up to {format_bytes(MIN_FREE_MEMORY_BYTES)}"
        return Finding("memory", Status.WARNING, seen, advice)
    return Finding("memory", Status.OK, seen)


def check_engines(engine_dir: Path, gpus: Sequence[Gpu]) -> list[Finding]:
    """One finding when all is well, else one for each engine that is not; sizes only are read."""
    try:
        folders = find_engine_folders(engine_dir)
    except EngineError as error:
        return [Finding("engines", Status.WARNING, error.message, error.hint)]
    if not folders:
        advice = f"make one with `deepinfer build --model sample --output {engine_dir}`"
        return [Finding("engines", Status.WARNING, f"none in `{engine_dir}`", advice)]
    trouble = [finding for folder in folders if (finding := check_engine(folder, gpus))]
    names = ", ".join(folder.resolve().name for folder in folders)
    return trouble or [Finding("engines", Status.OK, f"{len(folders)} in `{engine_dir}`: {names}")]


def check_engine(folder: Path, gpus: Sequence[Gpu]) -> Finding | None:
    try:
        engine = read_engine(folder)
    except EngineError as error:
        return Finding("engines", Status.WARNING, error.message, error.hint)
    manifest = engine.manifest
    rebuild = f"rebuild it with `deepinfer build --model {manifest.model.source} --force`"
    if damage := next(find_damage(engine, with_digests=False), None):
        return Finding(
            "engines", Status.WARNING, f"`{manifest.name}` is damaged: {damage}", rebuild
        )
    if manifest.target.kind == "gpu" and not _has_gpu_for(engine, gpus):
        has = ", ".join(sorted({gpu.capability for gpu in gpus})) or "no GPU"
        seen = (
            f"`{manifest.name}` was built for {manifest.target.capability}; this machine has {has}"
        )
        return Finding("engines", Status.WARNING, seen, rebuild)
    return None


def _has_gpu_for(engine: EngineFolder, gpus: Sequence[Gpu]) -> bool:
    return any(gpu.capability == engine.manifest.target.capability for gpu in gpus)


def check_disk(topic: str, folder: Path, space: Space) -> Finding:
    seen = f"{format_bytes(space.free_bytes)} free at `{folder}`"
    if not space.is_writable:
        advice = "give this user the right to write there"
        return Finding(topic, Status.WARNING, f"{seen}, which cannot be written to", advice)
    if space.free_bytes < MIN_FREE_DISK_BYTES:
        advice = f"free {format_bytes(MIN_FREE_DISK_BYTES)} to build more than small models"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_open_files(soft_limit: int, hard_limit: int) -> Finding:
    if soft_limit == resource.RLIM_INFINITY:
        return Finding("open files", Status.OK, "no limit")
    seen = f"limit {soft_limit:,}, a connection takes one"
    if soft_limit >= MIN_OPEN_FILES:
        return Finding("open files", Status.OK, seen)
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= MIN_OPEN_FILES:
        advice = f"run `ulimit -n {MIN_OPEN_FILES}` before `deepinfer serve`"
    else:
        advice = f"ask for a hard limit of {MIN_OPEN_FILES} (now {hard_limit}) in limits.conf"
    return Finding("open files", Status.WARNING, seen, advice)


def check_port(port: int, obstacle: str | None) -> Finding:
    topic = f"port {port}"
    if obstacle:
        return Finding(topic, Status.WARNING, obstacle, "serve on another one with `--port`")
    return Finding(topic, Status.OK, "free")


def own_requirements() -> list[str] | None:
    """What DeepInfer's installed metadata requires, or None when it is not installed."""
    try:
        return metadata.requires("deepinfer") or []
    except metadata.PackageNotFoundError:
        return None


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def probe_openvino() -> ProbeResult:
    """Load OpenVINO in a process of its own: native code that crashes must not take the doctor."""
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ProbeResult(1, "", f"no answer within {PROBE_TIMEOUT_S} s")
    return ProbeResult(done.returncode, done.stdout, done.stderr)


def hub_cache_dir(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by the variables that it reads."""
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
    """Why nobody can listen on `port` of this machine now, or None."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
