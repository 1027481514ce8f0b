"""Numbers that are 0, 1 or infinite to a library with 32 bits, and neither in JSON's 64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deepinfer.backends.base import Backend
from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino import OpenVinoBackend
from deepinfer.engine import EngineOptions
from deepinfer.errors import DeepInferError
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    Grammar,
    SamplingParams,
    TokenChunk,
    as_float32,
)
from tests.backends.test_promises import make_request, tokens
from tests.building import BuildEngine
from tests.server.serving import client_of, make_echo_engine, serving

TINY = (1e-300, 1e-45, 1e-38)
NEARLY_ONE = (0.9999999999,)
HUGE = (3.5e38, 1e300)
FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
ROUTES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/completions": ({"prompt": "a b"}, FIELDS),
    "/v1/chat/completions": ({"messages": [{"role": "user", "content": "a"}]}, FIELDS),
    "/v1/responses": ({"input": "a"}, FIELDS),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
        ("temperature", "top_p"),
    ),
}
VICTIM_TOKENS = 200


@pytest.fixture(scope="module")
def backend(build_engine: BuildEngine) -> Iterator[Backend]:
    engine = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8").engine
    loaded = load_backend(engine, EngineOptions(kv_cache_bytes=2**20), lambda *_: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    engine = make_echo_engine(tmp_path_factory.mktemp("numbers") / "echo")
    with serving(engine.path) as server, client_of(server) as client:
        yield client


def ends(backend: Backend, request: GenerationRequest, others: list[TokenChunk]) -> TokenChunk:
    """The last chunk of `request`, whatever it comes to; those of other requests go to `others`."""
    try:
        backend.add(request)
    except DeepInferError as error:
        return TokenChunk(
            request.request_id, finish_reason=FinishReason.ERROR, message=error.message
        )
    last = None
    while last is None:
        for chunk in backend.step():
            if chunk.request_id != request.request_id:
                others.append(chunk)
            elif chunk.finish_reason is not None:
                last = chunk
    return last


def test_whatever_fails_while_a_request_starts_ends_that_request_only(backend: Backend) -> None:
    expected = tokens([*_run(backend, make_request("alone", max_tokens=VICTIM_TOKENS))])
    names = itertools.count()
    values = [
        {name: value}
        for name in FIELDS
        for value in (*TINY, *NEARLY_ONE, *HUGE)
        if name not in ("top_p", "min_p") or value <= 1
    ]
    victims: list[TokenChunk] = []
    backend.add(make_request("victim", max_tokens=VICTIM_TOKENS))
    # With a grammar a request starts inside of a step, where everybody's tokens come from.
    grammar = Grammar("regex", "a", param="guided_regex")
    for sampling in values:
        for more in ({}, {"grammar": grammar}):
            asked = {"temperature": 1.0, "seed": 1} | sampling | more
            last = ends(backend, make_request(f"{next(names)}", max_tokens=1, **asked), victims)
            assert last.finish_reason is not FinishReason.INTERRUPTED, asked
    while not victims or victims[-1].finish_reason is None:
        victims += backend.step()
    assert tokens(victims) == expected


def _run(backend: Backend, request: GenerationRequest) -> Iterator[TokenChunk]:
    backend.add(request)
    while True:
        for chunk in backend.step():
            yield chunk
            if chunk.finish_reason is not None:
                return


def test_answer_whose_grammar_cannot_be_tried_ends_alone(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(backend, OpenVinoBackend) and backend._gate is not None

    def fail(*_: object) -> None:
        raise OSError("no process to be had")

    victims: list[TokenChunk] = []
    backend.add(make_request("victim", max_tokens=30))
    with monkeypatch.context() as patched:
        patched.setattr(backend._gate, "_advance", fail)
        grammar = Grammar("regex", "untried", param="guided_regex")
        last = ends(backend, make_request("tried", grammar=grammar), victims)
    assert last.finish_reason is FinishReason.ERROR
    while not victims or victims[-1].finish_reason is None:
        victims += backend.step()
    assert len(tokens(victims)) == 30


def test_request_that_cannot_be_scored_ends_alone(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepinfer.backends import openvino_scoring

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    victims: list[TokenChunk] = []
    backend.add(make_request("victim", max_tokens=30))
    with monkeypatch.context() as patched:
        patched.setattr(openvino_scoring._Model, "feed", fail)
        last = ends(backend, make_request("scored", max_tokens=9, num_log_probs=2), victims)
    assert last.finish_reason is FinishReason.ERROR
    while not victims or victims[-1].finish_reason is None:
        victims += backend.step()
    assert len(tokens(victims)) == 30
    assert backend.step() == [] and backend.num_used_blocks == 0


@pytest.mark.parametrize("route", ROUTES)
def test_number_is_served_or_refused_by_name_on_every_route(http: httpx.Client, route: str) -> None:
    body, fields = ROUTES[route]
    for name in fields:
        for value in (*TINY, *NEARLY_ONE, *HUGE, -1e-300):
            answer = http.post(route, json=body | {name: value})
            assert answer.status_code in (200, 400), (name, value, answer.text)
            if answer.status_code == 400:
                assert f"`{name}`" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("temperature", 1e-300, 200),
        ("top_p", 1e-300, 200),
        ("min_p", 0.9999999999, 200),
        ("repetition_penalty", 1e-300, 400),
        ("repetition_penalty", 1e-38, 400),
        ("temperature", 1e300, 400),
        ("presence_penalty", 1e-300, 200),
    ],
)
def test_value_means_the_same_in_32_bits_as_what_it_is_next_to(
    http: httpx.Client, name: str, value: float, status: int
) -> None:
    asked = {"prompt": "a b", "max_tokens": 1, "guided_regex": "a", name: value}
    assert http.post("/v1/completions", json=asked).status_code == status


def test_numbers_of_32_bits_are_decided_once() -> None:
    assert as_float32(1e-300) == as_float32(1e-40) == as_float32(-1e-39) == 0
    assert as_float32(0.9999999999) == 1
    assert as_float32(0.25) == 0.25
    assert SamplingParams(max_tokens=1, min_p=as_float32(0.9999999999)).is_greedy
    assert SamplingParams(max_tokens=1, top_p=as_float32(1e-300)).is_greedy
