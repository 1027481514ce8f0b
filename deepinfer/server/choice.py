"""Which engines of a folder are served. It reads manifests and looks at no payload's content."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, find_damage, find_engine_folders, read_engine
from deepinfer.serving_limits import with_max_seq_len

logger = logging.getLogger(__name__)

BUILD_HINT = "make one with `deepinfer build --model sample --output {folder}`"


def choose_engines(engine_dir: Path, model: str | None) -> list[EngineFolder]:
    """Every whole engine in `engine_dir`, in the order of their folders, or the one called `model`.

    Of several engines of one model, `model` means the newest. Raises EngineError when there is
    nothing to serve; what is passed over is said in the log.
    """
    engines = _drop_namesakes(_read_engines(engine_dir))
    if not engines:
        raise EngineError(
            f"there is no engine in `{engine_dir}`",
            hint=BUILD_HINT.format(folder=shlex.quote(str(engine_dir))),
        )
    return _keep_whole(engines if model is None else [_find(engine_dir, engines, model)])


def apply_max_seq_len(
    engines: Sequence[EngineFolder], max_seq_len: int | None
) -> list[EngineFolder]:
    """Those of `engines` that can be served with `max_seq_len`, each with that limit.

    None leaves every engine as it was built. Those that cannot are named in the log. Raises
    EngineError when none can.
    """
    served: list[EngineFolder] = []
    errors: list[EngineError] = []
    for engine in engines:
        try:
            served.append(with_max_seq_len(engine, max_seq_len))
        except EngineError as error:
            errors.append(error)
            continue
        built, now = engine.manifest.limits, served[-1].manifest.limits
        if now != built:
            logger.info(
                "engine `%s` takes sequences of %s tokens; it was built for %s",
                engine.manifest.name, f"{now.max_seq_len:,}", f"{built.max_seq_len:,}",
            )  # fmt: skip
    if not served:
        raise errors[0]
    for refused in errors:
        logger.warning("not served: %s; %s", refused.message, refused.hint)
    return served


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


def _keep_whole(engines: Sequence[EngineFolder]) -> list[EngineFolder]:
    whole: list[EngineFolder] = []
    errors: list[EngineError] = []
    for engine in engines:
        damage = next(find_damage(engine, with_digests=False), None)
        if damage is None:
            whole.append(engine)
            continue
        what = f"engine `{engine.manifest.name}` is damaged: {damage}"
        errors.append(EngineError(what, hint="rebuild it with `deepinfer build --force`"))
    if not whole:
        raise errors[0]
    for damaged in errors:
        logger.warning("not served: %s", damaged.message)
    return whole


def _find(engine_dir: Path, engines: Sequence[EngineFolder], model: str) -> EngineFolder:
    """An engine's own name comes before the id of a model."""
    named = [engine for engine in engines if engine.manifest.name == model]
    matches = named or [engine for engine in engines if engine.manifest.model.id == model]
    if not matches:
        raise EngineError(
            f"there is no engine for `{model}` in `{engine_dir}`",
            hint=f"it has {_list_names(engines)}",
        )
    newest = _newest(matches)
    if len(matches) > 1:
        logger.warning(
            "`%s` is the model of %d engines, %s; the newest is served, `%s`",
            model, len(matches), _list_names(matches), newest.manifest.name,
        )  # fmt: skip
    return newest


def _drop_namesakes(engines: Sequence[EngineFolder]) -> list[EngineFolder]:
    """Of engines with one name, copies of a folder for instance, only the newest can be called."""
    namesakes: dict[str, list[EngineFolder]] = {}
    for engine in engines:
        namesakes.setdefault(engine.manifest.name, []).append(engine)
    kept = [_newest(group) for group in namesakes.values()]
    for engine in engines:
        if not any(engine is other for other in kept):
            logger.warning(
                "`%s` is not served: a newer engine is called `%s` too",
                engine.path, engine.manifest.name,
            )  # fmt: skip
    return kept


def _newest(engines: Sequence[EngineFolder]) -> EngineFolder:
    return max(engines, key=lambda engine: engine.manifest.build.created_at)


def _list_names(engines: Sequence[EngineFolder]) -> str:
    return ", ".join(f"`{engine.manifest.name}`" for engine in engines)
