"""Which engine of a folder is served, and what is said when that is not clear."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deepinfer.errors import EngineError
from deepinfer.manifest import read_engine, write_manifest
from deepinfer.server import choice
from deepinfer.server.choice import choose_engines
from tests.engines import make_simulated_engine


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    make_simulated_engine(tmp_path / "one", name="one", model_id="test/one")
    make_simulated_engine(tmp_path / "two", name="two", model_id="test/two")
    make_simulated_engine(tmp_path / "two-int8", name="two-int8", model_id="test/two")
    return tmp_path


def age(folder: Path, created_at: str) -> None:
    manifest = read_engine(folder).manifest
    build = manifest.build.model_copy(update={"created_at": created_at})
    write_manifest(folder, manifest.model_copy(update={"build": build}))


def refuse(folder: Path, model: str | None = None) -> EngineError:
    with pytest.raises(EngineError) as refused:
        choose_engines(folder, model)
    assert refused.value.hint
    return refused.value


def names(folder: Path, model: str | None = None) -> list[str]:
    return [engine.manifest.name for engine in choose_engines(folder, model)]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warnings: list[str] = []
    monkeypatch.setattr(
        choice.logger, "warning", lambda text, *values: warnings.append(text % values)
    )
    return warnings


@pytest.mark.parametrize(
    ("model", "name"), [("one", "one"), ("test/one", "one"), ("two-int8", "two-int8")]
)
def test_engine_is_chosen_by_name_or_model(engines: Path, model: str, name: str) -> None:
    assert names(engines, model) == [name]


def test_folder_may_be_the_engine_itself(engines: Path) -> None:
    assert names(engines / "one") == ["one"]


def test_only_engine_needs_no_choice(tmp_path: Path) -> None:
    make_simulated_engine(tmp_path / "one", name="one")
    (tmp_path / "README.md").write_text("not an engine")
    assert names(tmp_path) == ["one"]


def test_every_engine_is_served_in_the_order_of_the_folders(engines: Path) -> None:
    assert names(engines) == ["one", "two", "two-int8"]


def test_model_with_many_engines_means_the_newest(engines: Path, warnings: list[str]) -> None:
    age(engines / "two", "2026-03-01T00:00:00+00:00")
    assert names(engines, "test/two") == ["two"]
    assert warnings == [
        "`test/two` is the model of 2 engines, `two`, `two-int8`; the newest is served, `two`"
    ]
    age(engines / "two-int8", "2026-03-01T00:00:01+00:00")
    assert names(engines, "test/two") == ["two-int8"]


def test_name_of_an_engine_comes_before_the_id_of_a_model(engines: Path) -> None:
    make_simulated_engine(engines / "three", name="test/one", model_id="test/three")
    assert choose_engines(engines, "test/one")[0].path == engines / "three"


def test_newest_of_two_engines_with_one_name_is_served(engines: Path, warnings: list[str]) -> None:
    shutil.copytree(engines / "one", engines / "copy")
    age(engines / "copy", "2025-12-31T00:00:00+00:00")
    assert [engine.path.name for engine in choose_engines(engines, None)][0] == "one"
    assert warnings == [f"`{engines / 'copy'}` is not served: a newer engine is called `one` too"]


def test_damaged_engine_stands_in_nobodys_way(engines: Path, warnings: list[str]) -> None:
    (engines / "one" / "payload" / "weights").write_text("1234")
    make_simulated_engine(engines / "one", name="one")
    (engines / "one" / "payload" / "weights").unlink()
    assert names(engines) == ["two", "two-int8"]
    assert warnings == ["not served: engine `one` is damaged: payload/weights is missing"]


def test_unknown_model_is_refused_with_what_there_is(engines: Path) -> None:
    assert refuse(engines, "three").hint == "it has `one`, `two`, `two-int8`"


def test_empty_folder_says_how_to_make_an_engine(tmp_path: Path) -> None:
    assert "deepinfer build --model sample" in str(refuse(tmp_path).hint)
    assert "does not exist" in refuse(tmp_path / "absent").message


def test_damaged_engine_is_refused(engines: Path) -> None:
    two = make_simulated_engine(engines / "three", name="three")
    (two.path / "payload" / "weights").write_text("1234")
    make_simulated_engine(engines / "three", name="three")
    (two.path / "payload" / "weights").write_text("12")
    error = refuse(engines, "three")
    assert error.message == (
        "engine `three` is damaged: payload/weights has 2 bytes; the manifest says 4"
    )


def test_unreadable_engine_stands_in_nobodys_way(engines: Path, warnings: list[str]) -> None:
    (engines / "one" / "engine.json").write_text("{}")
    assert names(engines, "two") == ["two"]
    assert "one/engine.json" in warnings[0]
    assert "damaged" in refuse(engines / "one").message
