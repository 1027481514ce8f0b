"""What several API processes hold in common: limits that hold over all, figures, responses."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from deepinfer.config import LimitsSection
from deepinfer.engine import Load
from deepinfer.errors import RateLimitExceeded
from deepinfer.generation import FinishReason
from deepinfer.server.limits import Allowance, RateLimiter
from deepinfer.server.metrics import make_collector, make_registry
from deepinfer.server.responses_api.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)
from deepinfer.server.responses_api.store import StoredResponse
from deepinfer.server.shared.counts import SharedCounts, drop_running
from deepinfer.server.shared.figures import FigureShelf, bury
from deepinfer.server.shared.ledger import Ledger
from deepinfer.server.shared.responses import SharedResponses
from deepinfer.server.state import ServerState
from tests.server.test_limits import Clock
from tests.server.test_metrics import MODEL, ROUTER, Samples, parse, value
from tests.server.test_responses_store import OWNER, STRANGER, message, stored
from tests.server.watched import WatchedClient, make_state

Open = Callable[[Path], Ledger]


@pytest.fixture
def open_ledger() -> Iterator[Open]:
    """Opens the ledger of a folder, as each process does, and closes it after the test."""
    with ExitStack() as opened:

        def open_(folder: Path) -> Ledger:
            return opened.enter_context(closing(Ledger(folder)))

        yield open_


# Limits


class Counting:
    """Workers of one server, each with a connection of its own, and a clock that is the test's."""

    def __init__(self, open_ledger: Open, folder: Path, **limits: int) -> None:
        self.clock = Clock()
        self.limits = LimitsSection(**limits)
        self.ledgers = [open_ledger(folder), open_ledger(folder)]
        self.limiters = [
            RateLimiter(SharedCounts(ledger, worker, self.clock), self.clock)
            for worker, ledger in enumerate(self.ledgers, start=1)
        ]

    def enter(self, worker: int) -> Allowance:
        allowance = self.limiters[worker - 1].allowance("alice", self.limits)
        allowance.enter()
        return allowance

    def header(self, worker: int, name: str) -> str:
        headers = self.limiters[worker - 1].allowance("alice", self.limits).headers()
        return dict(headers)[f"x-ratelimit-{name}".encode()].decode()


def test_requests_of_a_minute_are_counted_together(tmp_path: Path, open_ledger: Open) -> None:
    counting = Counting(open_ledger, tmp_path, requests_per_minute=3)
    for worker in (1, 2, 1):
        counting.enter(worker)
    counting.clock.now += 20
    for worker in (1, 2, 2):
        with pytest.raises(RateLimitExceeded, match="the next minute begins in 40 s"):
            counting.enter(worker)
    assert counting.header(2, "remaining-requests") == "0"
    assert counting.header(1, "reset-requests") == "40s"
    counting.clock.now += 40
    counting.enter(2)
    assert counting.header(1, "remaining-requests") == "2"


def test_running_requests_are_counted_together_and_end_with_their_process(
    tmp_path: Path, open_ledger: Open
) -> None:
    counting = Counting(open_ledger, tmp_path, concurrent_requests=2, requests_per_minute=4)
    first = counting.enter(1)
    counting.enter(1)
    with pytest.raises(RateLimitExceeded, match="At most 2 requests may run"):
        counting.enter(2)
    first.leave()
    counting.enter(2)
    drop_running(counting.ledgers[1], 1)
    counting.enter(2)  # the fourth: what was refused counts for nothing
    with pytest.raises(RateLimitExceeded):
        counting.enter(1)


def test_tokens_are_held_and_given_back_for_all(tmp_path: Path, open_ledger: Open) -> None:
    counting = Counting(open_ledger, tmp_path, tokens_per_minute=100)
    first, second = counting.enter(1), counting.enter(2)
    first.reserve(10, 60)
    with pytest.raises(RateLimitExceeded, match="30 are left"):
        second.reserve(10, 21)
    first.settle(15)
    assert counting.header(2, "remaining-tokens") == "85"
    second.reserve(10, 75)
    counting.clock.now += 61
    second.settle(0)  # into a minute that is over
    assert counting.header(1, "remaining-tokens") == "100"


RACE = """
import sys
from pathlib import Path
from deepinfer.config import LimitsSection
from deepinfer.errors import RateLimitExceeded
from deepinfer.server.limits import RateLimiter
from deepinfer.server.shared.counts import SharedCounts
from deepinfer.server.shared.ledger import Ledger
limiter = RateLimiter(SharedCounts(Ledger(Path(sys.argv[1])), int(sys.argv[2])))
print("ready", flush=True)
sys.stdin.readline()
num_let_in = 0
for _ in range(2000):
    allowance = limiter.allowance("alice", LimitsSection(requests_per_minute=1777))
    try:
        allowance.enter()
    except RateLimitExceeded:
        continue
    num_let_in += 1
    allowance.leave()
print(num_let_in, flush=True)
"""


def test_limit_holds_exactly_while_processes_count_at_once(
    tmp_path: Path, open_ledger: Open
) -> None:
    ledger = open_ledger(tmp_path)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for worker in (1, 2)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    let_in = [int(racer.communicate()[0]) for racer in racers]
    assert sum(let_in) == 1777
    assert SharedCounts(ledger, 3).running("alice") == 0


# Figures


def worker_state(ledger: Ledger, folder: Path, worker: int) -> tuple[ServerState, WatchedClient]:
    shelf = FigureShelf(ledger, worker)
    return make_state(folder / f"echo-{worker}", shelf=shelf)


