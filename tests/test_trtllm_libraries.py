"""Libraries loaded in child processes: made with a compiler, to load, to crash or to hang."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepinfer.errors import BackendError
from deepinfer.process import ProbeResult, run_probe
from deepinfer.trtllm_libraries import (
    cuda_runtime_library,
    how_to_find,
    missing_library,
    read_outcomes,
    require_tensorrt,
    tensorrt_libraries,
    try_loading,
)

COMPILER = shutil.which("cc") or shutil.which("gcc")
HANG_TIMEOUT_S = 5.0  # of a process that is to be given up

Compile = Callable[..., Path]


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """Make `tmp_path/<name>` from C; `links` are libraries there that it needs."""
    if COMPILER is None:
        pytest.skip("there is no C compiler to make libraries with")

    def compile(name: str, code: str = "", *, links: tuple[str, ...] = ()) -> Path:
        source, library = tmp_path / f"{name}.c", tmp_path / name
        source.write_text(code)
        command = [str(COMPILER), "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(library)]
        command += [str(source), "-Wl,--no-as-needed", *(str(tmp_path / link) for link in links)]
        subprocess.run(command, check=True)
        return library

    return compile


def test_probe_that_hangs_is_killed_and_what_it_wrote_is_kept() -> None:
    program = "import time; print('so far', flush=True); time.sleep(600)"
    result = run_probe(program, timeout_s=HANG_TIMEOUT_S)
    assert result.has_timed_out and result.exit_code == 1
    assert result.stdout == "so far\n"
    assert result.last_error_line == "no answer within 5 s"


def test_probe_whose_daemon_holds_its_output_open_is_not_waited_for() -> None:
    """As MPI does, which starts one that outlives the import."""
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\n"
        "print(child.pid)"
    )
    started_at = time.monotonic()
    result = run_probe(program)
    assert result.exit_code == 0 and result.stdout.strip().isdigit()
    assert time.monotonic() - started_at < 15
    subprocess.run(["kill", result.stdout.strip()], check=True)


def test_probe_that_crashes_says_by_which_signal() -> None:
    result = run_probe("import os; os.abort()")
    assert result.failure == "crashes with SIGABRT"
    assert ProbeResult(-64, "", "").failure == "crashes with SIGRTMAX"
    assert ProbeResult(-99, "", "").failure == "crashes with signal 99"


def test_absent_library_is_named() -> None:
    outcomes = try_loading(["libnvinfer-of-nobody.so.10", "json"])
    assert missing_library(outcomes["libnvinfer-of-nobody.so.10"] or "") == (
        "libnvinfer-of-nobody.so.10"
    )
    assert outcomes["json"] is None


def test_library_whose_own_library_is_absent_names_that_one(
    compile_library: Compile, tmp_path: Path
) -> None:
    needed = compile_library("libneeded-of-nobody.so.3")
    library = compile_library("libouter.so.1", links=("libneeded-of-nobody.so.3",))
    needed.unlink()
    (error,) = try_loading([str(library)]).values()
    assert missing_library(error or "") == "libneeded-of-nobody.so.3"


def test_library_that_crashes_does_not_keep_the_next_from_being_tried(
    compile_library: Compile,
) -> None:
    fine = str(compile_library("libfine.so.1"))
    code = "#include <stdlib.h>\n__attribute__((constructor)) void start(void) { abort(); }"
    crashing = str(compile_library("libcrash.so.1", code))
    assert try_loading([fine, crashing, "json"]) == {
        fine: None,
        crashing: "crashes with SIGABRT",
        "json": None,
    }


def test_library_that_ends_the_process_is_reported_by_its_last_words(
    compile_library: Compile,
) -> None:
    """As MPI does when it cannot start."""
    code = (
        "#include <stdio.h>\n#include <stdlib.h>\n__attribute__((constructor)) void start(void) "
        '{ fprintf(stderr, "MPI_Init failed\\n"); exit(14); }'
    )
    ending = str(compile_library("libending.so.1", code))
    assert try_loading([ending, "json"]) == {ending: "MPI_Init failed", "json": None}


def test_library_that_hangs_ends_the_trial(compile_library: Compile) -> None:
    code = "#include <unistd.h>\n__attribute__((constructor)) void start(void) { pause(); }"
    hanging = str(compile_library("libhang.so.1", code))
    outcomes = try_loading(["json", hanging, "re"], timeout_s=HANG_TIMEOUT_S)
    assert outcomes == {"json": None, hanging: "no answer within 5 s"}


def test_words_of_a_library_do_not_hide_the_outcome(compile_library: Compile) -> None:
    code = (
        "#include <unistd.h>\n__attribute__((constructor)) void start(void) "
        '{ write(1, "no line feed here", 17); }'
    )
    library = str(compile_library("libchatter.so.1", code))
    assert try_loading([library]) == {library: None}


@pytest.mark.parametrize(("code", "error"), [(0, None), (804, "cuInit returns 804")])
def test_cuda_that_loads_must_start_too(
    compile_library: Compile, monkeypatch: pytest.MonkeyPatch, code: int, error: str | None
) -> None:
    folder = compile_library("libcuda.so.1", f"int cuInit(unsigned flags) {{ return {code}; }}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder.parent))
    assert try_loading(["libcuda.so.1"]) == {"libcuda.so.1": error}


def test_absent_module_is_named() -> None:
    (error,) = try_loading(["mpi4py_of_nobody.MPI"]).values()
    assert error is not None and "mpi4py_of_nobody" in error


def test_process_that_says_nothing_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*arguments: object, **options: object) -> ProbeResult:
        calls.append(arguments)
        return ProbeResult(-9, "", "")

    monkeypatch.setattr("deepinfer.trtllm_libraries.run_probe", fail)
    assert try_loading(["a", "b"]) == {}
    assert len(calls) == 1


def test_outcomes_are_read_among_other_lines() -> None:
    said = '\n{"loading": "a"}\n[TensorRT-LLM] 1.2.1\n7\n\n{"loaded": "a", "error": null}\n'
    result = ProbeResult(-11, said + '\n{"loading": "b"}\n', "")
    assert read_outcomes(result) == {"a": None, "b": "crashes with SIGSEGV"}


def test_names_follow_the_versions() -> None:
    assert tensorrt_libraries("10.14.1.48")[0] == "libnvinfer.so.10"
    assert tensorrt_libraries(None)[0] == "libnvinfer.so.10"
    assert cuda_runtime_library("1.2.1") == "libcudart.so.13"


@pytest.fixture
def tensorrt_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `tensorrt` for child processes, which loads its library as the real one does."""
    package = tmp_path / "site" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import ctypes\n\n"
        "try:\n    ctypes.CDLL('libnvinfer.so.10')\n"
        "except OSError as error:\n    raise ImportError(str(error)) from None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return package


def test_tensorrt_without_its_library_is_one_line_with_the_way_out(tensorrt_package: Path) -> None:
    with pytest.raises(BackendError, match=r"libnvinfer\.so\.10") as caught:
        require_tensorrt()
    hint = caught.value.hint or ""
    assert hint == how_to_find("libnvinfer.so.10")
    for way in ("build/ngc/build.sh", "LD_LIBRARY_PATH", "ldconfig", "/usr/local/tensorrt/lib"):
        assert way in hint


def test_tensorrt_whose_library_is_on_the_path_is_in_order(
    tensorrt_package: Path, compile_library: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library("libnvinfer.so.10")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    require_tensorrt()


def test_tensorrt_that_fails_otherwise_is_sent_to_the_container() -> None:
    with pytest.raises(BackendError, match="crashes with SIGILL") as caught:
        require_tensorrt(lambda names, timeout_s: dict.fromkeys(names, "crashes with SIGILL"))
    assert "nvcr.io" in (caught.value.hint or "")
