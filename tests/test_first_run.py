"""build/ngc/first_run.sh on the double, with a made-up `docker` and `nvidia-smi`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract.installing import double_environment, make_double_root

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "build" / "ngc" / "first_run.sh"
TOKEN = "hf_SecretOfSomebody123"
DEADLINE_S = 240

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None, reason="first_run.sh needs curl, which is not on this machine"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Owner:
    """Somebody with a card: a folder with their programs, home and report."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home" / "somebody"
        self.programs = folder / "programs"
        self.report_file = self.home / "report.md"
        self.calls_file = folder / "calls"
        self.settings: dict[str, Any] = {
            "environment": {},
            "calls": str(self.calls_file),
            "has_image": True,
            "fail": {},
            "hang": [],
        }
        for made in (self.home / "engines", self.programs):
            made.mkdir(parents=True)
        docker = f"exec '{sys.executable}' '{ROOT / 'tests' / 'fake_docker.py'}' \"$@\""
        self._write_program("docker", docker)
        self.has_driver("580.126.20")

    def has_driver(self, version: str | None) -> None:
        body = f"echo {version}" if version else "exit 9"
        self._write_program("nvidia-smi", body)

    def _write_program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.home.parent),
            "RUN_AS": "1000:1000",
            "REPORT": str(self.report_file),
            "ENGINES_DIR": str(self.home / "engines"),
            "FAKE_DOCKER": json.dumps(self.settings),
            "HF_TOKEN": TOKEN,
            "FIRST_PORT": str(free_port()),
            "MODELS": "sample",
            "LEVELS": "1",
            "EXPECTED": "",
            "FORMAT": "",  # the double has no model of grammars
            **variables,
        }
        return subprocess.Popen(
            [str(SCRIPT)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, **variables: str) -> int:
        """The exit status of the script."""
        process = self.start(**variables)
        try:
            self.output = "".join(process.communicate(timeout=DEADLINE_S))
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode

    @property
    def report(self) -> str:
        return self.report_file.read_text(encoding="utf-8", errors="replace")

    @property
    def outcomes(self) -> dict[str, str]:
        """By step, how it ended."""
        steps = self.report.split("## Steps")[1].split("## Tokens")[0]
        _, *rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", steps, re.M)
        return {name: outcome for outcome, name in rows}

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.fixture(scope="module")
def double_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_double_root(tmp_path_factory.mktemp("double"))


def test_run_in_which_all_goes_well_reports_all_of_it(owner: Owner, double_root: Path) -> None:
    owner.settings["environment"] = double_environment(double_root)
    assert owner.run(LEVELS="1 8") == 0, owner.output
    report = owner.report
    assert set(owner.outcomes.values()) == {"passed", "log"}
    for seen in (
        "580.126.20",  # the driver
        "tensorrt_llm==1.2.1",
        "engines can be served on this GPU",
        "parameter `backend` is missing",  # a difference of the interface is no failure
        "first-run-1",
        "PLAN",
        "NVIDIA GeForce RTX 5090",
        '"healthy"',
        '"logprobs"',
    ):
        assert seen in report, seen
    speeds = re.findall(r"^\| first-run-1 \| (\d+) \| ([\d.]+) \|$", report, re.M)
    assert [level for level, _ in speeds] == ["1", "8"]
    assert all(float(rate) > 0 for _, rate in speeds)
    assert (owner.home / "engines" / "first-run-1" / "engine.json").is_file()


def test_answers_that_are_wrong_or_refused_are_failures_and_the_rest_goes_on(
    owner: Owner, double_root: Path
) -> None:
    """The double answers with words of its own."""
    owner.settings["environment"] = double_environment(double_root)
    assert owner.run(EXPECTED="Paris", FORMAT='{"type": "no_such_type"}') == 1
    assert [name for name, outcome in owner.outcomes.items() if outcome == "failed"] == [
        "first-run-1, an answer, its sense",
        "first-run-1, JSON by a schema",
    ]
    assert "response_format.type" in owner.report  # what the server said about it
    assert owner.outcomes["first-run-1, speed of 1 at once"] == "passed"


def test_build_that_fails_is_reported_with_its_last_words_and_the_next_model_is_tried(
    owner: Owner,
) -> None:
    owner.settings["fail"] = {"build": f"error: out of memory\n{TOKEN} {owner.home}/secret"}
    assert owner.run(MODELS="one/model --precision fp8; two/model") == 1
    assert owner.outcomes["first-run-1, plan of one/model --precision fp8"] == "failed"
    assert owner.outcomes["first-run-1, build"] == "skipped"
    assert owner.outcomes["first-run-2, plan of two/model"] == "failed"
    assert "error: out of memory" in owner.report
    assert [call for call in owner.calls if "serve" in call] == []


def test_report_has_no_token_and_not_the_path_of_a_home(owner: Owner) -> None:
    other = "hf_AnotherTokenOfSomebody"
    owner.settings["fail"] = {"build": f"{TOKEN} and {other} in {owner.home}/engines"}
    owner.run()
    assert TOKEN not in owner.report and other not in owner.report
    assert str(owner.home) not in owner.report
    assert "<token> and <token> in ~/engines" in owner.report
    assert TOKEN not in json.dumps(owner.calls)


def test_build_that_never_ends_is_given_up(owner: Owner) -> None:
    owner.settings["hang"] = ["build"]
    assert owner.run(STEP_TIMEOUT_S="2") == 1
    assert "not done within 2 s" in owner.report
    name = next(call[call.index("--name") + 1] for call in owner.calls if "build" in call[5:])
    assert ["rm", "--force", name] in owner.calls


def test_server_that_never_gets_ready_is_given_up(owner: Owner, double_root: Path) -> None:
    owner.settings |= {"environment": double_environment(double_root), "hang": ["serve"]}
    assert owner.run(START_TIMEOUT_S="2") == 1
    assert owner.outcomes["first-run-1, build"] == "passed"
    assert owner.outcomes["first-run-1, server"] == "failed"
    assert "not ready within 2 s" in owner.report
    assert "first-run-1, an answer" not in owner.outcomes


def test_server_that_ends_is_reported_at_once(owner: Owner, double_root: Path) -> None:
    owner.settings["environment"] = double_environment(double_root)
    owner.settings["fail"] = {"serve": "error: TensorRT cannot be loaded"}
    assert owner.run() == 1
    assert owner.outcomes["first-run-1, server"] == "failed"
    assert "error: TensorRT cannot be loaded" in owner.report


@pytest.mark.parametrize(
    ("version", "said"), [(None, "no NVIDIA driver answers"), ("570.86.10", "is too old")]
)
def test_without_a_driver_the_image_is_looked_at_and_nothing_is_built(
    owner: Owner, version: str | None, said: str
) -> None:
    owner.has_driver(version)
    assert owner.run() == 1
    assert owner.outcomes["driver"] == "failed"
    assert owner.outcomes["versions"] == "passed"
    assert owner.outcomes["everything else"] == "skipped"
    assert said in owner.report
    assert not [call for call in owner.calls if "--gpus" in call]


def test_image_that_cannot_be_made_ends_the_run_with_a_report(owner: Owner) -> None:
    owner.settings["has_image"] = False
    assert owner.run() == 1
    assert owner.outcomes["image"] == "failed"
    assert "no space left on device" in owner.report


def test_doctor_that_finds_a_fault_does_not_keep_the_rest_from_being_tried(owner: Owner) -> None:
    owner.settings["fail"] = {"doctor": "failed   TensorRT  does not load", "build": "error: no"}
    assert owner.run() == 1
    assert owner.outcomes["doctor"] == "failed"
    assert owner.outcomes["first-run-1, plan of sample"] == "failed"


def test_run_that_is_interrupted_leaves_a_report(owner: Owner) -> None:
    owner.settings["hang"] = ["doctor"]
    process = owner.start()
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("begins") and "doctor" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert owner.outcomes["versions"] == "passed"
    assert "doctor" not in owner.outcomes


def test_default_models_need_no_token_and_go_from_small_to_large() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    (block,) = re.findall(r"DEFAULT_MODELS='(.*?)'", text, re.S)
    models = [line.split() for line in block.splitlines()]
    assert [words[0] for words in models] == ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B"]
    assert [words[-1] for words in models] == ["bf16", "fp8", "fp8"]
