"""What an event costs the API process: its processor time, beside a bare application's.

The engine is the simulated one, in a process of its own that is not counted. What the bare
application takes is the HTTP server's share, which no application can do without.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.side_by_side.bare_asgi import STEP_S
from benchmarks.side_by_side.contender import Load, Model, check_count
from benchmarks.side_by_side.deepinfer_http import DeepInfer
from benchmarks.side_by_side.over_http import HttpContender
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.rounds import Say, started
from benchmarks.side_by_side.tables import Turn, find_ratios, rates_of, spread, table

PROMPT_TOKENS = 16
MAX_SEQ_LEN = 4096


class BareAsgi(HttpContender):
    name = "bare ASGI application"
    ready_path = "/v1/models"

    @property
    def version(self) -> str:
        return ""

    def command(self, model: Model, port: int) -> list[str]:
        uvicorn = [sys.executable, "-m", "uvicorn", "benchmarks.side_by_side.bare_asgi:app"]
        return [*uvicorn, "--port", str(port), "--no-access-log", "--lifespan", "off"]


def measure_events_cost(
    streams: int, output_tokens: int, num_rounds: int, budget_s: float, logs: Path, say: Say
) -> Part:
    from tests.server.serving import make_echo_engine

    end_at = time.monotonic() + budget_s
    contenders: tuple[HttpContender, ...] = (DeepInfer(logs), BareAsgi(logs))
    with TemporaryDirectory() as folder:
        engine = Path(folder) / "echo"
        make_echo_engine(engine, step_us=round(STEP_S * 1e6), max_batch_size=streams)
        model = Model(engine, engine, streams, MAX_SEQ_LEN)
        turns: list[Turn] = []
        with started(contenders, model, say):
            for number in range(num_rounds + 1):
                load = Load(streams, PROMPT_TOKENS, output_tokens, number)
                turn = {one.name: time_event_us(one, load) for one in contenders}
                if number:  # the first one warms up
                    turns.append(turn)
                say(", ".join(f"{name} {taken_us:.1f} us" for name, taken_us in turn.items()))
                if time.monotonic() > end_at:
                    break
    return describe(streams, turns, [one.name for one in contenders])


def time_event_us(contender: HttpContender, load: Load) -> float:
    """Processor time of the server's first process, system and all."""
    process = psutil.Process(contender.pid)
    before_s = sum(process.cpu_times()[:2])
    measured = check_count(contender.name, load, contender.measure(load))
    return 1e6 * (sum(process.cpu_times()[:2]) - before_s) / (measured.num_events or 1)


def describe(streams: int, turns: list[Turn], names: list[str]) -> Part:
    ours, bare = names
    found = {name: spread(rates_of(turns, name)) for name in names}
    rows = [[name, one.show(1) if one else "-"] for name, one in found.items()]
    ratio = spread(find_ratios(turns, ours, bare))
    text = (
        f"{streams} streams at once, {1 / STEP_S:.0f} steps a second, {len(turns)} turns: "
        f"{ours} takes {ratio.show(2) if ratio else '-'} times what the {bare} takes.\n\n"
        + table(["", "us of its process for each event"], rows)
    )
    return Part(title="What an event costs the API process", text=text, figures=turns)
