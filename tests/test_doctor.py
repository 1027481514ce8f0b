"""The doctor's checks on made-up machines, and the command on this one."""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import pytest

from deepinfer.__main__ import main
from deepinfer.commands.doctor import doctor as doctor_command
from deepinfer.config import ServeConfig
from deepinfer.device import Cpu, Gpu
from deepinfer.doctor import examine
from deepinfer.doctor.examine import choose_device
from deepinfer.doctor.finding import Device, Finding, Report, Status
from deepinfer.doctor.machine import (
    MIN_PYTHON,
    Space,
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
    probe_openvino,
    select_requirements,
)
from deepinfer.manifest import Target, write_manifest
from deepinfer.process import ProbeResult, run_probe
from tests.engines import make_simulated_engine

GIB = 1 << 30
ROOT = Path(__file__).parent.parent
REQUIREMENTS = [
    "click>=8.1,<9",
    "uvloop>=0.20; platform_python_implementation == 'NoSuchPython'",
    "numpy>=2,<3; extra == 'openvino'",
    "openvino-genai==2026.4.1.0; extra == 'openvino'",
    "deepinfer[openvino]; extra == 'openvino-build'",
    "torch==2.13.0; extra == 'openvino-build'",
    "tensorrt-llm>=1.0,<1.3; extra == 'tensorrt-llm'",
]
INSTALLED = {"click": "8.5.1", "numpy": "2.4.6", "openvino-genai": "2026.4.1.0"}
MILAN = Cpu("AMD EPYC 7763", "x86_64", frozenset({"avx2", "fma"}), num_cores=1, num_threads=2)
RTX_5090 = Gpu(0, "NVIDIA GeForce RTX 5090", 32 * GIB, 30 * GIB, (12, 0), "580.126.20", "13.0")


def status_by_topic(findings: list[Finding]) -> dict[str, Status]:
    return {finding.topic: finding.status for finding in findings}


def libraries(installed: dict[str, str], device: Device = Device.CPU) -> dict[str, Finding]:
    findings = check_libraries(REQUIREMENTS, installed.get, device)
    return {finding.topic: finding for finding in findings}


def test_only_a_failed_finding_stops_serving() -> None:
    fine, odd = Finding("a", Status.OK, "x"), Finding("b", Status.WARNING, "y", "z")
    assert Report(Device.CPU, [fine, odd]).can_serve
    assert not Report(Device.CPU, [fine, Finding("c", Status.FAILED, "y", "z")]).can_serve


PYTHONS = {
    "current": ((3, 12, 4), "Linux", Status.OK),
    "oldest": ((3, 11, 0), "Linux", Status.OK),
    "too old": ((3, 10, 12), "Linux", Status.FAILED),
    "not Linux": ((3, 12, 4), "Darwin", Status.WARNING),
}


@pytest.mark.parametrize(("version", "system", "status"), PYTHONS.values(), ids=PYTHONS.keys())
def test_python(version: tuple[int, int, int], system: str, status: Status) -> None:
    finding = check_python(version, system, "x86_64")
    assert finding.status is status
    assert (finding.advice is None) == (status is Status.OK)


def test_libraries_for_serving_but_not_building() -> None:
    found = libraries(INSTALLED)
    assert status_by_topic(list(found.values())) == {
        "serving": Status.OK,
        "serving on the CPU": Status.OK,
        "building for the CPU": Status.WARNING,
    }
    assert found["serving on the CPU"].seen == "numpy 2.4.6, openvino-genai 2026.4.1.0"
    assert found["building for the CPU"].seen == "not installed: torch"
    assert found["building for the CPU"].advice == "run `pip install 'torch==2.13.0'`"


def test_extra_brings_the_requirements_of_the_extra_that_it_names() -> None:
    names = [r.name for r in select_requirements(REQUIREMENTS, "openvino-build")]
    assert names == ["numpy", "openvino-genai", "torch"]


def test_requirement_of_another_platform_is_not_missed() -> None:
    assert [r.name for r in select_requirements(REQUIREMENTS, "")] == ["click"]


@pytest.mark.parametrize(
    ("library", "topic"), [("click", "serving"), ("openvino-genai", "serving on the CPU")]
)
def test_library_missing_for_serving_fails(library: str, topic: str) -> None:
    finding = libraries({name: INSTALLED[name] for name in INSTALLED if name != library})[topic]
    assert (finding.status, finding.seen) == (Status.FAILED, f"not installed: {library}")


def test_library_of_another_version_is_named_with_the_range() -> None:
    finding = libraries({**INSTALLED, "numpy": "1.26.4"})["serving on the CPU"]
    assert finding.status is Status.WARNING
    assert finding.seen == "numpy 1.26.4 is not <3,>=2"
    assert finding.advice == "run `pip install 'numpy<3,>=2'`"


def test_local_version_is_in_its_range() -> None:
    found = libraries({**INSTALLED, "torch": "2.13.0+cpu"})
    assert found["building for the CPU"].status is Status.OK


