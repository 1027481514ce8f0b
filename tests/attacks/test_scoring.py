"""Log probabilities of a long prompt: scored in pieces that take others no longer than a step."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepinfer.backends import openvino_scoring
from deepinfer.backends.openvino_scoring import MAX_PIECE_TOKENS, PIECE_S, Scorer
from deepinfer.generation import FinishReason, GenerationRequest, SamplingParams, TokenChunk

PROMPT_LEN = 1_900
VOCAB_SIZE = 8


class Model:
    """Every token takes as long, by a clock of its own."""

    def __init__(self, token_s: float) -> None:
        self.token_s = token_s
        self.now = 0.0
        self.pieces: list[int] = []

    def feed(self, token_ids: tuple[int, ...]) -> Any:
        self.pieces.append(len(token_ids))
        self.now += len(token_ids) * self.token_s
        return np.zeros((len(token_ids), VOCAB_SIZE), dtype=np.float32)


@pytest.mark.parametrize("token_s", [0.0001, 0.002, 0.02, 1.0])
def test_piece_of_a_long_prompt_takes_as_long_as_a_step(token_s: float) -> None:
    model = Model(token_s)
    scorer = Scorer(Path(), {}, None, np, clock=lambda: model.now)
    sampling = SamplingParams(max_tokens=1, num_log_probs=2, with_prompt_log_probs=True)
    request = GenerationRequest(
        request_id="a", prompt_token_ids=(1,) * PROMPT_LEN, sampling=sampling
    )
    scorer._compiled = object()
    scorer._sequences["a"] = openvino_scoring._Sequence(request, model)  # type: ignore[arg-type]
    scorer._choose_piece(model)
    model.pieces.clear()
    waiting = [TokenChunk("a", (2,), FinishReason.LENGTH)]
    ready: list[TokenChunk] = []
    while not ready:
        ready, waiting = scorer.pass_on(waiting), []
    assert len(ready[0].prompt_log_probs) == PROMPT_LEN and sum(model.pieces) == PROMPT_LEN
    assert max(model.pieces) <= MAX_PIECE_TOKENS
    assert max(model.pieces) * token_s <= max(PIECE_S, token_s) * 1.01
    # And not in smaller pieces than that needs, but for the last one.
    assert min(model.pieces[:-1]) >= min(MAX_PIECE_TOKENS, int(PIECE_S / token_s) - 1)
    assert len(set(model.pieces[:-1])) == 1  # so that the same scores come again


class Compiler:
    """A library that compiles when it is let, or fails to."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.fails = False

    def Core(self) -> Compiler:
        return self

    def compile_model(self, path: Path, device: str, properties: dict[str, Any]) -> Any:
        assert self.may_go_on.wait(60)
        if self.fails:
            raise RuntimeError("no memory")
        return SimpleNamespace(create_infer_request=lambda: None)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setattr(openvino_scoring, "_Model", lambda request, numpy: Model(0.001))
    return Compiler()


def make_request(request_id: str) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=1, num_log_probs=2)
    return GenerationRequest(request_id=request_id, prompt_token_ids=(1, 2), sampling=sampling)


def pass_until(scorer: Scorer, waiting: list[TokenChunk]) -> list[TokenChunk]:
    ready: list[TokenChunk] = []
    while not ready:
        ready, waiting = scorer.pass_on(waiting), []
    return ready


def test_others_go_on_while_the_model_is_compiled(compiler: Compiler) -> None:
    scorer = Scorer(Path(), {}, compiler, np)
    scorer.open(make_request("scored"))
    other = TokenChunk("other", (3,))
    for _ in range(10):
        assert scorer.pass_on([other]) == [other]
    assert scorer.pass_on([TokenChunk("scored", (3,), FinishReason.LENGTH), other]) == [other]
    compiler.may_go_on.set()
    (chunk,) = pass_until(scorer, [])
    assert (chunk.request_id, len(chunk.log_probs)) == ("scored", 1)


def test_model_that_cannot_be_compiled_ends_those_who_need_it_and_is_tried_again(
    compiler: Compiler,
) -> None:
    scorer = Scorer(Path(), {}, compiler, np)
    compiler.fails = True
    compiler.may_go_on.set()
    scorer.open(make_request("first"))
    (chunk,) = pass_until(scorer, [])
    assert (chunk.request_id, chunk.finish_reason) == ("first", FinishReason.ERROR)
    compiler.fails = False
    scorer.open(make_request("second"))
    (chunk,) = pass_until(scorer, [TokenChunk("second", (3,), FinishReason.LENGTH)])
    assert chunk.log_probs and chunk.finish_reason is FinishReason.LENGTH
