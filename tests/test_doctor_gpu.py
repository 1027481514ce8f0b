"""The doctor's checks of NVIDIA GPUs: each problem has its advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from deepinfer.device import Gpu, GpuReading
from deepinfer.doctor import examine
from deepinfer.doctor.finding import Device, Finding, Status
from deepinfer.doctor.gpu import (
    TorchBuild,
    check_driver,
    check_gpu,
    check_gpus,
    check_loading,
    check_tensorrt_llm,
    check_torch,
    has_kernels,
    library_groups,
    probe_torch,
    read_torch_build,
    try_loading_groups,
)
from deepinfer.process import ProbeResult

GIB = 1 << 30
RTX_5090 = Gpu(0, "NVIDIA GeForce RTX 5090", 32 * GIB, 30 * GIB, (12, 0), "580.126.20", "13.0")
TWO_5090 = (RTX_5090, replace(RTX_5090, index=1))
H100 = replace(RTX_5090, name="NVIDIA H100 80GB HBM3", compute_capability=(9, 0))
CONTAINER = "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"


def test_machine_without_a_gpu_is_in_order() -> None:
    assert check_gpus(GpuReading(())) == [
        Finding("GPU", Status.OK, "no NVIDIA GPU; engines run on the CPU")
    ]


def test_container_that_sees_no_gpu_is_told_how_to_give_it_one() -> None:
    (finding,) = check_gpus(GpuReading(()), Device.GPU)
    assert finding.status is Status.FAILED
    assert "--gpus all" in (finding.advice or "")


def test_5090_in_order_is_shown_with_driver_and_memory() -> None:
    assert check_gpus(GpuReading((RTX_5090,)), Device.GPU) == [
        Finding("GPU driver", Status.OK, "580.126.20, CUDA 13.0"),
        Finding("GPU 0", Status.OK, "NVIDIA GeForce RTX 5090 (sm_120), 30 GiB of 32 GiB free"),
    ]


def with_driver(gpu: Gpu, driver_version: str, cuda_version: str) -> Gpu:
    return replace(gpu, driver_version=driver_version, cuda_version=cuda_version)


DRIVERS = {
    "of the container": (RTX_5090, None),
    "for sm_120, not for CUDA 13": (with_driver(RTX_5090, "570.86.10", "12.8"), "needs CUDA 13.0"),
    "too old for sm_120": (
        with_driver(RTX_5090, "565.57.01", "12.7"),
        "needs CUDA 13.0, and sm_120 the open kernel modules of 570 or later",
    ),
    "old on an H100": (with_driver(H100, "535.183.01", "12.2"), "needs CUDA 13.0"),
    "old, with a newer CUDA on top": (with_driver(H100, "570.124.06", "13.0"), None),
}


@pytest.mark.parametrize(("gpu", "advice"), DRIVERS.values(), ids=DRIVERS.keys())
def test_driver(gpu: Gpu, advice: str | None) -> None:
    finding = check_driver((gpu,))
    assert finding.status is (Status.WARNING if advice else Status.OK)
    assert finding.seen == f"{gpu.driver_version}, CUDA {gpu.cuda_version}"
    if advice:
        assert (finding.advice or "").startswith("install NVIDIA driver 580 or later: ")
        assert (finding.advice or "").endswith(advice)


def test_old_driver_fails_where_the_gpu_is_the_only_way_to_serve() -> None:
    old = with_driver(RTX_5090, "570.86.10", "12.8")
    assert check_driver((old,), Device.GPU).status is Status.FAILED


def test_gpu_older_than_tensorrt_llm_knows_is_a_warning() -> None:
    finding = check_gpu(replace(RTX_5090, name="Tesla T4", compute_capability=(7, 5)))
    assert finding.status is Status.WARNING
    assert "sm_80 or later" in (finding.advice or "")


def test_gpu_whose_memory_others_hold_is_a_warning() -> None:
    finding = check_gpu(replace(RTX_5090, free_memory_bytes=20 * GIB))
    assert finding.status is Status.WARNING
    assert "20 GiB of 32 GiB free" in finding.seen
    assert "`nvidia-smi`" in (finding.advice or "")


def test_gpu_that_does_not_answer_is_shown_beside_one_that_does() -> None:
    findings = check_gpus(GpuReading((RTX_5090,), ("GPU 1 does not answer: GPU is lost",)))
    assert [finding.status for finding in findings] == [Status.OK, Status.OK, Status.WARNING]


def peers(*blocked: tuple[int, int]) -> Finding:
    *_, finding = check_gpus(GpuReading(TWO_5090, blocked_peers=blocked))
    assert finding.topic == "GPU peers"
    return finding


def test_gpus_that_reach_each_other_are_in_order() -> None:
    assert (peers().status, peers().advice) == (Status.OK, None)


def test_two_geforce_cards_without_peer_access_are_told_to_use_pipeline_parallel() -> None:
    finding = peers((0, 1))
    assert finding.status is Status.WARNING
    assert finding.seen.endswith("0 and 1")
    assert "--pipeline-parallel-size" in (finding.advice or "")
    assert "NCCL_P2P_DISABLE=1" in (finding.advice or "")


def test_one_gpu_has_no_peers() -> None:
    assert "GPU peers" not in [one.topic for one in check_gpus(GpuReading((RTX_5090,)))]


LIBRARIES = {
    "those of the container": (
        {"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48"},
        Status.OK,
        "1.2.1, TensorRT 10.14.1.48",
    ),
    "another stable release": (
        {"tensorrt-llm": "1.1.0", "tensorrt": "10.13.3.9"},
        Status.FAILED,
        "DeepInfer works with TensorRT-LLM 1.2.1; 1.1.0 is installed",
    ),
    "the checked one, built by somebody else": (
        {"tensorrt-llm": "1.2.1+cu130", "tensorrt": "10.14.1.48"},
        Status.OK,
        "1.2.1+cu130, TensorRT 10.14.1.48",
    ),
    "TensorRT by another name": (
        {"tensorrt-llm": "1.2.1", "tensorrt-cu13": "10.14.1.48"},
        Status.OK,
        "1.2.1, TensorRT 10.14.1.48",
    ),
    "the last with engines": (
        {"tensorrt-llm": "1.3.0rc20", "tensorrt": "10.15.1"},
        Status.FAILED,
        "1.3.0rc20",
    ),
    "the first without engines": ({"tensorrt-llm": "1.3.0rc22"}, Status.FAILED, "1.3.0rc22"),
    "too old": ({"tensorrt-llm": "0.20.0", "tensorrt": "10.10"}, Status.FAILED, "0.20.0"),
    "no TensorRT": ({"tensorrt-llm": "1.2.1"}, Status.FAILED, "1.2.1, without TensorRT"),
    "none": ({}, Status.FAILED, "not installed"),
}


@pytest.mark.parametrize(("installed", "status", "seen"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_tensorrt_llm_with(installed: dict[str, str], status: Status, seen: str) -> None:
    finding = check_tensorrt_llm(installed.get, Device.GPU)
    assert finding.status is status
    assert seen in finding.seen
    if status is Status.FAILED:
        assert CONTAINER in (finding.advice or "")


def test_untried_release_is_answered_with_the_flag_that_allows_it() -> None:
    finding = check_tensorrt_llm({"tensorrt-llm": "1.1.0", "tensorrt": "10.13"}.get, Device.GPU)
    assert "--allow-untried-release" in (finding.advice or "")


def test_tensorrt_llm_is_only_missed_where_the_cpu_serves() -> None:
    assert check_tensorrt_llm({}.get, Device.CPU).status is Status.WARNING


IMAGE = {"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48", "torch": "2.9.1"}
NAMES = [name for group in library_groups(IMAGE.get) for name in group.names]
ABSENT = "OSError: libnvinfer.so.10: cannot open shared object file: No such file or directory"


def test_libraries_are_those_of_the_installed_versions_and_torch_comes_first() -> None:
    tried: list[str] = []

    def load(names: Sequence[str]) -> dict[str, str | None]:
        tried.extend(names)
        return {}

    groups = library_groups(IMAGE.get)
    try_loading_groups(groups, IMAGE.get, load)
    assert tried == ["torch", *NAMES]
    assert {"libcuda.so.1", "libcudart.so.13", "libnvinfer.so.10", "libmpi.so.40"} < set(tried)
    older = {"tensorrt-llm": "1.0.0", "tensorrt": "11.1"}
    names = [name for group in library_groups(older.get) for name in group.names]
    assert "libcudart.so.12" in names and "libnvinfer.so.11" in names
    assert library_groups({}.get) == ()


def loading(outcomes: dict[str, str | None], device: Device = Device.GPU) -> dict[str, Finding]:
    """Findings where everything loads that `outcomes` does not speak of."""
    findings = check_loading(
        library_groups(IMAGE.get), {**dict.fromkeys(NAMES), **outcomes}, device
    )
    return {finding.topic: finding for finding in findings}


def test_libraries_that_load_are_in_order() -> None:
    found = loading({})
    assert [*found] == ["CUDA", "TensorRT", "MPI", "importing TensorRT-LLM"]
    assert {finding.status for finding in found.values()} == {Status.OK}


FAULTS: dict[str, tuple[dict[str, str | None], str, str, str]] = {
    "library of TensorRT not found": (
        {"tensorrt": ABSENT.replace("OSError", "ImportError"), "libnvinfer.so.10": ABSENT},
        "TensorRT",
        "cannot find libnvinfer.so.10",
        "ldconfig",
    ),
    "driver not given to the container": (
        {"libcuda.so.1": ABSENT.replace("libnvinfer.so.10", "libcuda.so.1")},
        "CUDA",
        "cannot find libcuda.so.1",
        "--gpus all",
    ),
    "no GPU given": ({"libcuda.so.1": "cuInit returns 100"}, "CUDA", "no GPU", "--gpus all"),
    "compatibility library on a GeForce": (
        {"libcuda.so.1": "cuInit returns 804"},
        "CUDA",
        "newer libcuda",
        "590",
    ),
    "unknown CUDA error": ({"libcuda.so.1": "cuInit returns 999"}, "CUDA", "999", "--gpus all"),
    "MPI that crashes": (
        {"mpi4py.MPI": "crashes with SIGABRT"},
        "MPI",
        "mpi4py.MPI does not load: crashes with SIGABRT",
        "Open MPI",
    ),
    "TensorRT-LLM alone": (
        {"tensorrt_llm": "RuntimeError: odd"},
        "importing TensorRT-LLM",
        "RuntimeError: odd",
        CONTAINER,
    ),
}


@pytest.mark.parametrize(
    ("outcomes", "topic", "seen", "advice"), FAULTS.values(), ids=FAULTS.keys()
)
def test_doctor_names_a_library_that_does_not_load(
    outcomes: dict[str, str | None], topic: str, seen: str, advice: str
) -> None:
    found = loading(outcomes)
    (wrong,) = (finding for finding in found.values() if finding.status is not Status.OK)
    assert (wrong.topic, wrong.status) == (topic, Status.FAILED)
    assert seen in wrong.seen
    assert advice in (wrong.advice or "")
    assert loading(outcomes, Device.CPU)[topic].status is Status.WARNING


def test_tensorrt_llm_that_fails_for_another_s_reason_is_not_listed_twice() -> None:
    found = loading({"tensorrt": ABSENT, "tensorrt_llm": ABSENT})
    assert "importing TensorRT-LLM" not in found


def test_library_after_one_that_hangs_was_not_tried() -> None:
    outcomes: dict[str, str | None] = dict.fromkeys(NAMES)
    outcomes["libmpi.so.40"] = "no answer within 300 s"
    del outcomes["mpi4py.MPI"], outcomes["tensorrt_llm"]
    found = {one.topic: one for one in check_loading(library_groups(IMAGE.get), outcomes)}
    assert "no answer within 300 s" in found["MPI"].seen
    outcomes["libmpi.so.40"] = None
    found = {one.topic: one for one in check_loading(library_groups(IMAGE.get), outcomes)}
    assert "mpi4py.MPI was not tried" in found["MPI"].seen


def torch_says(version: str, cuda_version: str | None, *architectures: str) -> ProbeResult:
    listed = "[" + ", ".join(f'"{name}"' for name in architectures) + "]"
    cuda = f'"{cuda_version}"' if cuda_version else "null"
    answer = f'{{"version": "{version}", "cuda_version": {cuda}, "architectures": {listed}}}'
    return ProbeResult(0, f"a warning of some library\n{answer}\n", "")


TORCHES = {
    "of the container": (
        torch_says("2.9.1", "13.0", "sm_80", "sm_90", "sm_100", "sm_120"),
        Status.OK,
        "2.9.1, CUDA 13.0, sm_80 sm_90 sm_100 sm_120",
    ),
    "without sm_120": (
        torch_says("2.6.0", "12.6", "sm_80", "sm_86", "sm_90"),
        Status.FAILED,
        "2.6.0 has no kernels for sm_120, only for sm_80 sm_86 sm_90",
    ),
    "built for the CPU": (torch_says("2.13.0+cpu", None), Status.FAILED, "is built for the CPU"),
    "that sees no GPU": (torch_says("2.9.1", "13.0"), Status.FAILED, "does not start CUDA 13.0"),
    "that does not load": (
        ProbeResult(1, "", "Traceback\nImportError: libcudart.so.13: cannot open\n"),
        Status.FAILED,
        "does not load: ImportError: libcudart.so.13: cannot open",
    ),
}


@pytest.mark.parametrize(("result", "status", "seen"), TORCHES.values(), ids=TORCHES.keys())
def test_torch(result: ProbeResult, status: Status, seen: str) -> None:
    finding = check_torch(result, (RTX_5090,), Device.GPU)
    assert finding.status is status
    assert seen in finding.seen
    assert (finding.advice is None) == (status is Status.OK)


def test_torch_for_the_cpu_is_in_order_where_the_cpu_serves() -> None:
    finding = check_torch(torch_says("2.13.0+cpu", None), (RTX_5090,), Device.CPU)
    assert (finding.status, finding.seen) == (Status.OK, "2.13.0+cpu, built for the CPU")


KERNELS = {
    "its own": ("sm_120", True),
    "of its family": ("sm_120f", True),
    "made for it alone": ("sm_120a", True),
    "PTX of an older one": ("compute_90", True),
    "PTX for one older alone": ("compute_90a", False),
    "PTX of a newer one": ("compute_121", False),
    "of a newer minor version": ("sm_121", False),
    "of an older major version": ("sm_90", False),
    "of no GPU": ("gfx942", False),
}


@pytest.mark.parametrize(("architecture", "expected"), KERNELS.values(), ids=KERNELS.keys())
def test_5090_and_kernels(architecture: str, expected: bool) -> None:
    assert has_kernels([architecture], RTX_5090) is expected


def test_kernels_of_an_older_minor_version_run() -> None:
    rtx_3090 = replace(RTX_5090, compute_capability=(8, 6))
    assert has_kernels(["sm_80"], rtx_3090)
    assert not has_kernels(["sm_80a"], rtx_3090)


def test_torch_of_this_machine_answers() -> None:
    torch = pytest.importorskip("torch")
    build = read_torch_build(probe_torch().stdout)
    assert build == TorchBuild(torch.__version__, torch.version.cuda, build.architectures)


@pytest.fixture
def made_up_machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This machine with two 5090s and no library; the test says which are installed."""
    installed: dict[str, str] = {}
    reading = GpuReading(TWO_5090, blocked_peers=((0, 1),))
    torch = torch_says("2.9.1", "13.0", "sm_120")
    monkeypatch.setattr(examine, "query_gpus", lambda: reading)
    monkeypatch.setattr(examine, "installed_version", installed.get)
    monkeypatch.setattr(examine, "own_requirements", lambda: ["click>=8.1"])
    monkeypatch.setattr(examine, "probe_openvino", lambda: ProbeResult(1, "", "not installed"))
    monkeypatch.setattr(examine, "probe_torch", lambda: torch)
    monkeypatch.setattr(examine, "try_loading", dict.fromkeys)
    return installed


