"""A hung engine is told from a slow one by its processor time."""

from __future__ import annotations

import os

import pytest

from deepinfer.runtime.supervisor import Heartbeat, read_cpu_ticks


def watch(
    *seconds: tuple[float, int | None], is_loading: bool = False, is_busy: bool = True
) -> list[float]:
    """The times at which a fault was found; each entry is a time and the ticks at it."""
    heartbeat = Heartbeat(hang_timeout_s=10, heard_at=0)
    return [
        now
        for now, ticks in seconds
        if heartbeat.find_fault(now, ticks, is_loading=is_loading, is_busy=is_busy) is not None
    ]


def test_process_that_neither_answers_nor_computes_hangs() -> None:
    assert watch(*((t, 7) for t in range(1, 14))) == [12, 13]


def test_process_that_computes_is_only_slow() -> None:
    assert watch(*((t, t) for t in range(1, 200))) == []


def test_requests_that_never_get_a_token_are_a_hang_too() -> None:
    assert watch((599, 1), (601, 2)) == [601]
    assert watch((599, 1), (601, 2), is_busy=False) == []


def test_answers_alone_do_not_show_that_requests_advance() -> None:
    heartbeat = Heartbeat(hang_timeout_s=10, heard_at=0)
    faults: list[int] = []
    for now in range(1, 1300):
        heartbeat.hear(now)
        if now == 600:
            heartbeat.advance(now)
        if heartbeat.find_fault(now, 7, is_loading=False, is_busy=True) is not None:
            faults.append(now)
    assert faults[0] == 1201


def test_loading_may_wait_for_a_disk() -> None:
    quiet = ((0, 5), (100, 5), (121, 5))
    assert watch(*quiet, is_loading=True, is_busy=False) == [121]


def test_answer_starts_the_time_again() -> None:
    heartbeat = Heartbeat(hang_timeout_s=10, heard_at=0)
    heartbeat.find_fault(1, 5, is_loading=False, is_busy=True)
    heartbeat.hear(9)
    assert heartbeat.find_fault(18, 5, is_loading=False, is_busy=True) is None
    assert heartbeat.find_fault(20, 5, is_loading=False, is_busy=True) is not None


def test_nobody_is_accused_where_the_kernel_does_not_tell() -> None:
    assert watch((20, None), (40, None)) == []
    assert read_cpu_ticks(2**22 + 1) is None


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the kernel has no /proc")
def test_ticks_of_this_process_are_read() -> None:
    ticks = read_cpu_ticks(os.getpid())
    assert ticks is not None and ticks > 0
