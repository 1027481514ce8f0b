"""Engines that are damaged or vanish, and clocks that jump: named, and survived by all others.

A full disk is in tests/compiler/test_build_command.py, a port in use in
tests/server/test_lifetime.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import httpx
import pytest

import deepinfer
from deepinfer.manifest import MANIFEST_NAME
from tests.server.serving import ServerProcess, client_of, make_echo_engine, serving, starting
from tests.server.test_bad_requests import assert_error

SOURCES = Path(deepinfer.__file__).parent
WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\b|datetime\.(now|utcnow)")
# For the start of a trace, and for a library that wants Unix seconds and counts none of them;
# elsewhere `int(time.time())` is the date of an answer.
READERS_OF_THE_DATE = {"server/record.py", "server/limits.py"}


def make_two(folder: Path) -> None:
    for name in ("one", "two"):
        make_echo_engine(folder / name, name=f"{name}.simulated", model_id=f"test/{name}")


def complete(http: httpx.Client, model: str) -> httpx.Response:
    return http.post("/v1/completions", json={"model": model, "prompt": "hello"})


DAMAGES = {
    "a cut file": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "a missing file": lambda path: path.unlink(),
    "a folder in its place": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_engine_is_refused_in_one_line(tmp_path: Path, damage: object) -> None:
    make_echo_engine(tmp_path / "echo")
    assert callable(damage)
    damage(tmp_path / "echo" / "tokenizer" / "tokenizer.json")
    with starting(tmp_path) as server:
        assert server.wait() == 1
    assert server.log.count("error: ") == 1
    assert "tokenizer.json" in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_broken_manifest_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    make_echo_engine(tmp_path / "echo")
    (tmp_path / "echo" / MANIFEST_NAME).write_bytes(content)
    with starting(tmp_path) as server:
        assert server.wait() == 1
    assert "error: " in server.log
    assert "Traceback" not in server.log


def kill_engine(server: ServerProcess, number: int) -> None:
    pid = int(server.wait_for_log(r"engine process (\d+) started", count=number)[1])
    os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="engines are watched by /proc")
def test_engine_that_vanishes_while_it_serves_takes_no_other_with_it(tmp_path: Path) -> None:
    make_two(tmp_path)
    with serving(tmp_path) as server, client_of(server) as http:
        shutil.rmtree(tmp_path / "one")
        # It has all it needs until it has to be started again.
        assert complete(http, "test/one").status_code == 200
        kill_engine(server, 1)
        server.wait_for_log(r"engine .*(cannot|does not|not come|failed|ended).*", count=2)
        assert_error(complete(http, "test/one"), 503, "engine_unavailable", None)
        assert complete(http, "test/two").json()["choices"][0]["text"] == "hello"
        assert http.get("/health/live").status_code == 200
        assert "Traceback" not in server.log


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    modules = [*SOURCES.glob("server/**/*.py"), *SOURCES.glob("runtime/*.py")]
    assert len(modules) > 50
    readings = {
        f"{module.relative_to(SOURCES)}: {line.strip()}"
        for module in modules
        for line in module.read_text(encoding="utf-8").splitlines()
        if WALL_CLOCK.search(line) and "int(time.time())" not in line
    }
    assert {reading.partition(":")[0] for reading in readings} == READERS_OF_THE_DATE
