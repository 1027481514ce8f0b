"""What became of one request, as the client saw it. Times are in seconds on one clock."""

from __future__ import annotations

from array import array
from typing import Literal

import msgspec

CountedBy = Literal["usage", "events", "nothing"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Whole when `error` is None. `started_at` is when the request was due, not when it got away.

    `output_at` has the moment of each event that carried output, as the bytes of an array of
    doubles: a run may have millions of them.
    """

    started_at: float
    ended_at: float
    output_at: bytes = b""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    asked_tokens: int = 0
    counted_by: CountedBy = "nothing"
    error: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def times(self) -> array[float]:
        times: array[float] = array("d")
        times.frombytes(self.output_at)
        return times

    @property
    def num_events(self) -> int:
        return len(self.output_at) // array("d").itemsize

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.started_at

    @property
    def ttft_s(self) -> float | None:
        """Time to the first event with output; None when the answer came whole."""
        times = self.times
        return times[0] - self.started_at if times else None

    @property
    def gaps_s(self) -> list[float]:
        """Between one event with output and the next."""
        times = self.times
        return [times[i] - times[i - 1] for i in range(1, len(times))]

    @property
    def mean_itl_s(self) -> float | None:
        """Mean time a token after the first; None when there is no second."""
        times, count = self.times, self.output_tokens or 0
        return (times[-1] - times[0]) / (count - 1) if len(times) > 1 and count > 1 else None


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that one process has to say of its share of a load."""

    outcomes: list[Outcome]
    started_at: float
    ended_at: float  # of the last request
    cpu_share: float  # of one core, that the client itself took
    max_lag_s: float  # by which it sent a request of an open loop too late
