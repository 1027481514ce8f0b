"""What the server adds to an engine's own time, and what it streams when the engine takes none.

The engine is the simulated one, of which the time of a step is known, so that what is left of a
client's waits is the server's: before the first token of a single stream, and between the tokens of
many. Beside it streams a bare ASGI application that wakes as often.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.side_by_side.api_process import MAX_SEQ_LEN, PROMPT_TOKENS, BareAsgi
from benchmarks.side_by_side.bare_asgi import STEP_S
from benchmarks.side_by_side.contender import Load, Model, Unavailable
from benchmarks.side_by_side.deepinfer_http import DeepInfer
from benchmarks.side_by_side.over_http import HttpContender
from benchmarks.side_by_side.report import Part
from benchmarks.side_by_side.rounds import Say, started
from benchmarks.side_by_side.tables import Turn, judge, rates_of, spread, table

FIRST_TOKEN_REQUESTS = 50  # one after the other
FIRST_TOKEN_TARGET_S = 0.003
GAP_TARGET_S = 0.020


def measure_added_latency(
    streams: int, output_tokens: int, num_rounds: int, budget_s: float, logs: Path, say: Say
) -> Part:
    end_at = time.monotonic() + budget_s
    with TemporaryDirectory() as folder:
        paced = make_model(Path(folder) / "paced", streams, STEP_S)
        instant = make_model(Path(folder) / "instant", streams, 0.0)
        gaps = measure_gaps(paced, output_tokens, num_rounds, end_at, logs, say)
        first = measure_first_tokens(instant, num_rounds, end_at, logs, say)
        events = measure_events(instant, output_tokens, num_rounds, end_at, logs, say)
    text = "\n\n".join(
        [
            describe_first_tokens(first),
            describe_gaps(gaps, streams),
            describe_events(events, streams),
        ]
    )
    figures = {"first token, s": first, "gaps, s": gaps, "events/s": events}
    return Part(title="What the server adds to an engine's time", text=text, figures=figures)


def make_model(folder: Path, streams: int, step_s: float) -> Model:
    from tests.server.serving import make_echo_engine

    make_echo_engine(folder, step_us=round(step_s * 1e6), max_batch_size=streams)
    return Model(folder, folder, streams, MAX_SEQ_LEN)


def measure_first_tokens(
    model: Model, num_rounds: int, end_at: float, logs: Path, say: Say
) -> list[float]:
    """The median of each round; the engine answers in no time, so all of it is the server's."""
    server = DeepInfer(logs)
    medians: list[float] = []
    with started([server], model, say):
        for number in range(num_rounds + 1):
            summary = server.answer(Load(1, PROMPT_TOKENS, 2, number), FIRST_TOKEN_REQUESTS)
            assert summary.ttft_s is not None, "it streams"
            if number:  # the first one warms up
                medians.append(summary.ttft_s.p50)
            if time.monotonic() > end_at:
                break
    return medians


def measure_gaps(
    model: Model, output_tokens: int, num_rounds: int, end_at: float, logs: Path, say: Say
) -> list[Turn]:
    """The 99th percentile of the waits between events of all streams, less the engine's step."""
    contenders: tuple[HttpContender, ...] = (DeepInfer(logs), BareAsgi(logs))
    turns: list[Turn] = []
    with started(contenders, model, say):
        for number in range(num_rounds + 1):
            turn: dict[str, float] = {}
            for one in contenders:
                load = Load(model.max_streams, PROMPT_TOKENS, output_tokens, number)
                summary = one.answer(load, load.streams)
                assert summary.itl_s is not None, "it streams"
                turn[one.name] = summary.itl_s.p99 - STEP_S
            if number:
                turns.append(turn)
            if time.monotonic() > end_at:
                break
    if not turns:
        raise Unavailable("no turn within the time that it has")
    return turns


def measure_events(
    model: Model, output_tokens: int, num_rounds: int, end_at: float, logs: Path, say: Say
) -> list[Turn]:
    """Events a second of an engine that is never waited for."""
    server = DeepInfer(logs)
    turns: list[Turn] = []
    with started([server], model, say):
        for number in range(num_rounds + 1):
            load = Load(model.max_streams, PROMPT_TOKENS, output_tokens, number)
            rate = server.answer(load, load.streams).events_per_s
            if number:
                turns.append({server.name: rate})
            if time.monotonic() > end_at:
                break
    return turns


def describe_first_tokens(medians: list[float]) -> str:
    found = spread([1e3 * value for value in medians])
    verdict = judge(-found.median if found else None, -1e3 * FIRST_TOKEN_TARGET_S)
    return (
        f"One stream, {FIRST_TOKEN_REQUESTS} requests one after the other, {len(medians)} turns: "
        f"{found.show(2) if found else '-'} ms to the first token (p50) with an engine that takes "
        f"none. Target, at most {1e3 * FIRST_TOKEN_TARGET_S:.0f} ms: {verdict}."
    )


def describe_gaps(turns: list[Turn], streams: int) -> str:
    found = {name: spread([1e3 * gap for gap in rates_of(turns, name)]) for name in turns[0]}
    rows = [[name, one.show(1) if one else "-"] for name, one in found.items()]
    ours = next(iter(found.values()))
    verdict = judge(-ours.median if ours else None, -1e3 * GAP_TARGET_S)
    return (
        f"{streams} streams, {1 / STEP_S:.0f} steps a second, {len(turns)} turns:\n\n"
        + table(["", "added between two events, p99, ms"], rows)
        + f"\n\nTarget, at most {1e3 * GAP_TARGET_S:.0f} ms: {verdict}."
    )


def describe_events(turns: list[Turn], streams: int) -> str:
    rate = spread([rate for turn in turns for rate in turn.values()])
    return (
        f"{streams} streams of an engine that is never waited for; the client, the engine and the "
        f"API process share the machine's cores: {rate.show(0) if rate else '-'} events/s."
    )
