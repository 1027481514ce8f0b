"""Text of files, clients and libraries in the terminal and in the log: one line, and only text."""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import deepinfer.cli
from deepinfer import logs
from deepinfer.__main__ import main
from deepinfer.errors import EngineError
from deepinfer.validation import CONTROLS
from tests.engines import make_simulated_engine
from tests.server.serving import make_echo_engine, serving, starting

TITLE = "\x1b]0;owned\x07"  # sets the window's title
CLEAR = "\x1b[2J"
HOSTILE = {
    "OSC": f"a{TITLE}b",
    "CSI": f"a{CLEAR}b",
    "C1": "a\x9b2Jb",
    "lines": "a\nerror: forged\r\nb",
    "separators": "a\u2028b\x85c",
    "right to left": "a\u202egpj.b",
    "surrogate": "a\udcffb",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("kind", [EngineError, ValueError, RuntimeError], ids=lambda k: k.__name__)
def test_error_is_one_line_of_text(
    text: str,
    kind: Callable[[str], Exception],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise kind(text)

    monkeypatch.setattr(deepinfer.cli.cli, "main", fail)
    assert main(["x"]) == 1
    lines = capfd.readouterr().err.split("\n")
    assert len(lines) == (2 if kind is EngineError else 3)  # the last one is empty
    assert lines[0].startswith("error: ") and not any(map(CONTROLS.search, lines))


def test_error_of_megabytes_is_cut(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise ValueError("\x1b" * 5_000_000)

    monkeypatch.setattr(deepinfer.cli.cli, "main", fail)
    assert main(["x"]) == 1
    assert len(capfd.readouterr().err) < 5_000


def make_record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("deepinfer.x", logging.INFO, "x.py", 1, message, values, None)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("formatter", [logs.RequestFormatter(), logs.JsonFormatter()])
def test_log_line_is_one_line_of_text(text: str, formatter: logging.Formatter) -> None:
    line = formatter.format(make_record("seen: %s", text))
    assert CONTROLS.search(line) is None and "seen: a" in line


def test_traceback_in_the_log_has_no_line_that_looks_like_one_of_the_log() -> None:
    forged = "2026-01-01 12:00:00.123 INFO deepinfer.server.context: GET / 200"
    record = make_record("failed")
    try:
        raise ValueError(f"x\n{forged}{CLEAR}")
    except ValueError:
        record.exc_info = sys.exc_info()
    head, *rest = logs.RequestFormatter().format(record).split("\n")
    assert head.endswith("failed") and all(line.startswith("  ") for line in rest)
    assert "\x1b" not in "".join(rest)


def test_names_of_unknown_fields_forge_no_log_line(tmp_path: Path) -> None:
    forged = "2026-01-01 12:00:00.123 INFO deepinfer.server.context: GET /forged 200"
    fields: dict[str, object] = {"prompt": "x", f"a\n{forged}": 1, f"b{CLEAR}": 1}
    fields |= {f"{'c' * 200}{i}": 1 for i in range(1_000)}
    make_echo_engine(tmp_path / "echo")
    with serving(tmp_path, "--log-level", "debug") as server:
        answer = httpx.post(f"{server.url}/v1/completions", json=fields)
        assert answer.status_code == 200
        line = server.wait_for_log(r".*ignored unknown fields.*\n")[0]
        assert forged[:19] in line and len(line) < 4_000
        assert not any(line.startswith(forged) for line in server.log.splitlines())
        assert CLEAR not in server.log


def rewrite(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "engine.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("command", ["list", "inspect", "verify"])
@pytest.mark.parametrize("is_json", [False, True], ids=["text", "json"])
def test_what_a_manifest_says_does_not_control_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, is_json: bool
) -> None:
    engine = make_simulated_engine(tmp_path / "engine")

    def change(content: dict[str, object]) -> None:
        content["model"]["id"] = content["model"]["source"] = f"x{TITLE}"  # type: ignore[index]
        content["build"]["choices"] = [  # type: ignore[index]
            {"name": f"a{CLEAR}", "value": "\x9b2J", "reason": "b\nforged"}
        ]

    rewrite(engine.path, change)
    names = [] if command == "list" else ["engine"]
    options = ["--json"] if is_json else []
    assert main(["engines", command, *names, "--engine-dir", str(tmp_path), *options]) == 0
    written = capfd.readouterr()
    assert CONTROLS.search((written.out + written.err).replace("\n", "")) is None
    if is_json:
        json.loads(written.out)
    assert not any(line.startswith("forged") for line in written.out.splitlines())


def test_hint_is_a_command_that_a_shell_reads_as_it_was_meant(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "a b'; touch owned; $(touch owned) `touch owned`"
    engine = make_simulated_engine(tmp_path / "engine")

    def change(content: dict[str, object]) -> None:
        content["model"]["source"] = source  # type: ignore[index]
        content["files"] = {"payload/x": {"size_bytes": 1, "sha256": "0" * 64}}

    rewrite(engine.path, change)
    assert main(["engines", "verify", "engine", "--engine-dir", str(tmp_path)]) == 1
    hint = capfd.readouterr().err.splitlines()[-1]
    command = hint.partition("`")[2].rpartition("`")[0]
    words = shlex.split(command)
    assert words[:2] == ["deepinfer", "build"] and source in words


def test_banner_of_a_server_does_not_control_the_terminal(tmp_path: Path) -> None:
    model_id = "it's an id"
    make_echo_engine(tmp_path / "echo", model_id=f"{model_id}{TITLE}")
    with starting(tmp_path) as server:
        server.wait_ready()
        server.wait_for_log(r"print\(answer.*\n")
        assert TITLE not in server.log and "\x07" not in server.log


def test_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer", "engines", "list", "--engine-dir", b"\xff\x1b[2J"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: ") and b"\x1b" not in done.stderr
