"""Clients that go away at random moments leave nothing behind: no request, no slot, no block."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.building import BuildEngine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "disconnects.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def run_crowd(num_disconnects: int, *options: str) -> dict[str, Any]:
    """What is left of them; how soon the slots are free is for the script alone to say."""
    command = [sys.executable, str(SCRIPT), "--disconnects", str(num_disconnects), "--times", "0"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_thousand_disconnects_leave_nothing() -> None:
    """Some find their answer complete, or are refused by a full queue; most are cut off."""
    report = run_crowd(1000)
    assert report["cancelled"] > 100


def test_the_cpu_engine_is_at_rest_afterwards(build_engine: BuildEngine) -> None:
    engine = build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "4").engine
    report = run_crowd(100, "--engine-dir", str(engine.path))
    assert report["cancelled"] > 10