def test_machine_that_serves_on_its_gpu_misses_no_library_of_the_cpu() -> None:
    assert status_by_topic(list(libraries({"click": "8.5.1"}, Device.GPU).values())) == {
        "serving": Status.OK
    }


BACKENDS = {
    "none": ({}, Device.CPU),
    "OpenVINO": ({"openvino-genai": "2026.4.1.0"}, Device.CPU),
    "TensorRT-LLM": ({"tensorrt-llm": "1.2.1"}, Device.GPU),
    "both": ({"openvino-genai": "2026.4.1.0", "tensorrt-llm": "1.2.1"}, Device.CPU),
}


@pytest.mark.parametrize(("installed", "device"), BACKENDS.values(), ids=BACKENDS.keys())
def test_device_with(installed: dict[str, str], device: Device) -> None:
    assert choose_device(installed.get) is device


def test_source_folder_without_metadata_is_told_to_install() -> None:
    (finding,) = check_libraries(None, INSTALLED.get)
    assert finding.status is Status.WARNING
    assert finding.advice == "install it with `pip install -e '.[openvino]'`"


def test_extras_of_the_project_are_the_ones_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"openvino", "openvino-build", "tensorrt-llm"} <= set(project["optional-dependencies"])
    minimum = ".".join(map(str, MIN_PYTHON))
    assert project["requires-python"] == f">={minimum}"


ANSWER = '{"version": "2026.4.1.0", "capabilities": ["FP32", "BF16"]}\n'
PROBES = {
    "loads": (ProbeResult(0, ANSWER, ""), Status.OK, "the CPU supports FP32, BF16"),
    "chatters before it answers": (ProbeResult(0, f"hello\n{ANSWER}", ""), Status.OK, "2026.4.1.0"),
    "is missing": (
        ProbeResult(1, "", "Traceback\nModuleNotFoundError: No module named 'openvino'\n"),
        Status.FAILED,
        "does not load: ModuleNotFoundError: No module named 'openvino'",
    ),
    "says nothing": (ProbeResult(3, "", ""), Status.FAILED, "does not load: no message"),
    "meets an unknown instruction": (ProbeResult(-4, "", ""), Status.FAILED, "SIGILL"),
}


@pytest.mark.parametrize(("result", "status", "seen"), PROBES.values(), ids=PROBES.keys())
def test_openvino_that(result: ProbeResult, status: Status, seen: str) -> None:
    finding = check_openvino(result)
    assert finding.status is status
    assert seen in finding.seen


CPUS = {
    "AVX2": (MILAN, Status.OK, "bf16 is computed in float32, int8 is converted first"),
    "AMX": (
        replace(MILAN, features=frozenset({"avx2", "amx_bf16", "amx_int8"})),
        Status.OK,
        "bf16 is native, int8 is native",
    ),
    "Arm": (
        replace(MILAN, machine="aarch64", features=frozenset({"asimd"})),
        Status.OK,
        "1 core, 2 threads; asimd",
    ),
    "no AVX2": (replace(MILAN, features=frozenset()), Status.WARNING, "no known instruction set"),
    "no OpenVINO": (replace(MILAN, machine="riscv64"), Status.FAILED, "AMD EPYC 7763"),
}


@pytest.mark.parametrize(("cpu", "status", "seen"), CPUS.values(), ids=CPUS.keys())
def test_cpu_with(cpu: Cpu, status: Status, seen: str) -> None:
    finding = check_cpu(cpu)
    assert finding.status is status
    assert seen in finding.seen


def test_little_memory_is_a_warning() -> None:
    assert check_memory(8 * GIB, 4 * GIB).status is Status.OK
    finding = check_memory(8 * GIB, GIB)
    assert (finding.status, finding.seen) == (Status.WARNING, "1.0 GiB of 8.0 GiB available")


def test_engines_in_order(tmp_path: Path) -> None:
    make_simulated_engine(tmp_path / "a", name="a")
    make_simulated_engine(tmp_path / "b", name="b")
    (finding,) = check_engines(tmp_path, ())
    assert finding == Finding("engines", Status.OK, f"2 in `{tmp_path}`: a, b")


def test_missing_engines_are_answered_with_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        (finding,) = check_engines(folder, ())
        assert finding.status is Status.WARNING
        assert "deepinfer build --model sample" in (finding.advice or "")


def test_each_damaged_engine_is_a_warning(tmp_path: Path) -> None:
    make_simulated_engine(tmp_path / "whole")
    (tmp_path / "short" / "payload").mkdir(parents=True)
    (tmp_path / "short" / "payload" / "model.bin").write_bytes(b"abc")
    make_simulated_engine(tmp_path / "short", name="short")
    (tmp_path / "short" / "payload" / "model.bin").write_bytes(b"ab")
    make_simulated_engine(tmp_path / "unreadable")
    (tmp_path / "unreadable" / "engine.json").write_text("{")
    first, second = check_engines(tmp_path, ())
    assert "payload/model.bin has 2 bytes" in first.seen
    assert "is damaged or of another version" in second.seen
    assert {first.status, second.status} == {Status.WARNING}


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [((), "has no GPU"), ((replace(RTX_5090, compute_capability=(8, 9)),), "has sm_89")],
    ids=["no GPU", "another GPU"],
)
def test_engine_for_another_gpu_is_a_warning(
    tmp_path: Path, gpus: tuple[Gpu, ...], seen: str
) -> None:
    manifest = make_simulated_engine(tmp_path, name="llama").manifest
    target = Target(kind="gpu", name=RTX_5090.name, capability="sm_120")
    write_manifest(tmp_path, manifest.model_copy(update={"target": target}))
    (finding,) = check_engines(tmp_path, gpus)
    assert finding.seen == f"`llama` was built for sm_120; this machine {seen}"
    (finding,) = check_engines(tmp_path, (RTX_5090,))
    assert finding.status is Status.OK


