"""What a start leaves behind and inherits, and how it ends on an early signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from deepinfer.runtime.supervisor import engine_environment
from deepinfer.temp_folders import LOCK_NAME, TempFolder
from tests.server.serving import make_echo_engine, serving, starting

SECRETS = {
    "HF_TOKEN": "secret-1",
    "HUGGING_FACE_HUB_TOKEN": "secret-2",
    "OPENAI_API_KEY": "secret-3",
    "DEEPINFER_SERVER_API_KEY": "secret-4",
    "AWS_SECRET_ACCESS_KEY": "secret-5",
}
HOLD = """
import sys
from deepinfer.temp_folders import TempFolder
folder = TempFolder()
print(folder.path, flush=True)
sys.stdin.read()
"""
STOPPED_EARLY = """
import os, signal, sys, time
import deepinfer.commands.serve as command
from deepinfer.__main__ import main

def stop(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

command._run = stop
sys.exit(main(["serve", "--engine-dir", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="environments of others are read in /proc")
def test_engine_process_has_no_keys(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    environment = {**os.environ, **SECRETS, "HARMLESS": "kept"}
    with serving(tmp_path, environment=environment) as server:
        pid = server.wait_for_log(r"engine process (\d+) started")[1]
        seen = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"HARMLESS=kept" in seen
    assert b"secret-" not in seen


def test_variables_that_only_sound_alike_are_passed_on() -> None:
    names = ("PATH", "PYTHONPATH", "TOKENIZERS_PARALLELISM", "LANG", "KEYBOARD", "HF_HUB_OFFLINE")
    environment = {**dict.fromkeys(names, "x"), "LIBRARY_NUM_TOKENS": "512"}
    assert engine_environment(environment) == environment


def test_folder_of_a_process_that_was_killed_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with ExitStack() as running:
        held = [
            running.enter_context(
                subprocess.Popen([sys.executable, "-c", HOLD], env=environment, **pipes)  # type: ignore[call-overload]
            )
            for _ in range(2)
        ]
        _check_folders(tmp_path, held)


def _check_folders(parent: Path, held: list[subprocess.Popen[str]]) -> None:
    folders = [Path(each.stdout.readline().strip()) for each in held if each.stdout]
    (folders[0] / "tmp").mkdir()
    (folders[0] / "tmp" / "left").write_text("x")
    held[0].kill()
    held[0].wait()
    stranger = parent / "deepinfer-of-somebody-else"
    stranger.mkdir()
    own = TempFolder()
    assert [folder.exists() for folder in folders] == [False, True]
    assert stranger.exists() and (own.path / LOCK_NAME).exists()
    own.close()
    assert not own.path.exists()
    held[1].communicate("")
    assert not folders[1].exists()


@pytest.mark.skipif(sys.platform != "linux", reason="an engine ends with its server by prctl")
def test_nothing_is_left_of_servers_that_were_killed_or_did_not_start(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "engines" / "echo")
    # The path of a socket has about 100 characters, which that of this test may have already.
    temporary = Path(tempfile.mkdtemp())
    environment = {**os.environ, "TMPDIR": str(temporary)}
    engines = tmp_path / "engines"
    with serving(engines, environment=environment) as server:
        assert len(list(temporary.iterdir())) == 1
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 1
    make_echo_engine(tmp_path / "bad" / "echo", script="no token id")
    with starting(tmp_path / "bad", environment=environment) as failed:
        assert failed.wait() == 1
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


def test_sigterm_before_the_server_listens_ends_it_with_0(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_EARLY, str(tmp_path)], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("line", ["listening on", "engine process", "answers to"])
def test_sigterm_while_it_starts_ends_a_server_with_0(tmp_path: Path, line: str) -> None:
    make_echo_engine(tmp_path / "echo", load_ms=500)
    with starting(tmp_path) as server:
        server.wait_for_log(line)
        server.signal()
        assert server.wait() == 0, server.log
        assert "Traceback" not in server.log
