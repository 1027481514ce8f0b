"""Grammars on OpenVINO: tried in a process of its own before the engine sees them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from deepinfer.backends import openvino_grammars
from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino_grammars import GrammarGate
from deepinfer.engine import EngineOptions
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenChunk,
)
from deepinfer.text import ebnf
from deepinfer.text.tokenizer import Tokenizer
from tests.building import BuildEngine

EXPLOSIVE = Grammar("regex", "(((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000})", param="p")
GOOD = Grammar("regex", "[a-c]{5}")
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def backend(build_engine: BuildEngine) -> Iterator[Backend]:
    engine = build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "8").engine
    options = EngineOptions(kv_cache_bytes=64 << 20)
    backend = load_backend(engine, options, lambda phase, percent: None)
    yield backend
    backend.close()


def make_request(id_: str, grammar: Grammar | None, max_tokens: int = 20) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1, grammar=grammar)
    return GenerationRequest(request_id=id_, prompt_token_ids=(20, 21), sampling=sampling)


def step_until(backend: Backend, id_: str) -> list[TokenChunk]:
    """Every chunk until the one that ends request `id_`."""
    chunks: list[TokenChunk] = []
    deadline = time.monotonic() + DEADLINE_S
    while not any(c.request_id == id_ and c.finish_reason is not None for c in chunks):
        assert time.monotonic() < deadline
        chunks += backend.step()
    return chunks


def run(backend: Backend, id_: str, grammar: Grammar) -> TokenChunk:
    backend.check(make_request(id_, grammar))
    backend.add(make_request(id_, grammar))
    return [chunk for chunk in step_until(backend, id_) if chunk.request_id == id_][-1]


def test_good_grammar_is_followed_to_its_end(backend: Backend) -> None:
    assert run(backend, "a", Grammar("regex", "[a-c]{5}")).finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    "text", ["éA", "ÿf Zoë's été", "a\x7fb", "\x85A", "\x01A", "日本A", 'q"\\A']
)
def test_literal_is_written_as_it_is(
    backend: Backend, build_engine: BuildEngine, text: str
) -> None:
    """xgrammar reads a hex digit after some characters as a part of their escape."""
    engine = build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "8").engine
    grammar = Grammar("ebnf", ebnf.choice_grammar([text]))
    backend.add(make_request("literal", grammar, max_tokens=60))
    chunks = step_until(backend, "literal")
    token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
    assert Tokenizer.load(engine.tokenizer_dir).decode(token_ids) == text


def test_bad_grammar_ends_its_request_only(backend: Backend) -> None:
    backend.add(make_request("other", None, max_tokens=8))
    chunk = run(backend, "bad", Grammar("regex", "[a-c", param="guided_regex"))
    assert chunk.finish_reason is FinishReason.ERROR
    assert chunk.refused_param == "guided_regex"
    assert chunk.message is not None and "Unclosed" in chunk.message and "/" not in chunk.message
    assert run(backend, "good", Grammar("regex", "ab")).finish_reason is FinishReason.STOP


def test_others_are_stepped_while_a_grammar_is_tried(backend: Backend) -> None:
    run(backend, "start", Grammar("regex", "a"))
    backend.add(make_request("explosive", EXPLOSIVE))
    backend.add(make_request("plain", None, max_tokens=30))
    ended: list[str] = []
    while len(ended) < 2:
        ended += [chunk.request_id for chunk in backend.step() if chunk.finish_reason is not None]
    assert ended == ["plain", "explosive"]  # thirty steps were made while the trial went on


@pytest.fixture
def gate(build_engine: BuildEngine) -> Iterator[GrammarGate]:
    engine = build_engine("llama", "fp32", "--max-seq-len", "512", "--max-batch-size", "8").engine
    gate = GrammarGate(engine.payload_dir, vocab_size=512)
    yield gate
    gate.close()


def try_grammar(gate: GrammarGate, grammar: Grammar) -> str | None:
    gate.hold(make_request("tried", grammar), "", is_admitted=True)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for _, fault in gate.release(0.01, is_admitted=True):
            return fault
    raise AssertionError("no verdict")


def test_verdict_is_kept(gate: GrammarGate, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = try_grammar(gate, Grammar("regex", "[a"))
    assert fault is not None and "Unclosed" in fault
    monkeypatch.setattr(openvino_grammars, "TRIAL_CPU_S", -1.0)  # too little for any trial
    assert try_grammar(gate, Grammar("regex", "[a")) == fault


def test_verdict_that_only_time_has_given_is_not_kept(
    gate: GrammarGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert try_grammar(gate, Grammar("regex", "first")) is None
    assert gate._trial is not None
    os.kill(gate._trial.process.pid, signal.SIGSTOP)  # so that no answer comes before
    with monkeypatch.context() as patched:
        patched.setattr(openvino_grammars, "TRIAL_CPU_S", -1.0)
        assert "takes longer" in (try_grammar(gate, GOOD) or "")
    assert try_grammar(gate, GOOD) is None


def test_time_in_which_the_process_waits_does_not_count(gate: GrammarGate) -> None:
    """As on a machine where others have the processors: the process is stopped meanwhile."""
    assert try_grammar(gate, Grammar("regex", "first")) is None
    assert gate._trial is not None
    gate.hold(make_request("waits", GOOD), "", is_admitted=True)
    os.kill(gate._trial.process.pid, signal.SIGSTOP)
    ends_at = time.monotonic() + 2 * openvino_grammars.TRIAL_CPU_S
    while time.monotonic() < ends_at:
        assert not list(gate.release(0.05, is_admitted=True))
    os.kill(gate._trial.process.pid, signal.SIGCONT)
    assert try_grammar(gate, GOOD) is None


def test_requests_of_one_grammar_share_a_time_out(gate: GrammarGate) -> None:
    """So that the choices of one request do not each take their time."""
    for index in range(3):
        gate.hold(make_request(f"choice-{index}", EXPLOSIVE), "", is_admitted=True)
    released: list[str | None] = []
    deadline = time.monotonic() + DEADLINE_S
    while not released and time.monotonic() < deadline:
        released = [fault for _, fault in gate.release(0.05, is_admitted=True)]
    assert len(released) == 3 and None not in released


def test_request_that_is_cancelled_on_trial_never_starts(backend: Backend) -> None:
    backend.add(make_request("gone", Grammar("regex", "[x-z]{9}")))
    backend.cancel("gone")
    backend.add(make_request("stays", None))
    assert {chunk.request_id for chunk in step_until(backend, "stays")} == {"stays"}
