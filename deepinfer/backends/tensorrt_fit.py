"""Whether a TensorRT engine can run on this machine: asked of the manifest, before anything loads.

An engine is tied to one compute capability and one version of TensorRT; the library says so late,
in words that name neither the engine nor the way out. Pure: what the machine is comes as values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deepinfer.device import Gpu
from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, EngineManifest, find_damage
from deepinfer.trtllm_release import CONTAINER, min_driver, require_release


def check_fit(
    engine: EngineFolder, gpus: Sequence[Gpu], version_of: Callable[[str], str | None]
) -> None:
    """Raise EngineError or BackendError, in one line, when this machine cannot run `engine`."""
    manifest = engine.manifest
    fitting = _check_gpus(manifest, gpus)
    # Whether one that is not the checked one may be used is decided before: loading.py.
    release = require_release(version_of, allow_untried=True)
    _check_driver(release, fitting[0])
    _check_tensorrt(manifest, version_of("tensorrt"))
    damage = next(find_damage(engine, with_digests=False), None)
    if damage is not None:
        raise EngineError(
            f"engine `{manifest.name}` is damaged: {damage}", hint=_rebuild(manifest, "--force")
        )


def _check_gpus(manifest: EngineManifest, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
    """The GPUs that the engine may run on."""
    wanted = manifest.target.capability
    if not gpus:
        raise EngineError(
            f"engine `{manifest.name}` was built for {wanted}; this machine has no NVIDIA GPU that "
            "answers",
            hint="`deepinfer doctor` says why, and "
            f"{_rebuild(manifest, '--target cpu')} builds one for the CPU",
        )
    fitting = [gpu for gpu in gpus if gpu.capability == wanted]
    if not fitting:
        raise EngineError(
            f"engine `{manifest.name}` was built for {wanted}; this GPU is {gpus[0].capability}",
            hint=_rebuild(manifest, "--target auto"),
        )
    needed = manifest.parallelism.world_size
    if len(fitting) < needed:
        raise EngineError(
            f"engine `{manifest.name}` was built for {needed} GPUs of {wanted}; this machine has "
            f"{len(fitting)}",
            hint=_rebuild(manifest, "--tensor-parallel-size 1 --pipeline-parallel-size 1"),
        )
    return fitting


def _check_driver(release: str, gpu: Gpu) -> None:
    needed = min_driver(release, gpu.capability)
    major = gpu.driver_version.split(".")[0]
    if major.isdigit() and int(major) < needed:
        raise EngineError(
            f"TensorRT-LLM {release} needs NVIDIA driver {needed} or later on {gpu.capability}; "
            f"this machine has {gpu.driver_version}",
            hint=f"install driver {needed} or later on the host",
        )


def _check_tensorrt(manifest: EngineManifest, installed: str | None) -> None:
    built_with = manifest.backend.libraries.get("tensorrt")
    # An image may carry TensorRT without the metadata of a package; then the library decides.
    if built_with is None or installed is None or built_with == installed:
        return
    raise EngineError(
        f"engine `{manifest.name}` was built with TensorRT {built_with}; {installed} is installed",
        hint=f"{_rebuild(manifest, '--force')}, or serve it in the container that built it "
        f"({CONTAINER} unless you chose another)",
    )


def _rebuild(manifest: EngineManifest, flags: str) -> str:
    return f"`deepinfer build {manifest.source_flags} {flags}`"
