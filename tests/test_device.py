"""What is read from recorded machines, and from NVML with made-up cards."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deepinfer.device import (
    Cpu,
    Gpu,
    GpuReading,
    format_cuda_version,
    parse_meminfo,
    query_gpus,
    read_cpu,
    read_gpus,
    read_machine,
    read_memory,
)
from tests import fake_nvml
from tests.fake_nvml import GIB, Card, FakeNvml, NVMLError

RECORDED = Path(__file__).parent / "recorded"
KIB = 1024
HOST_TOTAL_BYTES = 24684096 * KIB
V1_UNLIMITED = "9223372036854771712"

InstallNvml = Callable[[FakeNvml], FakeNvml]


@pytest.fixture
def install_nvml(monkeypatch: pytest.MonkeyPatch) -> InstallNvml:
    def install(nvml: FakeNvml) -> FakeNvml:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return install


def machine_root(folder: Path, cpuinfo: str = "epyc-milan", **files: str) -> Path:
    """A file system with recorded /proc files; `files` are contents by path, "/" as "__"."""
    texts = {
        "proc/cpuinfo": (RECORDED / f"cpuinfo-{cpuinfo}.txt").read_text(),
        "proc/meminfo": (RECORDED / "meminfo.txt").read_text(),
        **{path.replace("__", "/"): text for path, text in files.items()},
    }
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def cpu_of(root: Path, *, machine: str = "x86_64", num_usable: int = 8) -> Cpu:
    return read_cpu(root, machine=machine, usable_cpus=frozenset(range(num_usable)))


def test_epyc_without_avx512_has_no_native_bf16_or_int8(tmp_path: Path) -> None:
    cpu = cpu_of(machine_root(tmp_path), num_usable=2)
    assert cpu == Cpu("AMD EPYC", "x86_64", frozenset({"avx2", "fma", "f16c"}), 2, 2)
    assert not cpu.has_native_bf16
    assert not cpu.has_native_int8


def test_sapphire_rapids_counts_cores_once_over_packages_and_threads(tmp_path: Path) -> None:
    cpu = cpu_of(machine_root(tmp_path, "sapphire-rapids"))
    assert cpu.name == "Intel(R) Xeon(R) Platinum 8488C"
    assert {"amx_bf16", "amx_int8", "avx512_vnni", "avx512_bf16", "avx_vnni"} <= cpu.features
    assert (cpu.num_cores, cpu.num_threads) == (4, 8)
    assert cpu.has_native_bf16
    assert cpu.has_native_int8


def test_affinity_bounds_cores_and_threads(tmp_path: Path) -> None:
    root = machine_root(tmp_path, "sapphire-rapids")
    cpu = read_cpu(root, machine="x86_64", usable_cpus=frozenset({0, 4, 5}))
    assert (cpu.num_cores, cpu.num_threads) == (2, 3)


def test_neoverse_v2_is_named_by_its_part_number(tmp_path: Path) -> None:
    cpu = cpu_of(machine_root(tmp_path, "neoverse-v2"), machine="aarch64", num_usable=4)
    assert cpu.name == "Arm Neoverse-V2"
    assert cpu.features == {"asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm"}
    assert (cpu.num_cores, cpu.num_threads) == (4, 4)
    assert cpu.has_native_bf16
    assert cpu.has_native_int8


def test_raspberry_pi_is_named_by_its_board(tmp_path: Path) -> None:
    cpu = cpu_of(machine_root(tmp_path, "raspberry-pi-4"), machine="aarch64", num_usable=4)
    assert cpu.name == "Raspberry Pi 4 Model B Rev 1.4"
    assert cpu.features == {"asimd"}
    assert not cpu.has_native_bf16
    assert not cpu.has_native_int8


def test_machine_without_proc_is_named_by_its_architecture(tmp_path: Path) -> None:
    assert cpu_of(tmp_path, num_usable=3) == Cpu("x86_64", "x86_64", frozenset(), 3, 3)
    total_bytes, available_bytes = read_memory(tmp_path)
    assert total_bytes == available_bytes > 0


QUOTAS = {
    "v2 limits": ({"cpu.max": "150000 100000"}, 2),
    "v2 below one CPU": ({"cpu.max": "20000 100000"}, 1),
    "v2 more than there is": ({"cpu.max": "6400000 100000"}, 8),
    "v2 unlimited": ({"cpu.max": "max 100000"}, 8),
    "v1 limits": ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    "v1 unlimited": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
}


@pytest.mark.parametrize(("files", "num_threads"), QUOTAS.values(), ids=QUOTAS.keys())
def test_cpu_quota_bounds_threads(tmp_path: Path, files: dict[str, str], num_threads: int) -> None:
    cgroup = {f"sys/fs/cgroup/{path}": text + "\n" for path, text in files.items()}
    membership = "3:cpu,cpuacct:/\n0::/\n"
    root = machine_root(tmp_path, "sapphire-rapids", proc__self__cgroup=membership, **cgroup)
    cpu = cpu_of(root)
    assert cpu.num_threads == num_threads
    assert cpu.num_cores <= num_threads


def test_host_memory_without_a_cgroup(tmp_path: Path) -> None:
    total_bytes, available_bytes = read_memory(machine_root(tmp_path))
    assert total_bytes == HOST_TOTAL_BYTES
    assert 0 < available_bytes < total_bytes


def test_cgroup_v2_limit_of_a_parent_binds(tmp_path: Path) -> None:
    root = machine_root(
        tmp_path,
        proc__self__cgroup="0::/system.slice/serve.service\n",
        **{
            "sys/fs/cgroup/system.slice/serve.service/memory.max": "max\n",
            "sys/fs/cgroup/system.slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/system.slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/system.slice/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
        },
    )
    assert read_memory(root) == (4 * GIB, 3 * GIB)


def test_cgroup_v1_limit_is_found_where_the_container_mounts_it(tmp_path: Path) -> None:
    root = machine_root(
        tmp_path,
        proc__self__cgroup="4:memory:/docker/0a1b2c\n1:name=systemd:/docker/0a1b2c\n",
        **{
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
        },
    )
    assert read_memory(root) == (2 * GIB, GIB)


def test_unlimited_cgroups_change_nothing(tmp_path: Path) -> None:
    root = machine_root(
        tmp_path,
        proc__self__cgroup="4:memory:/\n0::/\n",
        **{
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{V1_UNLIMITED}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    available_bytes = parse_meminfo((RECORDED / "meminfo.txt").read_text())["MemAvailable"]
    assert read_memory(root) == (HOST_TOTAL_BYTES, available_bytes)


def test_memory_over_its_limit_is_not_negative(tmp_path: Path) -> None:
    root = machine_root(
        tmp_path,
        proc__self__cgroup="0::/\n",
        **{
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": f"{2 * GIB}\n",
        },
    )
    assert read_memory(root) == (GIB, 0)


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert 1 <= machine.cpu.num_cores <= machine.cpu.num_threads
    assert 0 < machine.available_memory_bytes <= machine.total_memory_bytes


RTX_5090 = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 5090",
    total_memory_bytes=32 * GIB,
    free_memory_bytes=30 * GIB,
    compute_capability=(12, 0),
    driver_version="580.126.20",
    cuda_version="13.0",
)


def test_rtx_5090_is_read_as_nvml_says(install_nvml: InstallNvml) -> None:
    nvml = install_nvml(FakeNvml(Card("NVIDIA GeForce RTX 5090")))
    assert read_gpus() == (RTX_5090,)
    assert RTX_5090.capability == "sm_120"
    assert nvml.num_open == 0


def test_old_pynvml_answers_in_bytes(install_nvml: InstallNvml) -> None:
    install_nvml(FakeNvml(Card(b"NVIDIA GeForce RTX 5090"), driver_version=b"580.126.20"))
    assert read_gpus() == (RTX_5090,)


CARDS = {
    "desktop 5090": ("NVIDIA GeForce RTX 5090", (12, 0), (True, False)),
    "laptop 5090": ("NVIDIA GeForce RTX 5090 Laptop GPU", (12, 0), (False, False)),
    "5090 D": ("NVIDIA GeForce RTX 5090 D", (12, 0), (False, False)),
    "5080": ("NVIDIA GeForce RTX 5080", (12, 0), (False, False)),
    "4090": ("NVIDIA GeForce RTX 4090", (8, 9), (False, True)),
    "laptop 4090": ("NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), (False, False)),
    "H100": ("NVIDIA H100 80GB HBM3", (9, 0), (False, False)),
}


@pytest.mark.parametrize(("name", "capability", "expected"), CARDS.values(), ids=CARDS.keys())
def test_cards_are_told_apart(
    name: str, capability: tuple[int, int], expected: tuple[bool, bool]
) -> None:
    gpu = replace(RTX_5090, name=name, compute_capability=capability)
    assert (gpu.is_rtx_5090, gpu.is_rtx_4090) == expected


def test_card_that_fails_midway_hides_no_other(
    install_nvml: InstallNvml, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Card("NVIDIA GeForce RTX 5090", capability=NVMLError(fake_nvml.NVML_ERROR_GPU_IS_LOST))
    nvml = install_nvml(FakeNvml(lost, Card("NVIDIA GeForce RTX 4090", capability=(8, 9))))
    with caplog.at_level(logging.WARNING):
        gpus = read_gpus()
    assert [(gpu.index, gpu.capability) for gpu in gpus] == [(1, "sm_89")]
    assert caplog.messages == ["GPU 0 does not answer: GPU is lost"]
    assert nvml.num_open == 0


@pytest.mark.parametrize(
    "code", [fake_nvml.NVML_ERROR_LIBRARY_NOT_FOUND, fake_nvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_machine_without_a_driver_has_no_gpus_and_no_faults(
    install_nvml: InstallNvml, code: int
) -> None:
    install_nvml(FakeNvml(init_error=NVMLError(code)))
    assert query_gpus() == GpuReading(gpus=())


def test_driver_of_another_version_is_a_fault(install_nvml: InstallNvml) -> None:
    mismatch = NVMLError(fake_nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    install_nvml(FakeNvml(init_error=mismatch))
    message = "the NVIDIA driver does not answer: RM has detected an NVML/RM version mismatch"
    assert query_gpus() == GpuReading(gpus=(), faults=(message,))


def test_driver_that_fails_midway_is_a_fault_and_is_closed(install_nvml: InstallNvml) -> None:
    nvml = install_nvml(
        FakeNvml(Card("x"), cuda_version=NVMLError(fake_nvml.NVML_ERROR_NOT_SUPPORTED))
    )
    reading = query_gpus()
    assert reading.gpus == ()
    assert reading.faults == ("the NVIDIA driver does not answer: Not Supported",)
    assert nvml.num_open == 0


PEERS = {
    "as GeForce": (fake_nvml.NVML_P2P_STATUS_NOT_SUPPORTED, ((0, 1), (0, 2), (1, 2))),
    "as NVLink": (fake_nvml.NVML_P2P_STATUS_OK, ()),
    "not told": (NVMLError(fake_nvml.NVML_ERROR_NOT_SUPPORTED), ((0, 1), (0, 2), (1, 2))),
}


@pytest.mark.parametrize(("status", "blocked"), PEERS.values(), ids=PEERS.keys())
def test_peer_access_of_each_pair(
    install_nvml: InstallNvml, status: int | NVMLError, blocked: tuple[tuple[int, int], ...]
) -> None:
    cards = [Card("NVIDIA GeForce RTX 5090")] * 3
    nvml = install_nvml(FakeNvml(*cards, p2p_status=status))
    assert query_gpus().blocked_peers == blocked
    assert nvml.num_open == 0


def test_gpu_that_does_not_answer_is_nobodys_peer(install_nvml: InstallNvml) -> None:
    lost = Card("x", capability=NVMLError(fake_nvml.NVML_ERROR_GPU_IS_LOST))
    install_nvml(FakeNvml(Card("x"), lost, Card("x")))
    assert query_gpus().blocked_peers == ((0, 2),)


def test_fake_nvml_has_the_names_and_codes_of_the_real_one() -> None:
    import pynvml

    for name in dir(FakeNvml):
        if name.startswith("nvml"):
            assert callable(getattr(pynvml, name))
        if name.startswith("NVML_"):
            assert getattr(FakeNvml, name) == getattr(pynvml, name)
    for code, message in fake_nvml.MESSAGES.items():
        assert str(pynvml.NVMLError(code)) == message


@pytest.mark.parametrize(("number", "text"), [(13000, "13.0"), (12080, "12.8"), (11040, "11.4")])
def test_cuda_version_format(number: int, text: str) -> None:
    assert format_cuda_version(number) == text
