"""The event loop's lag: measured, and what caused it named."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from deepinfer.server import loop_watch
from deepinfer.server.loop_watch import LoopWatch
from deepinfer.server.meter import LAG_BOUNDS_S, Histogram


def compute_without_end_in_sight(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        pass


async def watch(block_s: float) -> Histogram:
    lag = Histogram(LAG_BOUNDS_S)
    watch = LoopWatch(lag)
    watch.start()
    await asyncio.sleep(0)
    compute_without_end_in_sight(block_s)
    while not lag.cumulative_counts[-1]:
        await asyncio.sleep(loop_watch.TICK_S / 10)
    watch.stop()
    return lag


async def test_call_that_keeps_the_loop_is_named_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        lag = await watch(2.0)
    assert lag.sum >= 2.0 - loop_watch.TICK_S
    (line,) = (record.getMessage() for record in caplog.records)
    assert "compute_without_end_in_sight" in line and "test_loop_watch.py" in line


async def test_loop_that_is_not_late_is_not_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_watch, "LOGGED_LAG_S", 60.0)  # on a busy machine it may well be late
    with caplog.at_level(logging.WARNING):
        lag = await watch(0.0)
    assert lag.cumulative_counts[-1] == 1 and not caplog.records