def test_container_with_two_5090s_serves_on_the_gpu(
    made_up_machine: dict[str, str], tmp_path: Path
) -> None:
    made_up_machine.update(
        {"click": "8.1", "tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48", "torch": "2.9.1"}
    )
    report = examine.examine(tmp_path, 0)
    assert (report.device, report.can_serve) == (Device.GPU, True)
    topics = [finding.topic for finding in report.findings]
    gpu_topics = ["GPU driver", "GPU 0", "GPU 1", "GPU peers", "TensorRT-LLM", "torch"]
    gpu_topics += ["CUDA", "TensorRT", "MPI", "importing TensorRT-LLM"]
    assert topics[topics.index("GPU driver") :][: len(gpu_topics)] == gpu_topics


def test_5090_without_tensorrt_llm_is_told_the_container(
    made_up_machine: dict[str, str], tmp_path: Path
) -> None:
    report = examine.examine(tmp_path, 0)
    finding = next(one for one in report.findings if one.topic == "TensorRT-LLM")
    assert (report.device, finding.status) == (Device.CPU, Status.WARNING)
    assert CONTAINER in (finding.advice or "")


def test_container_whose_tensorrt_does_not_load_serves_nothing(
    made_up_machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_machine.update({"click": "8.1", **IMAGE})
    outcomes = {**dict.fromkeys(NAMES), "libnvinfer.so.10": ABSENT}
    monkeypatch.setattr(examine, "try_loading", lambda names: outcomes)
    report = examine.examine(tmp_path, 0)
    assert not report.can_serve
    assert [one.topic for one in report.findings if one.status is Status.FAILED] == ["TensorRT"]


def test_every_line_that_is_not_in_order_has_its_mend(
    made_up_machine: dict[str, str], tmp_path: Path
) -> None:
    made_up_machine.update({"tensorrt-llm": "1.3.0rc22"})
    report = examine.examine(tmp_path, 0)
    assert not report.can_serve
    wrong = [one for one in report.findings if one.status is not Status.OK]
    assert [one.topic for one in wrong if not one.advice] == []
