"""The process that compiles ends with the build, and the build with it, whatever happens to either.

The double waits in the middle of a build, or leaves a process of its own behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from deepinfer.__main__ import main
from deepinfer.compiler import compile_process
from deepinfer.compiler.progress import Progress
from tests.checkpoints import make_checkpoint
from tests.contract.installing import double_environment, installed_double

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), dtype="bfloat16")


def arguments(checkpoint: Path, output: Path) -> list[str]:
    flags = ["--model", str(checkpoint), "--output", str(output), "--name", "engine"]
    return ["build", *flags, "--target", "rtx5090", "--max-seq-len", "128"]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while is_running(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            pytest.fail(f"process {pid} runs on")
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_build_that_is_stopped_takes_the_compiler_with_it(
    double_root: Path, llama: Path, tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    environment = {**os.environ, **double_environment(double_root, build_ending="never")}
    output = tmp_path / "engines"
    build = subprocess.Popen(
        [sys.executable, "-m", "deepinfer", "--verbose", *arguments(llama, output)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would all that they start.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with build:
        assert build.stderr is not None
        waiting = (re.match(r"waiting in process (\d+)", line) for line in build.stderr)
        compiler = int(next(filter(None, waiting))[1])
        build.send_signal(number)
        build.stderr.read()
    assert build.returncode == exit_code
    wait_until_gone(compiler)
    left = [".engine.building"] if number == signal.SIGKILL else []
    assert [path.name for path in output.iterdir()] == left


@pytest.mark.usefixtures("double")
def test_compiler_has_ended_before_its_folder_is_removed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    phase = Progress.phase

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **options))  # type: ignore[call-overload]
        return started[-1]

    @contextmanager
    def interrupted(self: Progress, name: str, detail: str) -> Iterator[None]:
        if name == "load":
            raise KeyboardInterrupt
        with phase(self, name, detail):
            yield

    monkeypatch.setattr(compile_process.subprocess, "Popen", start)
    monkeypatch.setattr(Progress, "phase", interrupted)
    assert main(arguments(llama, tmp_path)) == 130
    assert started and all(child.returncode is not None for child in started)
    assert list(tmp_path.iterdir()) == []


def test_death_of_the_compiler_is_noticed_whoever_it_leaves_behind(
    double_root: Path, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process that it has forked would otherwise hold the pipe open for as long as it runs."""
    orphan: int | None = None
    try:
        with installed_double(double_root, build_ending="orphan"):
            assert main(arguments(llama, tmp_path)) == 1
        said = capfd.readouterr().err
        found = re.search(r"left process (\d+)", said)
        assert found is not None
        orphan = int(found[1])
        assert "crashed with SIGABRT" in said
        assert is_running(orphan), "so that it is not what the build has waited for"
    finally:
        if orphan is not None:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)
