"""The native libraries that TensorRT-LLM needs: their names, and whether they can be loaded here.

A package's metadata says its version and not whether the dynamic loader finds what it links to, so
each is loaded, in a child process: native code may crash or hang, and MPI starts daemons.

    python -m deepinfer.trtllm_libraries

loads what needs no GPU, and ends with 1 if anything fails: the Dockerfile asks before it is done.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence

from deepinfer.errors import BackendError
from deepinfer.process import ProbeResult, run_probe
from deepinfer.trtllm_release import USE_CONTAINER, cuda_major, installed_version

CUDA_DRIVER_LIBRARY = "libcuda.so.1"  # part of the driver; a container gets it from its host
MPI_LIBRARY = "libmpi.so.40"  # of Open MPI 4 and 5
TENSORRT_MODULE, MPI_MODULE, TENSORRT_LLM_MODULE = "tensorrt", "mpi4py.MPI", "tensorrt_llm"
# TensorRT's wheels carry CUDA's version in their names; the first that is installed counts.
TENSORRT_DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
DEFAULT_TENSORRT_MAJOR = "10"
LOAD_TIMEOUT_S = 300  # the first import reads gigabytes, from a disk that may be slow
IMPORT_TIMEOUT_S = 90  # of TensorRT alone; an engine process that loads may be silent for 120 s
# Where NVIDIA's image has them: outside of what its dynamic loader searches by default.
LIBRARY_FOLDERS = {"libnvinfer": "/usr/local/tensorrt/lib", "libcudart": "/usr/local/cuda/lib64"}

LOAD_PROBE = """
import ctypes, importlib, json, sys

def say(**words):
    # On a line of its own, whatever a library has written without one.
    print("\\n" + json.dumps(words), flush=True)

for name in sys.argv[1:]:
    say(loading=name)
    error = None
    try:
        if ".so" in name:
            library = ctypes.CDLL(name)
            if name.startswith("libcuda.so") and (code := library.cuInit(0)):
                error = f"cuInit returns {code}"
        else:
            importlib.import_module(name)
    except BaseException as exception:
        error = " ".join(f"{type(exception).__name__}: {exception}".split())
    say(loaded=name, error=error)
"""
MISSING_LIBRARY = re.compile(r"(?P<name>lib[\w.+-]+): cannot open shared object file")

Load = Callable[..., Mapping[str, str | None]]  # called as `try_loading` is


def find_tensorrt_version(version_of: Callable[[str], str | None]) -> str | None:
    return next(filter(None, map(version_of, TENSORRT_DISTRIBUTIONS)), None)


def tensorrt_libraries(tensorrt_version: str | None) -> tuple[str, ...]:
    """The names by which the dynamic loader looks for the libraries of this TensorRT."""
    major = (tensorrt_version or DEFAULT_TENSORRT_MAJOR).split(".")[0]
    return tuple(f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"))


def cuda_runtime_library(tensorrt_llm_version: str) -> str:
    return f"libcudart.so.{cuda_major(tensorrt_llm_version)}"


def try_loading(
    names: Sequence[str], *, timeout_s: float = LOAD_TIMEOUT_S
) -> dict[str, str | None]:
    """Load shared libraries and import modules, in this order; what went wrong with each, or None.

    One that crashes does not keep the later ones from being tried. After one that hangs for
    `timeout_s` seconds the rest are missing from the answer.
    """
    outcomes: dict[str, str | None] = {}
    remaining = list(names)
    while remaining:
        result = run_probe(LOAD_PROBE, *remaining, timeout_s=timeout_s)
        seen = read_outcomes(result)
        outcomes |= seen
        if result.has_timed_out or not seen:
            break
        remaining = [name for name in remaining if name not in seen]
    return outcomes


def read_outcomes(result: ProbeResult) -> dict[str, str | None]:
    """By name, what a process that ran LOAD_PROBE has said; the last may have ended it."""
    outcomes: dict[str, str | None] = {}
    for line in result.stdout.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue  # a library's own
        if not isinstance(words, dict):
            continue
        if "loading" in words:
            outcomes[words["loading"]] = result.failure
        elif "loaded" in words:
            outcomes[words["loaded"]] = words["error"]
    return outcomes


def missing_library(error: str) -> str | None:
    """The library that the dynamic loader did not find, when that is what `error` says."""
    found = MISSING_LIBRARY.search(error)
    return found["name"] if found else None


def how_to_find(library: str) -> str:
    """What to do about a library that exists and is not found."""
    folder = next(
        (where for name, where in LIBRARY_FOLDERS.items() if library.startswith(name)), None
    )
    place = f" ({folder} in NVIDIA's image)" if folder else ""
    return (
        f"use the image that `build/ngc/build.sh` makes, or put the folder of `{library}`{place} "
        "on LD_LIBRARY_PATH, or into /etc/ld.so.conf.d and run `ldconfig`"
    )


def require_tensorrt(load: Load = try_loading) -> None:
    """Raise BackendError, in one line, where TensorRT is installed and cannot be loaded.

    Takes a second or two, and saves a download or half a minute of imports that end the same way.
    """
    error = load([TENSORRT_MODULE], timeout_s=IMPORT_TIMEOUT_S).get(TENSORRT_MODULE)
    if error is None:
        return
    library = missing_library(error)
    if library is not None:
        raise BackendError(
            f"TensorRT cannot be loaded: the dynamic loader does not find `{library}`",
            hint=how_to_find(library),
        )
    raise BackendError(f"TensorRT cannot be loaded: {error}", hint=USE_CONTAINER)


def main() -> int:
    version = installed_version()
    if version is None:
        print("error: TensorRT-LLM is not installed", file=sys.stderr)
        return 1
    tensorrt = tensorrt_libraries(find_tensorrt_version(installed_version))
    # MPI's library and not mpi4py, whose import starts MPI.
    names = (cuda_runtime_library(version), TENSORRT_MODULE, *tensorrt, MPI_LIBRARY)
    outcomes = try_loading(names)
    # The driver's library comes with the GPU.
    failures = {
        name: error
        for name in names
        if (error := outcomes.get(name, "not tried")) is not None
        and missing_library(error) != CUDA_DRIVER_LIBRARY
    }
    for name, error in failures.items():
        print(f"error: {name} does not load: {error}", file=sys.stderr)
    if not failures:
        print(f"{', '.join(names)} load")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