SPACES = {
    "room": (Space(100 * GIB, True), Status.OK),
    "little room": (Space(GIB, True), Status.WARNING),
    "read only": (Space(100 * GIB, False), Status.WARNING),
}


@pytest.mark.parametrize(("space", "status"), SPACES.values(), ids=SPACES.keys())
def test_disk_with(space: Space, status: Status) -> None:
    finding = check_disk("disk", Path("/engines"), space)
    assert finding.status is status
    assert "`/engines`" in finding.seen


def test_space_of_a_folder_that_does_not_exist_yet_is_its_parents(tmp_path: Path) -> None:
    space = measure_space(tmp_path / "not" / "yet")
    assert space.is_writable
    assert space.free_bytes > 0


HOME_CACHE = Path.home() / ".cache" / "huggingface" / "hub"
CACHES = {
    "default": ({}, HOME_CACHE),
    "cache home": ({"XDG_CACHE_HOME": "/c"}, Path("/c/huggingface/hub")),
    "hub home": ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/c"}, Path("/h/hub")),
    "hub cache": ({"HF_HUB_CACHE": "/k", "HF_HOME": "/h"}, Path("/k")),
}


@pytest.mark.parametrize(("environ", "expected"), CACHES.values(), ids=CACHES.keys())
def test_hub_cache_by(environ: dict[str, str], expected: Path) -> None:
    assert hub_cache_dir(environ) == expected


LIMITS = {
    "high": (65536, 65536, Status.OK, None),
    "unlimited": (-1, -1, Status.OK, None),
    "low, can be raised": (1024, 65536, Status.WARNING, "ulimit -n 4096"),
    "low, unlimited above": (1024, -1, Status.WARNING, "ulimit -n 4096"),
    "low for good": (1024, 2048, Status.WARNING, "limits.conf"),
}


@pytest.mark.parametrize(("soft", "hard", "status", "advice"), LIMITS.values(), ids=LIMITS.keys())
def test_open_file_limit(soft: int, hard: int, status: Status, advice: str | None) -> None:
    finding = check_open_files(soft, hard)
    assert finding.status is status
    assert (advice or "") in (finding.advice or "")


def test_port_that_somebody_listens_on_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        finding = check_port(port, find_port_obstacle(port))
    assert finding.status is Status.WARNING
    assert finding.seen == "address already in use"
    assert check_port(port, find_port_obstacle(port)).status is Status.OK


@pytest.fixture
def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[ProbeResult, list[str]], int]:
    """Run the command on this machine, but with an OpenVINO that ended in a given way."""

    def run(result: ProbeResult, options: list[str]) -> int:
        monkeypatch.setattr(examine, "probe_openvino", lambda: result)
        return main(["doctor", "--engine-dir", str(tmp_path), *options])

    return run


def test_command_prints_advice_under_what_it_is_about(
    run_with: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(ProbeResult(0, ANSWER, ""), []) == 0
    lines = capsys.readouterr().out.splitlines()
    number = next(n for n, line in enumerate(lines) if "none in" in line)
    assert lines[number].split()[:2] == ["warning", "engines"]
    assert lines[number + 1].strip().startswith("-> build one with `deepinfer build")
    assert lines[-1].startswith("engines can be served on this CPU: ")
    assert lines[-1].endswith(" 0 failed")


def test_command_exits_with_1_when_nothing_can_be_served(
    run_with: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_with(ProbeResult(-4, "", ""), ["--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["can_serve"], document["device"]) == (False, "CPU")
    failed = [one for one in document["findings"] if one["status"] == "failed"]
    assert [one["topic"] for one in failed] == ["OpenVINO"]
    assert set(failed[0]) == {"topic", "status", "seen", "advice"}


def test_this_machine_loads_openvino() -> None:
    pytest.importorskip("openvino_genai")
    assert check_openvino(probe_openvino()).status is Status.OK


def test_probe_that_crashes_takes_nobody_with_it() -> None:
    result = run_probe("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert result.exit_code == -4
    assert result.last_error_line == "no message"


def test_defaults_are_those_of_serve() -> None:
    options = {option.name: option for option in doctor_command.params}
    defaults = {
        name: option.default
        for name, option in options.items()
        if isinstance(option, click.Option) and name in ("engine_dir", "port")
    }
    config = ServeConfig()
    assert defaults == {"engine_dir": config.engine.engine_dir, "port": config.server.port}
