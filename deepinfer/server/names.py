"""What clients call each engine of a server: aliases, the model's id, the engine's name.

Pure: manifests and aliases in, names out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepinfer.errors import ConfigError
from deepinfer.manifest import EngineManifest


@dataclass(frozen=True)
class EngineNames:
    """The names that find one engine; answers say the first of those that are listed."""

    listed: tuple[str, ...]
    unlisted: tuple[str, ...] = ()


def name_engines(
    manifests: Sequence[EngineManifest], aliases: Sequence[str] = ()
) -> tuple[EngineNames, ...]:
    """The names of each engine, none of them twice. `aliases` are more names of the first engine.

    The id of a model that several engines are of belongs to the newest one; the others are listed
    by their own names, which win over model ids. Raises ConfigError for an alias that is another
    engine's already.
    """
    owners: dict[str, int] = {manifest.name: i for i, manifest in enumerate(manifests)}
    newest_first = sorted(
        enumerate(manifests), key=lambda item: item[1].build.created_at, reverse=True
    )
    for i, manifest in newest_first:
        owners.setdefault(manifest.model.id, i)
    for alias in aliases:
        if owners.setdefault(alias, 0) != 0:
            raise ConfigError(
                f"`{alias}` cannot be a name of engine `{manifests[0].name}`: it is one of engine "
                f"`{manifests[owners[alias]].name}`",
                hint="choose another with `--served-model-name`, or one engine with `--model`",
            )
    return tuple(
        _split(
            [name for name, owner in owners.items() if owner == i],
            aliases if aliases and i == 0 else _own_name(manifest, owners[manifest.model.id] == i),
        )
        for i, manifest in enumerate(manifests)
    )


def _own_name(manifest: EngineManifest, is_newest: bool) -> tuple[str]:
    return (manifest.model.id if is_newest else manifest.name,)


def _split(names: Sequence[str], listed: Sequence[str]) -> EngineNames:
    unlisted = tuple(name for name in names if name not in listed)
    return EngineNames(tuple(dict.fromkeys(listed)), unlisted)
