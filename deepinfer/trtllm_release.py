"""Which releases of TensorRT-LLM have compiled engines, and where to get the one to use.

Only names and versions: nothing here imports the library, so the question is answered in
milliseconds and before anything touches a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from deepinfer.errors import BackendError

# The TensorRT backend became a module of its own in 1.0 and was removed after 1.3.0rc20. The last
# stable release that has it is 1.2.1, and what DeepInfer passes to it is checked against that one.
FIRST_VERSION = "1.0"
LAST_VERSION = "1.3.0rc20"
CHECKED_VERSION = "1.2.1"
CONTAINER = f"nvcr.io/nvidia/tensorrt-llm/release:{CHECKED_VERSION}"

USE_CONTAINER = f"run it in the container {CONTAINER}"


def installed_version(distribution: str = "tensorrt-llm") -> str | None:
    """The version of an installed distribution, or None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def has_compiled_engines(version: str) -> bool:
    """Whether this release of TensorRT-LLM can build and run TensorRT engines."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(FIRST_VERSION) <= Version(version) <= Version(LAST_VERSION)
    except InvalidVersion:
        return False


def require_release(version_of: Callable[[str], str | None] = installed_version) -> str:
    """The installed version of TensorRT-LLM.

    Raises BackendError when there is none, or one that cannot build and run compiled engines.
    """
    version = version_of("tensorrt-llm")
    if version is None:
        raise BackendError(
            "engines for GPUs need TensorRT-LLM, which is not installed", hint=USE_CONTAINER
        )
    if not has_compiled_engines(version):
        raise BackendError(
            f"TensorRT-LLM {version} has no compiled engines; DeepInfer works with "
            f"{FIRST_VERSION} to {LAST_VERSION}",
            hint=USE_CONTAINER,
        )
    return version


def min_driver(version: str, capability: str) -> int:
    """The lowest major version of NVIDIA's driver that this release needs on this GPU.

    From 1.1 on the containers carry CUDA 13, which needs 580; Blackwell needs 570 in any case.
    """
    from packaging.version import Version

    if Version(version) >= Version("1.1"):
        return 580
    return 570 if capability in ("sm_100", "sm_103", "sm_120", "sm_121") else 535
