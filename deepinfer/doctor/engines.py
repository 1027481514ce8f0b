"""The engines in a folder: whether they are whole, and whether this machine has their GPU."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from deepinfer.device import Gpu
from deepinfer.doctor.finding import Finding, Status
from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, find_damage, find_engine_folders, read_engine


def check_engines(engine_dir: Path, gpus: Sequence[Gpu]) -> list[Finding]:
    """One finding when all is well, else one for each engine that is not; sizes only are read."""
    try:
        folders = find_engine_folders(engine_dir)
    except EngineError as error:
        return [Finding("engines", Status.WARNING, error.message, error.hint)]
    if not folders:
        folder = shlex.quote(str(engine_dir))
        advice = f"make one with `deepinfer build --model sample --output {folder}`"
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
    rebuild = f"rebuild it with `deepinfer build {manifest.source_flags} --force`"
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
