"""Traffic, bad requests, disconnects and kills at once: nothing is lost, wrong or left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.building import BuildEngine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"
MINUTES = 0.3
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are watched by /proc")


def test_nothing_is_lost_wrong_or_left_over(build_engine: BuildEngine) -> None:
    engine = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8").engine
    command = [sys.executable, str(SCRIPT), "--minutes", str(MINUTES)]
    done = subprocess.run(
        [*command, "--engine-dir", str(engine.path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    for act in ("streams", "whole answers", "chats", "disconnects", "bad requests", "kills"):
        assert report[act] > 0, act
