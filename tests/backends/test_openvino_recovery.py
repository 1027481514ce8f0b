"""An exception in the middle of a step of the real CPU library, and what is left of the backend."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec
import pytest

from deepinfer.backends.loading import load_backend
from deepinfer.backends.openvino import OpenVinoBackend
from deepinfer.engine import EngineOptions
from deepinfer.generation import FinishReason, GenerationRequest
from tests.backends.test_promises import make_request, run, tokens
from tests.building import BuildEngine

NUM_TOKENS = 48  # more than five steps bring, all guesses being right


@pytest.fixture(scope="module", params=["plain", "prompt lookup", "draft"])
def backend(request: pytest.FixtureRequest, build_engine: BuildEngine) -> Iterator[OpenVinoBackend]:
    engine = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8").engine
    options = EngineOptions(kv_cache_bytes=2**20)
    if request.param == "prompt lookup":
        options = msgspec.structs.replace(options, prompt_lookup=5)
    elif request.param == "draft":
        draft = build_engine("llama", "int4", "--max-seq-len", "256").engine
        options = msgspec.structs.replace(options, draft_engine=str(draft.path), draft_tokens=5)
    loaded = load_backend(engine, options, lambda *_: None)
    assert isinstance(loaded, OpenVinoBackend)
    yield loaded
    loaded.close()


def continued(request: GenerationRequest, emitted: tuple[int, ...]) -> GenerationRequest:
    rest = request.sampling.max_tokens - len(emitted)
    return msgspec.structs.replace(
        request,
        request_id=request.request_id + "~1",
        prompt_token_ids=request.prompt_token_ids + emitted,
        sampling=msgspec.structs.replace(request.sampling, max_tokens=rest),
    )


def test_poisoned_pipeline_is_recovered_in_place_and_requests_go_on_exactly(
    backend: OpenVinoBackend,
) -> None:
    requests = [make_request(str(i), (10 + i, 20 + i), NUM_TOKENS) for i in range(4)]
    alone = {request.request_id: tokens(chunks) for request in requests
             for chunks in run(backend, [request]).values()}  # fmt: skip
    emitted: dict[str, tuple[int, ...]] = {}
    for request in requests:
        backend.add(request)
    for _ in range(5):
        for chunk in backend.step():
            emitted[chunk.request_id] = emitted.get(chunk.request_id, ()) + chunk.token_ids
    # Two requests with one id make the library fail in the middle of its scheduling.
    fresh = backend._sequence_ids
    backend._sequence_ids = itertools.repeat(10**6)  # type: ignore[assignment]
    backend.add(make_request("twin a"))
    backend.add(make_request("twin b"))
    backend._sequence_ids = fresh
    lost: set[str] = set()
    while not lost:
        chunks = backend.step()
        lost |= {c.request_id for c in chunks if c.finish_reason is FinishReason.INTERRUPTED}
        for chunk in chunks:
            emitted[chunk.request_id] = emitted.get(chunk.request_id, ()) + chunk.token_ids
    assert lost >= set(alone)
    again = run(backend, [continued(request, emitted[request.request_id]) for request in requests])
    for name, expected in alone.items():
        assert emitted[name] + tokens(again[name + "~1"]) == expected
    assert backend.num_used_blocks == 0