def scrape(state: ServerState) -> Samples:
    return parse(generate_latest(make_registry(state.engines, state.meter, state.shelf)).decode())


def save(state: ServerState) -> None:
    assert state.shelf is not None
    make_collector(state.engines, state.meter, state.shelf).save()


def test_whoever_is_asked_adds_up_what_all_have_counted(tmp_path: Path, open_ledger: Open) -> None:
    (first, _), (second, _) = (
        worker_state(open_ledger(tmp_path), tmp_path, worker) for worker in (1, 2)
    )
    for state, num_tokens in ((first, 30), (second, 12)):
        meter = state.engines.default.meter
        meter.prompt_tokens = num_tokens
        meter.num_finished[FinishReason.STOP] += 1
        meter.output_len.observe(num_tokens)
        state.meter.num_open_streams = 2
    first.meter.num_responses["/only-first", 200] += 1
    save(first)
    samples = scrape(second)
    assert value(samples, "deepinfer_prompt_tokens_total") == 42
    finished = {**MODEL, "finish_reason": "stop"}
    assert value(samples, "deepinfer_request_success_total", finished) == 2
    assert value(samples, "deepinfer_output_length_tokens_sum") == 42
    assert value(samples, "deepinfer_output_length_tokens_bucket", {**MODEL, "le": "16.0"}) == 1
    assert value(samples, "deepinfer_open_streams", {}) == 4
    only_first = {"route": "/only-first", "status": "200"}
    assert value(samples, "deepinfer_http_responses_total", only_first) == 1
    assert scrape(first).keys() == samples.keys()


def test_what_the_engine_says_is_said_once(tmp_path: Path, open_ledger: Open) -> None:
    workers = [worker_state(open_ledger(tmp_path), tmp_path, worker) for worker in (1, 2)]
    for _, engine in workers:
        engine.load, engine.num_restarts, engine.num_resumed = Load(3, 2, 40), 1, 4
    save(workers[0][0])
    samples = scrape(workers[1][0])
    assert value(samples, "trtllm_num_requests_running", ROUTER) == 3
    assert value(samples, "deepinfer_requests_waiting") == 2
    assert value(samples, "deepinfer_engine_restarts_total") == 1
    assert value(samples, "deepinfer_engine_ready") == 1
    # Each process resumes its own.
    assert value(samples, "deepinfer_requests_resumed_total") == 8


def test_counters_never_fall_when_processes_die(tmp_path: Path, open_ledger: Open) -> None:
    ledger = open_ledger(tmp_path)
    survivor, _ = worker_state(open_ledger(tmp_path), tmp_path, 100)
    told = 0.0
    for worker in range(1, 4):
        dying, _ = worker_state(open_ledger(tmp_path), tmp_path, worker)
        dying.engines.default.meter.prompt_tokens = 10
        dying.meter.num_open_streams = 1
        # It has told somebody, and has no time for anything else.
        before = value(scrape(dying), "deepinfer_prompt_tokens_total")
        assert before == told + 10
        bury(ledger, worker)
        samples = scrape(survivor)
        told = value(samples, "deepinfer_prompt_tokens_total") or 0
        assert told == before
        assert value(samples, "deepinfer_open_streams", {}) == 0
    rows = ledger.run("SELECT worker FROM figures ORDER BY worker")
    assert rows == [(0,), (100,)]


# Stored responses


def test_response_is_found_whoever_made_it(tmp_path: Path, open_ledger: Open) -> None:
    one, other = (SharedResponses(open_ledger(tmp_path)) for _ in range(2))
    one.put(stored("a", "hi"))
    assert other.find("a", OWNER) == stored("a", "hi")
    assert other.find("a", STRANGER) is None
    other.delete("a")
    one.delete("a")
    assert one.find("a", OWNER) is None


def test_number_and_size_of_responses_are_bounded_over_all(
    tmp_path: Path, open_ledger: Open
) -> None:
    def drop_from(folder: Path, **bounds: int) -> Counter[str]:
        folder.mkdir()
        one, other = (SharedResponses(open_ledger(folder), **bounds) for _ in range(2))
        one.put(stored("a", "x" * 1000))
        other.put(stored("b", "x" * 1000))
        assert one.find("a", OWNER) is not None
        one.put(stored("c", "x" * 1000))
        return Counter(id_ for id_ in "abc" if other.find(id_, OWNER) is not None)

    size = stored("a", "x" * 1000).size_bytes
    kept = {"a": 1, "c": 1}
    assert drop_from(tmp_path / "number", max_responses=2) == kept
    assert drop_from(tmp_path / "size", max_bytes=2 * size) == kept
    alone = SharedResponses(open_ledger(tmp_path), max_bytes=size)
    alone.put(stored("large", "x" * 3000))
    assert len(alone) == 0


def test_every_kind_of_item_comes_back_as_it_was(tmp_path: Path, open_ledger: Open) -> None:
    input_: tuple[Item, ...] = (
        message("🎉"),
        FunctionCallItem(id="fc_1", call_id="c", name="f", arguments="{}"),
        FunctionCallOutputItem(id="fo_1", call_id="c", output="1"),
    )
    output: tuple[Item, ...] = (
        ReasoningItem(id="rs_1", content=[ReasoningText(text="hm")]),
        MessageItem(id="msg_2", role="assistant", content=[OutputText(text="yes")]),
    )
    response = StoredResponse("a", OWNER, b"{}", input_, output)
    SharedResponses(open_ledger(tmp_path)).put(response)
    assert SharedResponses(open_ledger(tmp_path)).find("a", OWNER) == response
