"""Parts that need no contender: the roofline, and the other scripts of this folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.side_by_side.child import run_bounded
from benchmarks.side_by_side.contender import Model, Unavailable
from benchmarks.side_by_side.environment import find_reason
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.tables import judge, spread, table
from deepinfer.bench.engine import EngineReport

DECODE_TARGET = 0.70  # of what the memory's bandwidth allows


def measure_decode(model: Model, num_tokens: int, num_trials: int, budget_s: float) -> Part:
    """One stream, without HTTP, against the machine's bandwidth."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "engine.json"
        command = [sys.executable, "-m", "deepinfer", "bench", "engine", model.engine.name]
        command += ["--engine-dir", str(model.engine.parent), "--json", str(path)]
        command += ["--batch-sizes", "1", "--prompt-lens", str(num_tokens)]
        command += ["--output-tokens", str(num_tokens), "--trials", str(num_trials)]
        run_script(command, budget_s)
        report = msgspec.json.decode(path.read_bytes(), type=EngineReport)
    [point] = report.points
    rates = [trial.decode_tokens_per_s or 0.0 for trial in point.trials]
    found, bound = spread(rates), point.bounds
    assert found is not None and bound is not None, "an engine of weights has been measured"
    share = found.median / bound.decode_tokens_per_s
    rows = [[f"{share:.0%}", found.show(1), f"{bound.decode_tokens_per_s:.1f}"]]
    text = table(["of the limit", "decode, tokens/s", "limit of the bandwidth, tokens/s"], rows)
    verdict = f"Target, at least {DECODE_TARGET:.0%}: {judge(share, DECODE_TARGET)}."
    return Part(title="Decoding of one stream", text=f"{text}\n\n{verdict}", figures=report)


def quote_script(title: str, script: str, options: Sequence[str], budget_s: float) -> Part:
    """What a script of this folder prints: tables as they are, anything else as it stands."""
    path = Path(__file__).parent.parent / script
    said = run_script([sys.executable, str(path), *options], budget_s).strip()
    text = said if "|---|" in said else f"```\n{compact(said)}\n```"
    command = f"`benchmarks/{script} {' '.join(options)}`".replace(" `", "`")
    return Part(title=title, text=f"{command}\n\n{text}", figures=said)


def compact(said: str) -> str:
    """A JSON object over many lines as one line each of its fields."""
    try:
        fields = json.loads(said)
    except ValueError:
        return said
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())


def run_script(command: Sequence[str], budget_s: float) -> str:
    """What it prints. Raises Unavailable when it fails or takes longer."""
    try:
        done = run_bounded(command, budget_s)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"stopped after {budget_s:.0f} s") from None
    if done.returncode != 0:
        raise Unavailable(f"failed: {find_reason(done.stderr + done.stdout)}")
    return done.stdout
