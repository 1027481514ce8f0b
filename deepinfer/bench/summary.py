"""What many outcomes come to: rates, percentiles, and the share that met an objective. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

import msgspec

from deepinfer.bench.outcome import Outcome
from deepinfer.errors import ConfigError
from deepinfer.validation import suggest

OBJECTIVES = ("ttft", "itl", "e2e")


class Spread(msgspec.Struct, frozen=True):
    mean: float
    p50: float
    p90: float
    p99: float


class Objective(msgspec.Struct, frozen=True):
    """Seconds that one request may take; None is no limit. `itl` is a request's mean."""

    ttft: float | None = None
    itl: float | None = None
    e2e: float | None = None

    def is_met(self, outcome: Outcome) -> bool:
        """A time that cannot be known, of an answer that came whole, is not held against it."""
        pairs = [
            (self.ttft, outcome.ttft_s),
            (self.itl, outcome.mean_itl_s),
            (self.e2e, outcome.latency_s),
        ]
        return outcome.is_ok and all(
            limit is None or taken is None or taken <= limit for limit, taken in pairs
        )


class Goodput(msgspec.Struct, frozen=True):
    """Requests that met the objective; those that failed have not."""

    objective: Objective
    share: float  # of all requests
    requests_per_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All figures are of the requests that succeeded, but for `num_requests` and `errors`.

    `elapsed_s` is from the start to the end of the last request. A figure is None when the server
    did not say what it takes.
    """

    elapsed_s: float
    num_requests: int
    num_ok: int
    errors: dict[str, int]
    requests_per_s: float
    output_tokens_per_s: float | None
    input_tokens_per_s: float | None
    num_output_tokens: int | None
    num_short: int  # answers that ended before as many tokens as were asked for
    output_tokens_counted_by: str  # "usage", "events", "nothing", or several of them
    prompt_tokens: Spread | None
    output_tokens: Spread | None
    tokens_per_event: float | None
    events_per_s: float
    ttft_s: Spread | None
    itl_s: Spread | None  # between events with output, all streams' together
    e2e_s: Spread | None
    goodput: Goodput | None


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, at least one; between two of them, in proportion."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Iterable[float]) -> Spread | None:
    """None when there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(fmean(ordered), *(percentile(ordered, percent) for percent in (50, 90, 99)))


def find_goodput(outcomes: Sequence[Outcome], objective: Objective, elapsed_s: float) -> Goodput:
    num_good = sum(objective.is_met(outcome) for outcome in outcomes)
    return Goodput(objective, num_good / max(len(outcomes), 1), num_good / elapsed_s)


def parse_objective(text: str) -> Objective:
    """`ttft=0.5,itl=0.05`, in seconds. Raises ConfigError."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in OBJECTIVES:
            raise ConfigError(f"no objective is called `{name}`", hint=suggest(name, OBJECTIVES))
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if not 0 < limits[name] < math.inf:
            raise ConfigError(
                f"`{part}` must give a number of seconds above 0", hint="such as `ttft=0.5`"
            )
    return Objective(**limits)


def summarize(
    outcomes: Sequence[Outcome], elapsed_s: float, objective: Objective | None = None
) -> Summary:
    good = [outcome for outcome in outcomes if outcome.is_ok]
    failures = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    num_output_tokens = _total(outcome.output_tokens for outcome in good)
    num_input_tokens = _total(outcome.prompt_tokens for outcome in good)
    num_events = sum(outcome.num_events for outcome in good)
    return Summary(
        elapsed_s=elapsed_s,
        num_requests=len(outcomes),
        num_ok=len(good),
        errors=dict(failures.most_common()),
        requests_per_s=len(good) / elapsed_s,
        output_tokens_per_s=_per_s(num_output_tokens, elapsed_s),
        input_tokens_per_s=_per_s(num_input_tokens, elapsed_s),
        num_output_tokens=num_output_tokens,
        num_short=sum(_is_short(outcome) for outcome in good),
        output_tokens_counted_by=" and ".join(sorted({one.counted_by for one in good})),
        prompt_tokens=spread(one.prompt_tokens for one in good if one.prompt_tokens is not None),
        output_tokens=spread(one.output_tokens for one in good if one.output_tokens is not None),
        tokens_per_event=num_output_tokens / num_events
        if num_output_tokens and num_events
        else None,
        events_per_s=num_events / elapsed_s,
        ttft_s=spread(one.ttft_s for one in good if one.ttft_s is not None),
        itl_s=spread(gap for one in good for gap in one.gaps_s),
        e2e_s=spread(one.latency_s for one in good),
        goodput=None if objective is None else find_goodput(outcomes, objective, elapsed_s),
    )


def _is_short(outcome: Outcome) -> bool:
    return outcome.output_tokens is not None and outcome.output_tokens < outcome.asked_tokens


def _total(counts: Iterable[int | None]) -> int | None:
    """None unless every count is known: a part of a sum is no sum."""
    known = list(counts)
    return None if not known or None in known else sum(count or 0 for count in known)


def _per_s(total: int | None, elapsed_s: float) -> float | None:
    return None if total is None else total / elapsed_s
