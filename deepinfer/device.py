"""What this machine is: its GPUs through NVML, its CPU and instruction set, its memory.

Containers are taken at their word: CPU affinity, CPU quota and memory limit (cgroup v1 and v2)
bound what is reported. The parsing functions are pure; the reading ones take the root of a file
system, so that a recorded machine reads like this one. Nothing here knows engines or precisions.
"""

from __future__ import annotations

import logging
import math
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

logger = logging.getLogger(__name__)

# The instruction sets that matter to matrix products, by their names in /proc/cpuinfo.
KNOWN_CPU_FEATURES = frozenset(
    "f16c fma avx2 avx_vnni avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_bf16 amx_int8 amx_fp16 asimd asimdhp asimddp sve sve2 bf16 i8mm".split()
)
NATIVE_BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
NATIVE_INT8_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})

# Arm kernels print numbers where x86 prints a model name; these are the server cores in use.
ARM_PART_NAMES = {
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0xc0", "0xac3"): "Ampere-1",
}


@dataclass(frozen=True)
class Gpu:
    index: int  # as NVML counts, in PCI bus order
    name: str
    total_memory_bytes: int
    free_memory_bytes: int
    compute_capability: tuple[int, int]
    driver_version: str
    cuda_version: str  # the highest that the driver supports, such as "13.0"

    @property
    def capability(self) -> str:
        major, minor = self.compute_capability
        return f"sm_{major}{minor}"

    @property
    def is_rtx_5090(self) -> bool:
        """The desktop card: the laptop's and the 5090 D are other chips of the same family."""
        return self.name.endswith("RTX 5090") and self.compute_capability == (12, 0)

    @property
    def is_rtx_4090(self) -> bool:
        return self.name.endswith("RTX 4090") and self.compute_capability == (8, 9)


@dataclass(frozen=True)
class Cpu:
    name: str
    machine: str  # "x86_64" or "aarch64"
    features: frozenset[str]
    num_cores: int  # physical cores that this process may use
    num_threads: int  # logical CPUs that this process may use

    @property
    def has_native_bf16(self) -> bool:
        return bool(self.features & NATIVE_BF16_FEATURES)

    @property
    def has_native_int8(self) -> bool:
        return bool(self.features & NATIVE_INT8_FEATURES)


@dataclass(frozen=True)
class Machine:
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    total_memory_bytes: int
    available_memory_bytes: int
    blocked_peers: tuple[tuple[int, int], ...] = ()  # GPUs that cannot reach each other's memory


@dataclass(frozen=True)
class GpuReading:
    """The GPUs that answered, and a line for each thing that should have answered and did not."""

    gpus: tuple[Gpu, ...]
    faults: tuple[str, ...] = ()
    blocked_peers: tuple[tuple[int, int], ...] = ()  # pairs that cannot reach each other's memory

    def log_faults(self) -> None:
        for fault in self.faults:
            logger.warning("%s", fault)


def read_machine(root: Path = Path("/")) -> Machine:
    """This machine now. Takes milliseconds; memory is as free as it was at the call."""
    total_bytes, available_bytes = read_memory(root)
    reading = query_gpus()
    reading.log_faults()
    return Machine(
        cpu=read_cpu(root),
        gpus=reading.gpus,
        total_memory_bytes=total_bytes,
        available_memory_bytes=available_bytes,
        blocked_peers=reading.blocked_peers,
    )


def read_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that answer; none when there is no driver or no card. Logs what failed."""
    reading = query_gpus()
    reading.log_faults()
    return reading.gpus


def query_gpus() -> GpuReading:
    """Ask NVML for every GPU. Never raises: a machine without a driver has no GPUs, no faults."""
    import pynvml

    # Without the library or the kernel module there is nothing to report: a machine without a GPU.
    absent = {pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReading(gpus=(), faults=() if error.value in absent else (_driver_fault(error),))
    try:
        return _query_each_gpu(pynvml)
    finally:
        pynvml.nvmlShutdown()


def _query_each_gpu(nvml: Any) -> GpuReading:
    gpus: list[Gpu] = []
    faults: list[str] = []
    try:
        driver_version = _text(nvml.nvmlSystemGetDriverVersion())
        cuda_version = format_cuda_version(nvml.nvmlSystemGetCudaDriverVersion_v2())
        num_gpus = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        return GpuReading(gpus=(), faults=(_driver_fault(error),))
    for index in range(num_gpus):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            gpus.append(
                Gpu(
                    index=index,
                    name=_text(nvml.nvmlDeviceGetName(handle)),
                    total_memory_bytes=memory.total,
                    free_memory_bytes=memory.free,
                    compute_capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
                    driver_version=driver_version,
                    cuda_version=cuda_version,
                )
            )
        except nvml.NVMLError as error:
            faults.append(f"GPU {index} does not answer: {str(error).rstrip('.')}")
    pairs = combinations([gpu.index for gpu in gpus], 2)
    blocked_peers = tuple(pair for pair in pairs if not _has_peer_access(nvml, *pair))
    return GpuReading(tuple(gpus), tuple(faults), blocked_peers)


def _has_peer_access(nvml: Any, first: int, second: int) -> bool:
    """Whether two GPUs reach each other's memory; one that does not tell counts as no."""
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in (first, second)]
        # Not NVML_P2P_CAPS_INDEX_READ: in pynvml that one is a tuple, by a stray comma.
        status = nvml.nvmlDeviceGetP2PStatus(*handles, nvml.NVML_P2P_CAPS_INDEX_WRITE)
    except nvml.NVMLError:
        return False
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def _driver_fault(error: Exception) -> str:
    return f"the NVIDIA driver does not answer: {str(error).rstrip('.')}"


