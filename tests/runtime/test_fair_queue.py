"""Whose turn it is: fair between tenants, by priority within one, first come first served else."""

from __future__ import annotations

import random

from deepinfer.runtime.queue import FairQueue
from tests.runtime.running import request


def order(turns: FairQueue) -> list[str]:
    taken: list[str] = []
    while (next_ := turns.peek()) is not None:
        turns.take(next_)
        taken.append(next_.request_id)
    return taken


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    turns = FairQueue()
    for i in range(50):
        turns.add(request(str(i)), "", 0)
    assert order(turns) == [str(i) for i in range(50)]


def test_lower_priority_numbers_come_first() -> None:
    turns = FairQueue()
    for name, priority in [("late", 5), ("usual", 0), ("first", -3), ("also late", 5)]:
        turns.add(request(name), "", priority)
    assert order(turns) == ["first", "usual", "late", "also late"]


def test_backlog_of_one_tenant_does_not_starve_another() -> None:
    turns = FairQueue()
    for i in range(100):
        turns.add(request(f"a{i}"), "a", 0)
    turns.add(request("b0"), "b", 10)
    turns.add(request("b1"), "b", 10)
    assert order(turns)[:4] == ["a0", "b0", "a1", "b1"]


def test_shares_are_of_tokens_and_not_of_requests() -> None:
    turns = FairQueue()
    for i in range(20):
        turns.add(request(f"long{i}", (1,), 399), "a", 0)
        turns.add(request(f"short{i}", (1,), 99), "b", 0)
    first = order(turns)[:20]
    assert sum(name.startswith("short") for name in first) == 16


def test_tenant_that_comes_again_and_again_does_not_starve_a_backlog() -> None:
    turns = FairQueue()
    for i in range(10):
        turns.add(request(f"a{i}"), "a", 0)
    taken: list[str] = []
    for i in range(10):
        turns.add(request(f"b{i}"), "b", 0)
        next_ = turns.peek()
        assert next_ is not None
        turns.take(next_)
        taken.append(next_.request_id)
    assert sum(name.startswith("a") for name in taken) == 5


def test_pause_earns_nothing() -> None:
    turns = FairQueue()
    for i in range(40):
        turns.add(request(f"a{i}"), "a", 0)
    for _ in range(20):
        next_ = turns.peek()
        assert next_ is not None
        turns.take(next_)
    for i in range(20):
        turns.add(request(f"b{i}"), "b", 0)
    assert sum(name.startswith("b") for name in order(turns)[:20]) in (10, 11)


def test_removed_requests_never_come_and_leave_nothing_behind() -> None:
    turns = FairQueue()
    rng = random.Random(5)
    turns.add(request("head"), "a", -1)
    for i in range(2_000):
        turns.add(request(str(i)), "a", rng.randint(0, 9))
        assert turns.remove(str(i)) is not None
    assert turns.remove("nobody") is None
    assert len(turns._backlogs["a"].order) < 100
    assert order(turns) == ["head"]
    assert len(turns) == 0
