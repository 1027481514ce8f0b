"""The command line's frame: what it lists, how it fails, and what it does not load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import import_module

import click
import pytest

from deepinfer import __version__
from deepinfer.__main__ import main
from deepinfer.cli import cli
from deepinfer.commands import SUMMARIES
from deepinfer.errors import PlanError


@pytest.fixture
def run_body(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], list[str]], int]:
    """Run `deepinfer [options] doctor` with a body of the test's own."""

    def run(body: Callable[[], None], options: list[str]) -> int:
        command = click.Command("doctor", callback=body)
        monkeypatch.setattr(type(cli), "get_command", lambda *_: command)
        return main([*options, "doctor"])

    return run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deepinfer {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=["--help", "-h", "nothing"])
def test_help_lists_every_command_with_its_summary(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for name, summary in SUMMARIES.items():
        assert f"{name} {summary}" in lines


@pytest.mark.parametrize("name", SUMMARIES)
def test_command_opens_its_help_with_its_summary(name: str) -> None:
    command = getattr(import_module(f"deepinfer.commands.{name}"), name)
    assert isinstance(command, click.Command)
    assert (command.help or "").splitlines()[0] == f"{SUMMARIES[name]}."


def test_frame_imports_no_command() -> None:
    code = "import sys, deepinfer.cli; print(*[m for m in sys.modules if 'deepinfer' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(done.stdout.split()) == [
        "deepinfer",
        "deepinfer.cli",
        "deepinfer.commands",
        "deepinfer.logs",
        "deepinfer.validation",
    ]


def test_misspelled_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sevre"]) == 2
    assert capsys.readouterr().err == (
        "error: no such command `sevre`; did you mean `serve`?\n"
        "hint: `deepinfer --help` shows what is accepted\n"
    )


def test_usage_error_names_the_command_to_ask_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines", "list", "--jsn"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: No such option")
    assert output.err.endswith("hint: `deepinfer engines list --help` shows what is accepted\n")
    assert output.out == ""


def test_group_without_a_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engines"]) == 2
    assert capsys.readouterr().err.startswith("error: Missing command\n")


def test_command_error_is_one_line_and_a_hint(
    run_body: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise PlanError("the model needs 16 GiB; this GPU has 8 GiB", hint="use int4")

    assert run_body(fail, []) == 1
    assert capsys.readouterr().err == (
        "error: the model needs 16 GiB; this GPU has 8 GiB\nhint: use int4\n"
    )


def test_unexpected_exception_is_one_line_without_a_traceback(
    run_body: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division\nby zero")

    assert run_body(fail, []) == 1
    assert capsys.readouterr().err == (
        "error: internal: ZeroDivisionError: division by zero\n"
        "hint: `deepinfer --verbose <command> ...` shows the traceback\n"
    )


@pytest.mark.parametrize("error", [PlanError("no"), ValueError("no")], ids=["ours", "unexpected"])
def test_verbose_shows_the_traceback(
    run_body: Callable[..., int], capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail() -> None:
        raise error

    assert run_body(fail, ["--verbose"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupt_exits_130_and_says_nothing(
    run_body: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_body(interrupt, []) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("exit_code", [0, 1, 3])
def test_exit_code_of_a_command_is_that_of_the_program(
    run_body: Callable[..., int], exit_code: int
) -> None:
    def leave() -> None:
        click.get_current_context().exit(exit_code)

    assert run_body(leave, []) == exit_code


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"deepinfer {__version__}\n"
