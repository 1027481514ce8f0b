"""Which release of TensorRT-LLM DeepInfer works with, and where to get it.

Only names and versions: nothing here imports the library, so the question is answered in
milliseconds and before anything touches a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from deepinfer.errors import BackendError

# The last stable release that has compiled engines, and the one that everything here is held to.
# Others differ where it matters: 1.0.0 has no Qwen3-MoE and other pydantic classes.
CHECKED_VERSION = "1.2.1"
# The TensorRT backend became a module of its own in 1.0 and was removed after 1.3.0rc20: what
# lies between may be tried, by who asks for it.
FIRST_VERSION = "1.0"
LAST_VERSION = "1.3.0rc20"
CONTAINER = f"nvcr.io/nvidia/tensorrt-llm/release:{CHECKED_VERSION}"

USE_CONTAINER = f"run it in the container {CONTAINER}"
ALLOW_UNTRIED = "--allow-untried-release"


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


def is_checked(version: str) -> bool:
    """Whether this is CHECKED_VERSION, whoever built it (`1.2.1+cu130`)."""
    return version.partition("+")[0] == CHECKED_VERSION


def require_release(
    version_of: Callable[[str], str | None] = installed_version, *, allow_untried: bool = False
) -> str:
    """The installed version of TensorRT-LLM.

    Raises BackendError when there is none, one that cannot build and run compiled engines, or,
    unless `allow_untried`, another one than CHECKED_VERSION.
    """
    version = version_of("tensorrt-llm")
    if version is None:
        raise BackendError(
            "engines for GPUs need TensorRT-LLM, which is not installed", hint=USE_CONTAINER
        )
    if not has_compiled_engines(version):
        raise BackendError(
            f"TensorRT-LLM {version} has no compiled engines; DeepInfer works with "
            f"{CHECKED_VERSION}",
            hint=USE_CONTAINER,
        )
    if not is_checked(version) and not allow_untried:
        raise BackendError(
            f"DeepInfer works with TensorRT-LLM {CHECKED_VERSION}; {version} is installed",
            hint=f"{USE_CONTAINER}, or try this release with `{ALLOW_UNTRIED}`",
        )
    return version


def untried_warning(version: str) -> str | None:
    """What to say of a release that was let through by ALLOW_UNTRIED; None for the checked one."""
    if is_checked(version):
        return None
    return (
        f"TensorRT-LLM {version} is untried: DeepInfer is held to {CHECKED_VERSION}, and classes, "
        "models and defaults differ between releases"
    )


def cuda_major(version: str) -> int:
    """The major version of the CUDA that this release is made with: 13 from 1.1 on."""
    from packaging.version import Version

    return 13 if Version(version) >= Version("1.1") else 12


def min_driver(version: str, capability: str) -> int:
    """The lowest major version of NVIDIA's driver that this release needs on this GPU.

    CUDA 13 needs 580; Blackwell needs 570 in any case.
    """
    if cuda_major(version) == 13:
        return 580
    return 570 if capability in ("sm_100", "sm_103", "sm_120", "sm_121") else 535
