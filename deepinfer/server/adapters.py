"""LoRA adapters beside the engines of a server: each a model of its own name, checked at the start.

An adapter belongs to one engine: the first whose layers and rank it fits, or, where several fit,
the one whose model its own configuration names. Nothing here applies an adapter; the engine is told
its name, number and folder with every request for it.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from deepinfer.adapter import Adapter, check_limits, read_adapter
from deepinfer.errors import CheckpointError, ConfigError, EngineError
from deepinfer.generation import LoraAdapter
from deepinfer.manifest import EngineManifest, LoraLimits

WAY_TO_SAY = "`--lora <name>=<folder>`"

PlacedAdapter = tuple[int, LoraAdapter]
"""An adapter and which of the engines has it."""


def place_adapters(
    given: Sequence[str], manifests: Sequence[EngineManifest], taken: Collection[str]
) -> list[PlacedAdapter]:
    """Read and check what `given` says, `name=folder` each. `taken` are the names of engines.

    Raises ConfigError for a name that is wrong or not free, CheckpointError for a folder that is no
    adapter or fits no engine, EngineError when no engine takes adapters, or one not so many.
    """
    named = _parse(given, taken)
    if not named:
        return []
    _require_engine(manifests, next(iter(named.values())))
    placed = []
    for number, (name, folder) in enumerate(named.items(), start=1):
        owner = _find_owner(read_adapter(folder), manifests)
        placed.append((owner, LoraAdapter(name=name, id=number, path=str(folder.resolve()))))
    _check_counts([owner for owner, _ in placed], manifests)
    return placed


def _parse(given: Sequence[str], taken: Collection[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in given:
        name, equals, folder = (part.strip() for part in text.partition("="))
        if not (name and equals and folder):
            raise ConfigError(f"`{text}` does not name an adapter", hint=WAY_TO_SAY)
        if name in named:
            raise ConfigError(f"two adapters are called `{name}`", hint="give each its own name")
        if name in taken:
            raise ConfigError(
                f"an adapter cannot be called `{name}`: it is the name of an engine",
                hint=f"{WAY_TO_SAY} with another name",
            )
        named[name] = Path(folder).expanduser()
    return named


def _require_engine(manifests: Sequence[EngineManifest], folder: Path) -> None:
    if any(manifest.lora for manifest in manifests):
        return
    manifest = manifests[0]
    command = f"deepinfer build {manifest.source_flags}"
    if manifest.backend.name == "tensorrt-llm":
        raise EngineError(
            f"engine `{manifest.name}` was built to take no adapters",
            hint=f"`{command} --max-lora-rank <rank>` builds one that does",
        )
    raise EngineError(
        f"engine `{manifest.name}` takes no adapters by request: {manifest.backend.name} has none",
        hint=f"`deepinfer build --model {shlex.quote(manifest.model.source)} "
        f"--lora {shlex.quote(str(folder))}` merges this one into an engine",
    )


def _find_owner(adapter: Adapter, manifests: Sequence[EngineManifest]) -> int:
    misfits: list[CheckpointError] = []
    fitting = []
    for i, manifest in enumerate(manifests):
        if manifest.lora is None:
            continue
        try:
            check_limits(adapter, manifest.lora, manifest.model.id)
        except CheckpointError as error:
            misfits.append(error)
        else:
            fitting.append(i)
    if not fitting:
        raise misfits[0]
    meant = [i for i in fitting if _is_meant(adapter, manifests[i])]
    return (meant or fitting)[0]


def _is_meant(adapter: Adapter, manifest: EngineManifest) -> bool:
    base = adapter.base_model
    names = (manifest.model.id, manifest.model.source)
    return base is not None and _last(base) in map(_last, names)


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/")[-1].lower()


def _check_counts(owners: Sequence[int], manifests: Sequence[EngineManifest]) -> None:
    for i, manifest in enumerate(manifests):
        lora: LoraLimits | None = manifest.lora
        if lora is not None and owners.count(i) > lora.max_loras:
            raise EngineError(
                f"engine `{manifest.name}` holds {lora.max_loras} adapters; {owners.count(i)} are "
                "given",
                hint=f"rebuild it with `--max-loras {owners.count(i)}`",
            )
