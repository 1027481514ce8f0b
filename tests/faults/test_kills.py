"""The real CPU engine, killed, stopped and crashed under load: clients notice a pause at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.building import BuildEngine

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"
NUM_KILLS = 12
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are watched by /proc")


def test_every_request_ends_with_its_own_answer_however_often_the_engine_dies(
    build_engine: BuildEngine,
) -> None:
    engine = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8").engine
    command = [sys.executable, str(SCRIPT), "--kills", str(NUM_KILLS)]
    done = subprocess.run(
        [*command, "--engine-dir", str(engine.path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert sum(report["kills"].values()) - report["kills"]["while loading"] >= NUM_KILLS
    assert report["deepinfer_engine_restarts_total"] >= NUM_KILLS
    assert report["refused"] == 0 and report["wrong"] == {}
    assert report["deepinfer_requests_resumed_total"] > 0
