"""Suspects of several processes are tried one at a time, and nobody innocent beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deepinfer.runtime.gate import SuspectGate
from deepinfer.runtime.hangar import Hangar
from tests.runtime.test_hangar import advance, depart, die, launch

HOLD = """
import sys
from pathlib import Path
from deepinfer.runtime.gate import SuspectGate
gate = SuspectGate(Path(sys.argv[1]))
assert gate.claim()
print("held", flush=True)
sys.stdin.read()
"""


def make_hangar(file: Path) -> Hangar:
    return Hangar(max_resumes=5, gate=SuspectGate(file))


def grounded_suspect(file: Path, name: str) -> Hangar:
    hangar = make_hangar(file)
    launch(hangar, name)
    assert die(hangar) == {}
    return hangar


def test_suspects_of_two_processes_fly_one_after_the_other(tmp_path: Path) -> None:
    first, second = (grounded_suspect(tmp_path / "gate", name) for name in "ab")
    assert depart(first) == ["a"]
    assert depart(second) == [] and second.must_ask_again
    advance(first.airborne[0])
    assert depart(first) == []
    assert depart(second) == ["b"]


def test_a_suspect_waits_for_the_innocent_of_other_processes(tmp_path: Path) -> None:
    ours, theirs = grounded_suspect(tmp_path / "gate", "a"), make_hangar(tmp_path / "gate")
    running = launch(theirs, "b")
    advance(running)
    die(theirs)
    assert depart(theirs) == ["b"]
    assert depart(ours) == []
    theirs.remove(running)
    assert depart(theirs) == []
    assert depart(ours) == ["a"]


def test_the_innocent_are_not_sent_beside_a_stranger_s_suspect(tmp_path: Path) -> None:
    ours, theirs = grounded_suspect(tmp_path / "gate", "a"), make_hangar(tmp_path / "gate")
    for name in "bc":
        advance(launch(theirs, name))
    die(theirs)
    assert depart(ours) == ["a"]
    assert depart(theirs) == []
    die(ours)  # it was what kills the engine
    assert depart(theirs) == ["b", "c"]


def test_a_suspect_lets_those_of_other_processes_go_first(tmp_path: Path) -> None:
    hangar = grounded_suspect(tmp_path / "gate", "a")
    assert list(hangar.take_off(others_have_gone=False)) == []
    assert hangar.must_ask_again
    assert depart(hangar) == ["a"]


def test_a_process_that_dies_lets_go(tmp_path: Path) -> None:
    gate = SuspectGate(tmp_path / "gate")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "gate")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert not gate.claim() and not gate.share()
        holder.kill()
    assert gate.claim()
