"""Either the whole engine or what was there before, whoever else builds and whatever dies."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepinfer.compiler import staging
from deepinfer.compiler.staging import Staging, open_staging
from deepinfer.errors import BuildError
from deepinfer.manifest import MANIFEST_NAME


def do_not_wait() -> None:
    raise AssertionError("somebody else holds the lock")


def fill(stage: Staging, text: str) -> None:
    (stage.path / "payload").mkdir()
    (stage.path / "payload" / "weights").write_text(text)
    (stage.path / MANIFEST_NAME).write_text(text)


def publish(target: Path, text: str, on_wait: Callable[[], None] = do_not_wait) -> None:
    with open_staging(target, on_wait) as stage:
        fill(stage, text)
        stage.publish()


def read(target: Path) -> tuple[str, str]:
    weights = (target / "payload" / "weights").read_text()
    return weights, (target / MANIFEST_NAME).read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_engine_appears_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "engines" / "one"
    with open_staging(target, do_not_wait) as stage:
        fill(stage, "new")
        assert not target.exists()
        stage.publish()
    assert read(target) == ("new", "new")
    assert names(target.parent) == ["one"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failed_build_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), open_staging(tmp_path / "one", do_not_wait) as stage:
        fill(stage, "half")
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "two-renames"])
def test_engine_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    publish(tmp_path / "one", "old")
    publish(tmp_path / "one", "new")
    assert read(tmp_path / "one") == ("new", "new")
    assert names(tmp_path) == ["one"]


def test_failed_build_leaves_the_engine_before_it(tmp_path: Path) -> None:
    publish(tmp_path / "one", "old")
    with pytest.raises(RuntimeError), open_staging(tmp_path / "one", do_not_wait) as stage:
        fill(stage, "half")
        raise RuntimeError
    assert read(tmp_path / "one") == ("old", "old")
    assert names(tmp_path) == ["one"]


def test_litter_of_every_name_is_cleared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        litter = tmp_path / f".{name}.building"
        (litter / "payload").mkdir(parents=True)
        (litter / "payload" / "half").write_text("half")
    with open_staging(tmp_path / "one", do_not_wait) as stage:
        assert names(stage.path) == []
        assert names(tmp_path) == [".one.building"]


def test_build_in_progress_is_not_litter(tmp_path: Path) -> None:
    with open_staging(tmp_path / "one", do_not_wait) as first:
        fill(first, "half")
        publish(tmp_path / "two", "whole")
        assert names(first.path) == [MANIFEST_NAME, "payload"]


def test_replacement_that_was_killed_between_its_renames_is_undone(tmp_path: Path) -> None:
    publish(tmp_path / "one", "old")
    (tmp_path / "one").rename(tmp_path / ".one.replaced")
    (tmp_path / ".one.building").mkdir()
    with open_staging(tmp_path / "one", do_not_wait):
        assert read(tmp_path / "one") == ("old", "old")
    assert names(tmp_path) == ["one"]


def test_replacement_that_was_killed_after_its_renames_is_finished(tmp_path: Path) -> None:
    publish(tmp_path / "one", "new")
    (tmp_path / ".one.replaced").mkdir()
    with open_staging(tmp_path / "one", do_not_wait):
        pass
    assert read(tmp_path / "one") == ("new", "new")
    assert names(tmp_path) == ["one"]


def make_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def make_file(path: Path) -> None:
    path.write_text("notes")


def make_link(path: Path) -> None:
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MANIFEST_NAME).write_text("{}")
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("make", [make_folder, make_file, make_link])
def test_what_is_not_an_engine_is_not_overwritten(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "one")
    before = names(tmp_path)
    with pytest.raises(BuildError, match="is not an engine; it will not be overwritten"):
        publish(tmp_path / "one", "new")
    assert names(tmp_path) == before


def test_what_appears_during_a_build_is_not_overwritten(tmp_path: Path) -> None:
    with (
        pytest.raises(BuildError, match="will not be overwritten"),
        open_staging(tmp_path / "one", do_not_wait) as stage,
    ):
        fill(stage, "new")
        make_folder(tmp_path / "one")
        stage.publish()
    assert names(tmp_path) == ["one"]
    assert names(tmp_path / "one") == ["thesis.tex"]


def test_second_build_of_a_name_waits_and_finds_the_first_ones_engine(tmp_path: Path) -> None:
    target = tmp_path / "one"
    is_waiting = threading.Event()
    found: list[tuple[str, str]] = []

    def build_second() -> None:
        with open_staging(target, is_waiting.set) as stage:
            assert names(stage.path) == []
            found.append(read(target))

    second = threading.Thread(target=build_second)
    with open_staging(target, do_not_wait) as first:
        second.start()
        assert is_waiting.wait(timeout=30)
        fill(first, "first")
        first.publish()
        assert found == []
    second.join(timeout=30)
    assert found == [("first", "first")]
    assert names(tmp_path) == ["one"]


@pytest.mark.parametrize("can_exchange", [True, False], ids=["exchange", "two-renames"])
def test_many_builds_of_a_name_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    inside: list[int] = []

    def build(number: int) -> None:
        with open_staging(tmp_path / "one", lambda: None) as stage:
            inside.append(number)
            assert inside == [number]
            fill(stage, str(number))
            inside.clear()
            stage.publish()

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(build, range(64)))
    weights, manifest = read(tmp_path / "one")
    assert weights == manifest
    assert names(tmp_path) == ["one"]


KILLED_BUILD = """
import signal, sys
from pathlib import Path
from deepinfer.compiler.staging import open_staging
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in whatever runs in background
with open_staging(Path(sys.argv[1]), lambda: None) as stage:
    (stage.path / "payload").mkdir()
    (stage.path / "payload" / "weights").write_bytes(b"half")
    print("building", flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_build_leaves_no_engine_and_no_litter_after_the_next(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_BUILD, str(tmp_path / "one")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        process.send_signal(number)
    assert names(tmp_path) == ([".one.building"] if number == signal.SIGKILL else [])
    publish(tmp_path / "two", "new")
    assert names(tmp_path) == ["two"]
