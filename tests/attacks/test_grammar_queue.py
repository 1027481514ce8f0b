"""Many grammars of one key: others are served meanwhile, and memory has an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from deepinfer.backends import openvino_grammars
from deepinfer.backends.base import BackendFault
from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino_grammars import FULL, GrammarGate
from deepinfer.engine import EngineOptions
from deepinfer.generation import FinishReason, GenerationRequest, Grammar, SamplingParams
from deepinfer.manifest import EngineFolder
from tests.backends.test_grammars import EXPLOSIVE
from tests.building import BuildEngine
from tests.runtime.running import collect, connected, until

DEADLINE_S = 120.0
OPTIONS = EngineOptions(kv_cache_bytes=64 << 20)


@pytest.fixture
def engine(build_engine: BuildEngine) -> EngineFolder:
    return build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "8").engine


@pytest.fixture
def gate(engine: EngineFolder) -> Iterator[GrammarGate]:
    gate = GrammarGate(engine.payload_dir, engine.manifest.tokens.vocab_size)
    yield gate
    gate.close()


def make_request(id_: str, grammar: Grammar | None) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=8, seed=1, grammar=grammar)
    return GenerationRequest(request_id=id_, prompt_token_ids=(20, 21), sampling=sampling)


def release(gate: GrammarGate, count: int) -> list[tuple[str, str | None]]:
    """The next decisions: the id of each request, and what is wrong with its grammar."""
    found: list[tuple[str, str | None]] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(found) < count:
        assert time.monotonic() < deadline
        released = gate.release(0.01, is_admitted=False)
        found += [(request.request_id, fault) for request, fault in released]
    return found


def test_keys_take_turns_to_have_grammars_tried(gate: GrammarGate) -> None:
    for i in range(6):
        request = make_request(f"crowd-{i}", Grammar("regex", f"[a-c]{{{i + 1}}}"))
        gate.hold(request, "crowd", is_admitted=False)
    gate.hold(make_request("other", Grammar("regex", "x")), "other", is_admitted=False)
    order = [request_id for request_id, _ in release(gate, 7)]
    assert order.index("other") <= 1
    assert [name for name in order if name != "other"] == [f"crowd-{i}" for i in range(6)]


def test_grammars_that_the_engine_keeps_have_an_end(
    gate: GrammarGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Grammar("regex", "[a-c]{5}"), Grammar("regex", "[a-c]{6}")
    gate.hold(make_request("first", first), "", is_admitted=False)
    assert release(gate, 1) == [("first", None)]
    monkeypatch.setattr(openvino_grammars, "MAX_GRAMMAR_BYTES", -1)
    gate.hold(make_request("second", second), "", is_admitted=False)
    assert release(gate, 1) == [("second", FULL)]
    gate.hold(make_request("again", first), "", is_admitted=False)
    assert release(gate, 1) == [("again", None)] and gate.has_passed(make_request("", first))


def test_engine_full_of_grammars_starts_anew_when_nobody_is_in_it(
    engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load_backend(engine, OPTIONS, lambda phase, percent: None)
    try:
        backend.add(make_request("runs", None))
        monkeypatch.setattr(openvino_grammars, "MUCH_GRAMMAR_BYTES", -1)
        backend.add(make_request("beside", None))  # others are in it
        ended: set[str] = set()
        while len(ended) < 2:
            ended |= {chunk.request_id for chunk in backend.step() if chunk.finish_reason}
        with pytest.raises(BackendFault, match="grammars"):
            backend.add(make_request("next", None))
    finally:
        backend.close()


async def test_requests_whose_grammar_is_tried_take_no_slot(engine: EngineFolder) -> None:
    """As many of them as the engine takes at a time, and then one that could run at once."""
    async with connected(engine, OPTIONS) as client:
        slow = [make_request(f"slow-{i}", EXPLOSIVE) for i in range(8)]
        trying = asyncio.create_task(collect(client, *slow))
        await until(lambda: client.load.num_waiting == len(slow))
        answer = await asyncio.wait_for(collect(client, make_request("plain", None)), DEADLINE_S)
        assert answer["plain"].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert not trying.done() and client.load.num_running <= 1
        refused = await asyncio.wait_for(trying, DEADLINE_S)
        assert {chunk.finish_reason for chunk in refused.values()} == {FinishReason.ERROR}


async def test_good_grammar_is_admitted_after_its_trial(engine: EngineFolder) -> None:
    async with connected(engine, OPTIONS) as client:
        requests = [make_request(str(i), Grammar("regex", "[a-c]{5}")) for i in range(12)]
        answers = await asyncio.wait_for(collect(client, *requests), DEADLINE_S)
        reasons = {chunk.finish_reason for chunk in answers.values()}
        assert len(answers) == 12 and reasons <= {FinishReason.STOP, FinishReason.LENGTH}