def _text(value: str | bytes) -> str:
    # Versions of pynvml before 11.5 return bytes.
    return value.decode() if isinstance(value, bytes) else value


def format_cuda_version(version: int) -> str:
    """NVML's number in the usual form: 13000 is "13.0", 12080 is "12.8"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def read_cpu(
    root: Path = Path("/"),
    *,
    machine: str | None = None,
    usable_cpus: frozenset[int] | None = None,
) -> Cpu:
    """The CPU, for a recorded `root` with the machine type and the affinity recorded beside it."""
    machine = machine or platform.machine()
    usable_cpus = usable_cpus or _usable_cpus()
    processors = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    quotas = [quota for folder in cgroup_folders(root) if (quota := read_cpu_quota(folder))]
    num_threads = len(usable_cpus)
    if quotas:
        num_threads = max(1, min(num_threads, math.ceil(min(quotas))))
    return Cpu(
        name=cpu_name(processors) or machine,
        machine=machine,
        features=cpu_features(processors),
        num_cores=min(num_threads, count_cores(processors, usable_cpus) or num_threads),
        num_threads=num_threads,
    )


def _usable_cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def parse_cpuinfo(text: str) -> list[dict[str, str]]:
    """One dictionary for each block of /proc/cpuinfo; Arm ends with a block of the board's own."""
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
        fields = {key.strip(): " ".join(value.split()) for key, value in pairs}
        if fields:
            blocks.append(fields)
    return blocks


def cpu_name(processors: Iterable[dict[str, str]]) -> str | None:
    for fields in processors:
        part = (fields.get("CPU implementer", ""), fields.get("CPU part", ""))
        name = fields.get("model name") or ARM_PART_NAMES.get(part) or fields.get("Model")
        if name:
            return name
    return None


def cpu_features(processors: Iterable[dict[str, str]]) -> frozenset[str]:
    for fields in processors:
        flags = fields.get("flags") or fields.get("Features")
        if flags:
            return KNOWN_CPU_FEATURES & frozenset(flags.split())
    return frozenset()


def count_cores(processors: Iterable[dict[str, str]], usable_cpus: frozenset[int]) -> int:
    """Physical cores behind the usable logical CPUs; a CPU that names no core is one itself."""
    cores = set()
    for fields in processors:
        number = fields.get("processor", "")
        if number.isdigit() and int(number) in usable_cpus:
            cores.add((fields.get("physical id"), fields.get("core id", f"cpu{number}")))
    return len(cores)


def read_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Total and available bytes: the host's, or less where a cgroup's limit is lower."""
    meminfo = parse_meminfo(_read(root / "proc/meminfo"))
    total_bytes = meminfo.get("MemTotal") or _physical_memory_bytes()
    available_bytes = meminfo.get("MemAvailable", total_bytes)
    for folder in cgroup_folders(root):
        if limit := read_memory_limit(folder):
            total_bytes = min(total_bytes, limit)
            available_bytes = min(available_bytes, max(0, limit - read_memory_used(folder)))
    return total_bytes, available_bytes


def _physical_memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_meminfo(text: str) -> dict[str, int]:
    """/proc/meminfo in bytes by name."""
    fields = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) == 3}


def cgroup_folders(root: Path) -> Iterator[Path]:
    """Each cgroup that holds this process, innermost first, up to the root of its hierarchy.

    A parent's limit binds its children. Inside a container the path in /proc/self/cgroup may be
    the host's, of which only the root is mounted; folders that do not exist are passed over.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        relative = PurePosixPath(path.lstrip("/"))
        for controller in controllers.split(","):
            candidates = (mount / controller / part for part in (relative, *relative.parents))
            yield from (folder for folder in candidates if folder.is_dir())


def read_cpu_quota(cgroup: Path) -> float | None:
    """CPUs' worth of time that a cgroup may use, or None when it is not limited."""
    words = _read(cgroup / "cpu.max").split() or [  # version 2, then version 1
        *_read(cgroup / "cpu.cfs_quota_us").split(),
        *_read(cgroup / "cpu.cfs_period_us").split(),
    ]
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def read_memory_limit(cgroup: Path) -> int | None:
    text = (_read(cgroup / "memory.max") or _read(cgroup / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdigit() else None


def read_memory_used(cgroup: Path) -> int:
    """Bytes that count against the limit and cannot be taken back by dropping cached files."""
    used = _read(cgroup / "memory.current") or _read(cgroup / "memory.usage_in_bytes")
    words = (line.split() for line in _read(cgroup / "memory.stat").splitlines())
    stat = {pair[0]: int(pair[1]) for pair in words if len(pair) == 2}
    cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return max(0, int(used or 0) - cached)


def _read(path: Path) -> str:
    """The text of a file of the kernel's, or nothing where this kernel has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
