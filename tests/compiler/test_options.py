"""Recipes and flags become options, or an error that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepinfer.__main__ import main
from deepinfer.commands import build
from deepinfer.compiler.options import BuildOptions, read_options
from deepinfer.errors import ConfigError, PlanError

RECIPES = sorted((Path(__file__).parent.parent.parent / "build" / "recipes").glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: some/model\nprecision: int8\nmax_batch_size: 4\n")
    return path


def test_flags_override_the_recipe_which_overrides_the_defaults(recipe: Path) -> None:
    options = read_options(recipe, {"precision": "int4", "max_seq_len": None, "name": "mine"})
    assert (options.model, options.precision, options.max_batch_size) == ("some/model", "int4", 4)
    assert (options.name, options.max_seq_len, options.target) == ("mine", None, "auto")


def test_flags_alone_are_enough() -> None:
    assert read_options(None, {"model": "sample"}) == BuildOptions(model="sample")


def test_text_of_a_flag_becomes_a_number() -> None:
    assert read_options(None, {"model": "sample", "max_batch_size": "16"}).max_batch_size == 16


def test_every_field_of_the_options_has_a_flag_and_no_other() -> None:
    own = {"recipe", "is_dry_run", "is_comparison", "is_forced", "is_json"}
    flags = {str(option.name) for option in build.build.params}
    assert flags - own == set(BuildOptions.model_fields)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"experimental": False, "smoke_test": True, "tensor_parallel_size": 1}),
        (["--experimental", "--no-smoke-test"], {"experimental": True, "smoke_test": False}),
        (["--calib-data", "a/b.txt"], {"calib_data": Path("a/b.txt")}),
        (["--pipeline-parallel-size", "2"], {"pipeline_parallel_size": 2}),
    ],
    ids=["none", "switches", "path", "number"],
)
def test_flags_of_the_command_become_options(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], expected: dict[str, Any]
) -> None:
    planned: list[BuildOptions] = []

    def stop(options: BuildOptions, *, is_build: bool) -> None:
        planned.append(options)
        raise PlanError("far enough")

    monkeypatch.setattr(build, "_read_sources", stop)
    assert main(["build", "--model", "sample", *flags]) == 1
    assert {name: getattr(planned[0], name) for name in expected} == expected


def test_switch_in_a_recipe_holds_unless_a_flag_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: m\nsmoke_test: false\nexperimental: true\n")
    options = read_options(path, {"smoke_test": None, "experimental": None})
    assert (options.smoke_test, options.experimental) == (False, True)


ERRORS: dict[str, tuple[str | None, dict[str, Any], str, str]] = {
    "no-model": (None, {}, "no model is given", "`--model <hub id | folder | sample>`"),
    "misspelt-key": ("precison: int8", {}, "unknown key `precison`", "did you mean `precision`?"),
    "flag-spelling": ("max-seq-len: 1", {}, "unknown key `max-seq-len`", "`max_seq_len`"),
    "unknown-key": ("zzz: 1", {}, "unknown key `zzz`", "known are `allow_untried_release`"),
    "wrong-choice": ("precision: int9", {"model": "m"}, "`precision` must be", ""),
    "too-small": (None, {"model": "m", "max_batch_size": "0"}, "must be at least 1", ""),
    "no-gpus": (None, {"model": "m", "tensor_parallel_size": "0"}, "must be at least 1", ""),
    "not-a-number": (None, {"model": "m", "max_seq_len": "many"}, "must be a whole number", ""),
    "not-a-mapping": ("- a\n- b", {}, "is not a mapping", "`precision: int8`"),
    "not-yaml": ("a: [", {}, "is not YAML", ""),
}


@pytest.mark.parametrize("name", ERRORS)
def test_meaningless_options_are_refused(tmp_path: Path, name: str) -> None:
    text, flags, message, hint = ERRORS[name]
    recipe = None
    if text is not None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_options(recipe, flags)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_options(tmp_path / "none.yaml", {})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_of_the_repository_are_understood(path: Path) -> None:
    assert read_options(path, {}).model


def test_the_repository_has_recipes() -> None:
    assert "sample.cpu.yaml" in {path.name for path in RECIPES}
