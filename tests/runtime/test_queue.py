"""The bounds of the waiting queue and the account of the KV cache."""

from __future__ import annotations

import contextlib
import random

import pytest

from deepinfer.engine import Capacity
from deepinfer.errors import ContextLengthExceeded, QueueFull
from deepinfer.runtime.queue import AdmissionQueue, DrainRate
from tests.runtime.running import request

CAPACITY = Capacity(max_batch_size=4, num_blocks=10, tokens_per_block=32)


def make_queue(max_waiting: int = 5, max_waiting_tokens: int = 100) -> AdmissionQueue:
    return AdmissionQueue(CAPACITY, max_waiting, max_waiting_tokens)


def test_queue_is_bounded_by_requests() -> None:
    queue = make_queue()
    queue.put([request(str(i), (1,)) for i in range(5)])
    with pytest.raises(QueueFull, match="5 requests are waiting"):
        queue.put([request("x", (1,))])
    assert queue.num_waiting == 5


def test_queue_is_bounded_by_tokens() -> None:
    queue = make_queue()
    queue.put([request("a", (1,) * 60)])
    with pytest.raises(QueueFull, match="60 tokens are waiting"):
        queue.put([request("b", (1,) * 41)])
    queue.put([request("c", (1,) * 40)])


def test_call_beyond_the_bound_of_tokens_may_wait_alone() -> None:
    queue = make_queue()
    queue.put([request("a", (1,) * 150)])
    assert [admitted.request_id for admitted in queue.admit()] == ["a"]


def test_resumed_requests_are_taken_however_many_wait() -> None:
    queue = make_queue(max_waiting=1)
    for name in "abc":
        queue.put([request(name)], is_bounded=False)
    assert queue.num_waiting == 3


def test_request_that_never_fits_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded):
        make_queue().put([request("a", (1,) * 300, 30)])


def test_guesses_take_room_beside_each_sequence() -> None:
    capacity = Capacity(4, num_blocks=4, tokens_per_block=32, guesses_per_sequence=5)
    queue = AdmissionQueue(capacity, max_waiting=5, max_waiting_tokens=1_000)
    queue.put([request("a", (1,) * 50, 9), request("b", (1,) * 50, 10), request("c", (1,), 1)])
    assert [admitted.request_id for admitted in queue.admit()] == ["a"]
    queue.release("a")
    assert [admitted.request_id for admitted in queue.admit()] == ["b", "c"]
    with pytest.raises(ContextLengthExceeded):
        queue.put([request("d", (1,) * 100, 24)])


def test_account_is_even_after_any_history() -> None:
    rng = random.Random(3)
    queue = make_queue(max_waiting=50, max_waiting_tokens=5_000)
    admitted: list[str] = []
    for i in range(500):
        action = rng.random()
        if action < 0.5:
            with contextlib.suppress(QueueFull):
                queue.put([request(str(i), (1,) * rng.randint(1, 90), rng.randint(1, 200))],
                          tenant=rng.choice("ab"))  # fmt: skip
        elif action < 0.7:
            admitted += [taken.request_id for taken in queue.admit()]
        elif action < 0.85 and admitted:
            queue.release(admitted.pop(rng.randrange(len(admitted))))
        else:
            queue.remove_waiting(str(rng.randint(0, i)))
        assert 0 <= queue._num_free_blocks <= CAPACITY.num_blocks
    while queue.num_waiting or admitted:
        admitted += [taken.request_id for taken in queue.admit()]
        queue.release(admitted.pop())
    assert queue._num_free_blocks == CAPACITY.num_blocks
    assert queue._num_waiting_tokens == 0


def test_retry_after_follows_the_measured_rate() -> None:
    now = [0.0]
    rate = DrainRate(clock=lambda: now[0])
    assert rate.seconds_to_drain(100) == 5  # nothing is known yet
    for _ in range(20):
        now[0] += 0.5
        rate.record_finish()
    assert rate.seconds_to_drain(100) in (48, 49, 50)
    assert rate.seconds_to_drain(10**6) == 120
