"""What clients call each of several engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from deepinfer.errors import ConfigError
from deepinfer.manifest import EngineManifest
from deepinfer.server.names import EngineNames, name_engines
from tests.engines import make_simulated_engine


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> EngineManifest:
    folder: Path = tmp_path_factory.mktemp("engine")
    return make_simulated_engine(folder).manifest


def engine(template: EngineManifest, name: str, model_id: str, year: int = 2026) -> EngineManifest:
    created = {"created_at": f"{year}-01-01T00:00:00+00:00"}
    return template.model_copy(
        update={
            "name": name,
            "model": template.model.model_copy(update={"id": model_id}),
            "build": template.build.model_copy(update=created),
        }
    )


# Engines as (name, model id, year), aliases, and of each engine the listed and the other names.
CASES: dict[str, tuple[list[tuple[str, str, int]], Sequence[str], list[EngineNames]]] = {
    "alone": ([("a.cpu", "org/a", 2026)], (), [EngineNames(("org/a",), ("a.cpu",))]),
    "name is the id": ([("a", "a", 2026)], (), [EngineNames(("a",))]),
    "aliases": (
        [("a.cpu", "org/a", 2026), ("b.cpu", "org/b", 2026)],
        ("gpt-4", "small"),
        [
            EngineNames(("gpt-4", "small"), ("a.cpu", "org/a")),
            EngineNames(("org/b",), ("b.cpu",)),
        ],
    ),
    "alias twice": (
        [("a.cpu", "org/a", 2026)],
        ("x", "org/a", "x"),
        [EngineNames(("x", "org/a"), ("a.cpu",))],
    ),
    "one model twice": (
        [("a.int4", "org/a", 2025), ("a.int8", "org/a", 2026)],
        (),
        [EngineNames(("a.int4",)), EngineNames(("org/a",), ("a.int8",))],
    ),
    "name that is another's model id": (
        [("a", "b", 2025), ("b", "c", 2026)],
        (),
        [EngineNames(("a",)), EngineNames(("c",), ("b",))],
    ),
}


@pytest.mark.parametrize(("engines", "aliases", "names"), list(CASES.values()), ids=list(CASES))
def test_names_of_engines(
    template: EngineManifest,
    engines: list[tuple[str, str, int]],
    aliases: Sequence[str],
    names: list[EngineNames],
) -> None:
    found = name_engines([engine(template, *about) for about in engines], aliases)
    assert list(found) == names
    every = [name for own in found for name in (*own.listed, *own.unlisted)]
    assert len(every) == len(set(every))


@pytest.mark.parametrize("alias", ["b.cpu", "org/b"])
def test_alias_that_is_another_engines_name_is_refused(
    template: EngineManifest, alias: str
) -> None:
    engines = [engine(template, "a.cpu", "org/a"), engine(template, "b.cpu", "org/b")]
    with pytest.raises(ConfigError, match=f"`{alias}` cannot be .*`a.cpu`.*`b.cpu`") as refused:
        name_engines(engines, ["fine", alias])
    assert refused.value.hint
