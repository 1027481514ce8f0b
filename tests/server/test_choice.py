"""Which engine of a folder is served, and what is said when that is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepinfer.errors import EngineError
from deepinfer.server import choice
from deepinfer.server.choice import choose_engine
from tests.engines import make_simulated_engine


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    make_simulated_engine(tmp_path / "one", name="one", model_id="test/one")
    make_simulated_engine(tmp_path / "two", name="two", model_id="test/two")
    make_simulated_engine(tmp_path / "two-int8", name="two-int8", model_id="test/two")
    return tmp_path


def refuse(folder: Path, model: str | None = None) -> EngineError:
    with pytest.raises(EngineError) as refused:
        choose_engine(folder, model)
    assert refused.value.hint
    return refused.value


@pytest.mark.parametrize(
    ("model", "name"), [("one", "one"), ("test/one", "one"), ("two-int8", "two-int8")]
)
def test_engine_is_chosen_by_name_or_model(engines: Path, model: str, name: str) -> None:
    assert choose_engine(engines, model).manifest.name == name


def test_folder_may_be_the_engine_itself(engines: Path) -> None:
    assert choose_engine(engines / "one", None).manifest.name == "one"


def test_only_engine_needs_no_choice(tmp_path: Path) -> None:
    make_simulated_engine(tmp_path / "one", name="one")
    (tmp_path / "README.md").write_text("not an engine")
    assert choose_engine(tmp_path, None).manifest.name == "one"


def test_many_engines_are_listed(engines: Path) -> None:
    error = refuse(engines)
    assert f"`{engines}` holds 3 engines" in error.message
    assert error.hint == "choose with --model: `one`, `two`, `two-int8`"


def test_model_with_many_engines_is_not_a_choice(engines: Path) -> None:
    error = refuse(engines, "test/two")
    assert "`test/two` is the model of 2 engines" in error.message
    assert error.hint == "choose with --model: `two`, `two-int8`"


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


def test_unreadable_engine_stands_in_nobodys_way(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        choice.logger, "warning", lambda text, *values: warnings.append(text % values)
    )
    (engines / "one" / "engine.json").write_text("{}")
    assert choose_engine(engines, "two").manifest.name == "two"
    assert "one/engine.json" in warnings[0]
    assert "damaged" in refuse(engines / "one").message
