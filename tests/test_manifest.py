"""engine.json: written, read again, and refused when it is not what it should be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deepinfer.errors import EngineError
from deepinfer.manifest import (
    MANIFEST_NAME,
    EngineManifest,
    find_damage,
    find_engine_folders,
    find_engines,
    read_engine,
    record_file,
    record_files,
)
from tests.engines import make_simulated_engine

ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = make_simulated_engine(tmp_path / "engine", settings={"seed": 7, "exact": True})
    assert read_engine(tmp_path / "engine") == written


def test_manifest_cannot_be_changed(tmp_path: Path) -> None:
    manifest = make_simulated_engine(tmp_path).manifest
    with pytest.raises(ValidationError):
        manifest.precision = "int4"


def test_folder_without_a_manifest_is_not_an_engine(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is not an engine: it has no engine.json"):
        read_engine(tmp_path)


def change(*path: str, value: Any) -> Any:
    def apply(document: dict[str, Any]) -> str:
        *parents, last = path
        inner = document
        for key in parents:
            inner = inner[key]
        inner[last] = value
        return json.dumps(document)

    return apply


DAMAGED = {
    "cut short": (lambda document: json.dumps(document)[:-40], "the file: Invalid JSON"),
    "empty": (lambda document: "", "the file: Invalid JSON"),
    "of a later schema": (change("schema_version", value=2), "schema_version: Input should be 1"),
    "with an unknown field": (change("colour", value="red"), "colour: Extra inputs"),
    "with an impossible limit": (
        change("limits", "max_seq_len", value=1),
        "limits.max_seq_len: Input should be greater than or equal to 2",
    ),
    "of an unknown backend": (change("backend", "name", value="abacus"), "backend.name: "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_manifest_is_refused_in_one_line(tmp_path: Path, damage: Any, message: str) -> None:
    engine = make_simulated_engine(tmp_path)
    document = engine.manifest.model_dump(mode="json")
    (tmp_path / MANIFEST_NAME).write_text(damage(document))
    with pytest.raises(EngineError) as raised:
        read_engine(tmp_path)
    assert message in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint is not None


def test_manifest_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="cannot read"):
        read_engine(tmp_path)


def test_engines_are_found_by_name_and_builds_in_progress_passed_over(tmp_path: Path) -> None:
    for name in ("b", "a", ".building-c"):
        make_simulated_engine(tmp_path / name, name=name)
    (tmp_path / "no-engine").mkdir()
    (tmp_path / "README.md").touch()
    assert [engine.manifest.name for engine in find_engines(tmp_path)] == ["a", "b"]


def test_one_engine_is_found_in_itself(tmp_path: Path) -> None:
    make_simulated_engine(tmp_path)
    assert find_engine_folders(tmp_path) == [tmp_path]


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_missing_engine_folder_is_an_error_with_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="does not exist") as raised:
        find_engines(tmp_path / name)
    assert raised.value.hint is not None


def test_file_record_holds_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    record = record_file(tmp_path / "abc")
    assert (record.size_bytes, record.sha256) == (3, ABC_SHA256)


def test_every_file_but_the_manifest_is_recorded(tmp_path: Path) -> None:
    for path in ("payload/rank0.engine", "payload/nested/engine.json", "tokenizer/t.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"abc")
    engine = make_simulated_engine(tmp_path)
    assert list(record_files(tmp_path)) == [
        "payload/nested/engine.json",
        "payload/rank0.engine",
        "tokenizer/t.json",
    ]
    assert engine.manifest.size_bytes == 9


def test_damage_is_listed_for_each_file(tmp_path: Path) -> None:
    for name in ("changed", "gone", "short", "whole"):
        (tmp_path / name).write_bytes(b"abc")
    engine = make_simulated_engine(tmp_path)
    (tmp_path / "changed").write_bytes(b"abd")
    (tmp_path / "gone").unlink()
    os.truncate(tmp_path / "short", 2)
    by_size = ["gone is missing", "short has 2 bytes; the manifest says 3"]
    assert list(find_damage(engine, with_digests=False)) == by_size
    by_digest = ["changed differs from its SHA-256 in the manifest", *by_size]
    assert list(find_damage(engine, with_digests=True)) == by_digest


def test_file_from_outside_of_the_engine_is_damage(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "weights").write_bytes(b"abc")
    engine = make_simulated_engine(tmp_path / "engine")
    (tmp_path / "engine" / "weights").rename(tmp_path / "elsewhere")
    (tmp_path / "engine" / "weights").symlink_to(tmp_path / "elsewhere")
    found = list(find_damage(engine, with_digests=False))
    assert found == [f"weights leads out of the folder, to {tmp_path / 'elsewhere'}"]


def test_link_to_an_engine_is_followed_only_within_the_folder(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    make_simulated_engine(engines / "one")
    (engines / "two").symlink_to(engines / "one")
    (tmp_path / "link").symlink_to(engines)
    assert find_engine_folders(tmp_path / "link") == [
        tmp_path / "link" / "one",
        tmp_path / "link" / "two",
    ]
    make_simulated_engine(tmp_path / "outside")
    (engines / "three").symlink_to(tmp_path / "outside")
    with pytest.raises(EngineError, match="three` leads out of the engine folder, to `") as refused:
        find_engine_folders(engines)
    assert "\n" not in refused.value.message


def test_schema_has_not_changed_without_a_new_version() -> None:
    # Engines outlive releases: a field that they lack needs a default or a new SCHEMA_VERSION.
    required = {name for name, field in EngineManifest.model_fields.items() if field.is_required()}
    assert required == {
        "name",
        "model",
        "backend",
        "precision",
        "kv_cache_precision",
        "kv_bytes_per_token",
        "target",
        "limits",
        "tokens",
        "files",
        "build",
    }
