"""A benchmark over HTTP from its options to its document: get acquainted, then a run a level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deepinfer import __version__
from deepinfer.bench.arrivals import ArrivalKind
from deepinfer.bench.lengths import Lengths
from deepinfer.bench.load import LoadPlan
from deepinfer.bench.probe import Acquaintance, get_acquainted
from deepinfer.bench.prompts import PromptPlan
from deepinfer.bench.report import Document, Load, Run
from deepinfer.bench.summary import Objective, summarize
from deepinfer.bench.target import Route, Target
from deepinfer.bench.worker import run_async, run_shares
from deepinfer.device import read_machine
from deepinfer.errors import ConfigError

MIN_REQUESTS = 64  # of a run that neither a number nor a duration was given for
REQUESTS_PER_STREAM = 4

SweepKind = Literal["concurrency", "rate"]


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What the command line says, apart from where the server is. Lengths are in tokens."""

    concurrency: int | None
    rate_per_s: float | None
    arrivals: ArrivalKind = "poisson"
    num_requests: int | None = None
    duration_s: float | None = None
    num_warm_up: int = 0
    input_lengths: Lengths | None = None
    output_lengths: Lengths | None = None
    dataset: Path | None = None
    prompts: Literal["text", "ids"] = "text"
    prefix_tokens: int = 0
    num_prefixes: int = 1
    seed: int = 0
    timeout_s: float = 600.0
    num_processes: int = 1
    objective: Objective | None = None

    def at(self, kind: SweepKind, level: float) -> ServeOptions:
        """The same at one level of a sweep. Raises ConfigError for part of a stream."""
        if kind == "rate":
            return dataclasses.replace(self, concurrency=None, rate_per_s=level)
        if level != int(level):
            raise ConfigError(
                f"`{level:g}` requests at once are not a whole number",
                hint="`--sweep-over rate` takes fractions",
            )
        return dataclasses.replace(self, concurrency=int(level), rate_per_s=None)


def parse_levels(text: str) -> list[float]:
    """`1,4,16`. Raises ConfigError."""
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1e6 for level in levels):
        raise ConfigError(f"`{text}` is no list of levels", hint="give numbers such as `1,4,16,32`")
    return levels


def check_options(options: ServeOptions, route: Route) -> None:
    """Raises ConfigError for what cannot be done together."""
    if route == "chat" and options.prompts == "ids":
        raise ConfigError(
            "`--prompts ids` cannot be sent in a chat, whose messages are text",
            hint="leave out `--prompts`, or ask `--route completions`",
        )
    if options.dataset is not None and options.prompts == "ids":
        raise ConfigError(
            "`--prompts ids` cannot be made from a data set of texts",
            hint="leave out `--prompts` or `--dataset`",
        )
    if options.concurrency is not None and options.concurrency < options.num_processes:
        raise ConfigError(
            f"{options.num_processes} processes cannot share {options.concurrency} streams",
            hint="give at most one process a request with `--processes`",
        )


def run_serve(
    target: Target,
    levels: Sequence[ServeOptions],
    report: Callable[[str], None] = lambda _: None,
) -> Document:
    """Measure each of `levels`, in order. Raises a CommandError. `report` is told what goes on."""
    for options in levels:
        check_options(options, target.route)
    known = run_async(get_acquainted(target, needs_ids=levels[0].prompts == "ids"))
    for note in known.notes:
        report(note)
    runs = []
    for number, options in enumerate(levels):
        report(f"measuring {known.target.model} at {_level(options)}")
        runs.append(_run(known, options, number))
    return Document(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        deepinfer_version=__version__,
        url=known.target.url,
        model=known.target.model,
        machine=_describe_machine(),
        notes=known.notes,
        runs=tuple(runs),
    )


def _run(known: Acquaintance, options: ServeOptions, number: int) -> Run:
    plan = make_plan(known, options, number)
    results = run_shares(plan, options.num_processes)
    outcomes = [outcome for result in results for outcome in result.outcomes]
    elapsed_s = max(result.ended_at for result in results) - min(r.started_at for r in results)
    return Run(
        load=_describe(plan, options),
        summary=summarize(outcomes, elapsed_s, options.objective),
        client_cpu_share=max(result.cpu_share for result in results),
        client_max_lag_s=max(result.max_lag_s for result in results),
    )


def make_plan(known: Acquaintance, options: ServeOptions, number: int) -> LoadPlan:
    num_requests = options.num_requests
    if num_requests is None and options.duration_s is None:
        num_requests = max(MIN_REQUESTS, REQUESTS_PER_STREAM * (options.concurrency or 1))
    return LoadPlan(
        target=known.target,
        prompts=PromptPlan(
            input_lengths=options.input_lengths,
            output_lengths=options.output_lengths,
            dataset=None if options.dataset is None else str(options.dataset),
            token_ids=known.token_ids,
            tokens_per_word=known.tokens_per_word,
            prefix_tokens=options.prefix_tokens,
            num_prefixes=options.num_prefixes,
            seed=options.seed,
            run=number,
        ),
        concurrency=options.concurrency,
        rate_per_s=options.rate_per_s,
        arrivals=options.arrivals,
        num_requests=num_requests,
        duration_s=options.duration_s,
        num_warm_up=options.num_warm_up,
        timeout_s=options.timeout_s,
    )


def _describe(plan: LoadPlan, options: ServeOptions) -> Load:
    def words(lengths: Lengths | None) -> str | None:
        return None if lengths is None else str(lengths)

    return Load(
        route=plan.target.route,
        is_streaming=plan.target.is_streaming,
        concurrency=plan.concurrency,
        rate_per_s=plan.rate_per_s,
        arrivals=None if plan.rate_per_s is None else plan.arrivals,
        num_requests=plan.num_requests,
        duration_s=plan.duration_s,
        num_warm_up=plan.num_warm_up,
        input_lengths=words(options.input_lengths),
        output_lengths=words(options.output_lengths),
        dataset=plan.prompts.dataset,
        prompts=options.prompts,
        prefix_tokens=options.prefix_tokens,
        num_prefixes=options.num_prefixes,
        ignores_eos=plan.target.ignores_eos,
        seed=options.seed,
        num_processes=options.num_processes,
    )


def _level(options: ServeOptions) -> str:
    if options.rate_per_s is not None:
        return f"{options.rate_per_s:g} requests/s ({options.arrivals})"
    return f"concurrency {options.concurrency}"


def _describe_machine() -> str:
    cpu = read_machine().cpu
    return f"{cpu.name}, {cpu.num_threads} CPUs"
