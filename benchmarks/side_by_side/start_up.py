"""How long a start takes, and what for; whether the first request is as fast as the second.

Of the sample, as people meet it first, and of a model whose weights take their time. Builds are
quoted: they were made when the models were.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import msgspec
import psutil

from benchmarks.side_by_side.alone import run_script
from benchmarks.side_by_side.contender import Load, Model
from benchmarks.side_by_side.deepinfer_http import DeepInfer
from benchmarks.side_by_side.models import note_path
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.tables import spread, table

MEBIBYTE = 2**20
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 2
BUILT = re.compile(r"built `.*` in ([\d.]+) s, peak memory ([\d.]+ \w+)")
LINE = re.compile(r"^(\S+ \S+) INFO (\S+): (.*)$", re.MULTILINE)
# What the log says, in this order, and what has come to its end when it does.
MARKS = (
    (" listening on ", "from the command until the port is open"),
    ("importing OpenVINO", "what is served, tokenizers, and the engine's process"),
    ("loading weights", "importing the library"),
    ("warming up", "loading the weights"),
    ("moving weights to huge pages", "warming up"),
    ("` loaded in ", "moving weights to huge pages"),
)


class Start(msgspec.Struct, frozen=True):
    ready_s: float  # from the command to the first healthy answer
    first_s: float  # to the first token of the first request
    second_s: float
    phases: dict[str, float]  # seconds
    api_bytes: int
    engine_bytes: int


def measure_start(served: Model, num_starts: int, logs: Path, budget_s: float) -> Part:
    build = [sys.executable, "-m", "deepinfer", "build", "--model", "sample"]
    with TemporaryDirectory() as folder:
        said = run_script([*build, "--output", folder], budget_s)
        [engine] = [path.parent for path in Path(folder).glob("*/engine.json")]
        sample = Model(engine, engine, max_streams=1, max_seq_len=1)
        starts = {
            "the sample": [start_once(sample, logs) for _ in range(num_starts)],
            served.engine.name: [start_once(served, logs) for _ in range(num_starts)],
        }
    note = note_path(served.engine)
    builds = {
        "the sample": read_cost(said),
        served.engine.name: read_cost(note.read_text() if note.exists() else ""),
    }
    return Part(title="Start-up and memory", text=describe(builds, starts), figures=starts)


def start_once(model: Model, logs: Path) -> Start:
    server = DeepInfer(logs)
    started_at, began_at = time.perf_counter(), datetime.now()
    try:
        url = server.serve(model)
        api = psutil.Process(server.pid)
        engine_bytes = sum(child.memory_info().rss for child in api.children(recursive=True))
        waits = [first_token_s(url, number) for number in range(2)]
        phases = read_phases(server.log, began_at)
        ready_s = sum(phases.values()) or time.perf_counter() - started_at
        return Start(ready_s, *waits, phases, api.memory_info().rss, engine_bytes)
    finally:
        server.stop()


def first_token_s(url: str, number: int) -> float:
    """Of one request, on a connection of its own."""
    [prompt] = Load(1, PROMPT_TOKENS, OUTPUT_TOKENS, number).prompts
    body = {"prompt": prompt, "max_tokens": OUTPUT_TOKENS, "stream": True, "temperature": 0}
    with httpx.Client(base_url=url) as client:
        client.get("/health")
        started_at = time.perf_counter()
        with client.stream("POST", "/v1/completions", json=body | {"ignore_eos": True}) as answer:
            next(line for line in answer.iter_lines() if line.startswith("data:"))
            return time.perf_counter() - started_at


def read_phases(log: str, began_at: datetime) -> dict[str, float]:
    """Seconds of each phase of the first start in a log; nothing from where a mark is missing."""
    lines = [(datetime.fromisoformat(at), f" {said} ") for at, _, said in LINE.findall(log)]
    phases: dict[str, float] = {}
    before = began_at
    for mark, phase in MARKS:
        at = next((at for at, said in lines if mark in said), None)
        if at is None:
            break
        phases[phase] = (at - before).total_seconds()
        before = at
    return phases


def read_cost(said: str) -> str:
    """What `build` says at its end; nothing where it was not kept."""
    found = BUILT.search(said)
    return f"{found[1]} s, peak memory {found[2]}" if found else "-"


def describe(builds: dict[str, str], starts: dict[str, Sequence[Start]]) -> str:
    rows = [["`deepinfer build`", *builds.values()]]
    rows.append(["`deepinfer serve`, until ready", *_cells(starts, "ready_s", 1, " s")])
    for _, phase in MARKS:
        cells = [_seconds([one.phases.get(phase, 0.0) for one in each]) for each in starts.values()]
        rows.append([f"of which: {phase}", *cells])
    rows.append(["first token of the first request", *_cells(starts, "first_s", 1e3, " ms")])
    rows.append(["first token of the second", *_cells(starts, "second_s", 1e3, " ms")])
    for name, field in (("API process", "api_bytes"), ("engine process", "engine_bytes")):
        sizes = [f"{getattr(each[-1], field) / MEBIBYTE:.0f} MiB" for each in starts.values()]
        rows.append([f"memory of the {name}, resident", *sizes])
    return table(["", *starts], rows)


def _cells(starts: dict[str, Sequence[Start]], field: str, scale: float, unit: str) -> list[str]:
    spreads = [spread([scale * getattr(one, field) for one in each]) for each in starts.values()]
    return [found.show(1) + unit if found else "-" for found in spreads]


def _seconds(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found.median:.2f} s" if found else "-"
