"""Which engine of a folder is served. It reads manifests and looks at no payload's content."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, find_damage, find_engine_folders, read_engine

logger = logging.getLogger(__name__)

BUILD_HINT = "make one with `deepinfer build --model sample --output {folder}`"


def choose_engine(engine_dir: Path, model: str | None) -> EngineFolder:
    """The only engine in `engine_dir`, or the one called `model`. Raises EngineError."""
    engine = _choose(engine_dir, _read_engines(engine_dir), model)
    damage = next(find_damage(engine, with_digests=False), None)
    if damage is not None:
        raise EngineError(
            f"engine `{engine.manifest.name}` is damaged: {damage}",
            hint="rebuild it with `deepinfer build --force`",
        )
    return engine


def _read_engines(engine_dir: Path) -> list[EngineFolder]:
    """The readable engines; one that is not readable stands in the way only if it is alone."""
    engines: list[EngineFolder] = []
    errors: list[EngineError] = []
    for folder in find_engine_folders(engine_dir):
        try:
            engines.append(read_engine(folder))
        except EngineError as error:
            errors.append(error)
    if errors and not engines:
        raise errors[0]
    for unreadable in errors:
        logger.warning("%s", unreadable.message)
    return engines


def _choose(engine_dir: Path, engines: Sequence[EngineFolder], model: str | None) -> EngineFolder:
    if not engines:
        raise EngineError(
            f"there is no engine in `{engine_dir}`", hint=BUILD_HINT.format(folder=engine_dir)
        )
    matches = [
        engine
        for engine in engines
        if model is None or model in (engine.manifest.name, engine.manifest.model.id)
    ]
    if not matches:
        raise EngineError(
            f"there is no engine for `{model}` in `{engine_dir}`",
            hint=f"it has {_list_names(engines)}",
        )
    if len(matches) > 1:
        what = f"`{engine_dir}` holds" if model is None else f"`{model}` is the model of"
        raise EngineError(
            f"{what} {len(matches)} engines, and one is served at a time",
            hint=f"choose with --model: {_list_names(matches)}",
        )
    return matches[0]


def _list_names(engines: Sequence[EngineFolder]) -> str:
    return ", ".join(f"`{engine.manifest.name}`" for engine in engines)
