"""The application on machines that are not at hand: with GPUs, with engines that misbehave."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import cast

import httpx
import pytest

from deepinfer.config import ServeConfig
from deepinfer.device import Gpu
from deepinfer.engine import FAILED, READY, RESTARTING, EngineStatus
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.manifest import EngineFolder
from deepinfer.runtime.client import EngineClient
from deepinfer.server.app import create_app
from deepinfer.server.engines import EngineCatalog, ServedEngine
from deepinfer.server.names import EngineNames
from deepinfer.server.state import ServerState
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from tests.server.serving import make_echo_engine
from tests.server.watched import GeneratingCalls

RTX_5090 = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 5090",
    total_memory_bytes=32_607 * 2**20,
    free_memory_bytes=30_000 * 2**20,
    compute_capability=(12, 0),
    driver_version="580.65.06",
    cuda_version="13.0",
)

IS_READY = EngineStatus(READY, 100)
NOT_STREAMED = {"stream": False, "stream_options": None}

Chunks = AsyncGenerator[list[TokenChunk], None]
Generate = Callable[[Sequence[GenerationRequest]], Chunks]


class ScriptedClient(GeneratingCalls):
    """An engine client that does whatever a test says."""

    def __init__(
        self,
        folder: EngineFolder,
        generate: Generate,
        status: EngineStatus,
        cancel: Callable[[Sequence[str]], None],
    ) -> None:
        self.manifest = folder.manifest
        self.capacity = None
        self.generate = lambda requests, terms: generate(requests)
        self.status = status
        self.cancel = cancel


async def answer_nothing(requests: Sequence[GenerationRequest]) -> Chunks:
    yield [TokenChunk(r.request_id, finish_reason=FinishReason.STOP) for r in requests]


@asynccontextmanager
async def app_client(
    folder: Path,
    *,
    generate: Generate = answer_nothing,
    status: EngineStatus = IS_READY,
    gpus: Sequence[Gpu] = (),
    cancel: Callable[[Sequence[str]], None] = lambda _: None,
) -> AsyncIterator[httpx.AsyncClient]:
    engine = make_echo_engine(folder / "echo")
    served = ServedEngine(
        cast(EngineClient, ScriptedClient(engine, generate, status, cancel)),
        Tokenizer.load(engine.tokenizer_dir),
        ChatTemplate.load(engine.tokenizer_dir),
        EngineNames((engine.manifest.model.id,)),
    )
    state = ServerState(ServeConfig(), EngineCatalog([served]), lambda: gpus, gpus)
    transport = httpx.ASGITransport(create_app(state))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def test_gpu_info_says_what_the_driver_says(tmp_path: Path) -> None:
    async with app_client(tmp_path, gpus=[RTX_5090]) as client:
        assert (await client.get("/v1/gpu/info")).json() == {
            "gpus": [
                {
                    "id": 0,
                    "name": "NVIDIA GeForce RTX 5090",
                    "total_memory_gb": 31.8,
                    "free_memory_gb": 29.3,
                    "compute_capability": "12.0",
                    "driver_version": "580.65.06",
                    "cuda_version": "13.0",
                    "is_nvidia_5090": True,
                    "is_nvidia_4090": False,
                }
            ]
        }
        health = (await client.get("/health")).json()
        assert (health["gpus"], health["nvidia_5090"]) == (1, True)


async def count_calls(client: httpx.AsyncClient) -> int:
    """Of functions, for one request that looks through every route."""
    num_calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        assert (await client.get("/nowhere")).status_code == 404
    finally:
        sys.setprofile(None)
    return num_calls


async def test_first_request_does_not_wait_for_routes_to_be_made(tmp_path: Path) -> None:
    async with app_client(tmp_path) as client:
        first, second = await count_calls(client), await count_calls(client)
    assert first - second < 5_000  # 1,000; 54,000 when they are made then


async def test_machine_without_a_gpu_has_an_empty_list(tmp_path: Path) -> None:
    async with app_client(tmp_path) as client:
        response = await client.get("/v1/gpu/info")
        assert (response.status_code, response.json()) == (200, {"gpus": []})
        health = (await client.get("/health")).json()
        assert (health["gpus"], health["nvidia_5090"]) == (0, False)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (EngineStatus("loading weights", 15), "engine_loading"),
        (EngineStatus(RESTARTING, message="secret /path"), "engine_unavailable"),
        (EngineStatus(FAILED, message="no `/secret/of/mine/engine.json`"), "engine_unavailable"),
    ],
    ids=lambda value: str(value),
)
async def test_health_of_an_engine_that_is_not_ready(
    tmp_path: Path, status: EngineStatus, code: str
) -> None:
    async with app_client(tmp_path, status=status) as client:
        response = await client.get("/health")
        readiness = await client.get("/health/ready")
        assert (await client.get("/health/live")).status_code == 200
    assert response.status_code == readiness.status_code == 503
    body = response.json()
    engine = {"model": "test/echo", "engine": "echo.simulated"}
    state = {**engine, "phase": status.phase, "percent": status.percent}
    assert readiness.json() == {**body, "models": [state]}
    assert body["error"]["code"] == code
    assert body["detail"] == "Engine not initialized"
    assert (body["phase"], body["percent"]) == (status.phase, status.percent)
    # Anyone may read /health: why an engine has failed it says without the paths of this machine.
    assert "secret" not in response.text
    assert ("engine.json" in body["error"]["message"]) == (status.phase == FAILED)


async def fail_at_once(requests: Sequence[GenerationRequest]) -> Chunks:
    raise ValueError("/secret/path")
    yield []


async def fail_later(requests: Sequence[GenerationRequest]) -> Chunks:
    yield [TokenChunk(requests[0].request_id, (70,))]
    raise ValueError("/secret/path")


async def fail_one_request(requests: Sequence[GenerationRequest]) -> Chunks:
    yield [TokenChunk(requests[0].request_id, (70,))]
    yield [TokenChunk(requests[0].request_id, (), FinishReason.ERROR, "no room for it")]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_unforeseen_failure_is_a_500_that_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str, stream: bool
) -> None:
    body = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "stream": stream}
    async with app_client(tmp_path, generate=fail_at_once) as client:
        with caplog.at_level(logging.ERROR):
            response = await client.post(path, json=body)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"]
    assert "secret" not in response.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        (fail_later, "The server failed to answer this request; its log says why"),
        (fail_one_request, "no room for it"),
    ],
    ids=["unforeseen", "of this request"],
)
async def test_failure_in_the_middle_of_a_stream_is_its_last_event(
    tmp_path: Path, generate: Generate, message: str
) -> None:
    async with app_client(tmp_path, generate=generate) as client:
        response = await client.post("/v1/completions", json={"prompt": "a", "stream": True})
        whole = await client.post("/v1/completions", json={"prompt": "a"})
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert response.status_code == 200
    assert len(events) == 2
    assert json.loads(events[-1])["error"]["message"] == message
    assert whole.status_code == 500
    assert whole.json()["error"]["message"] == message


async def test_empty_answer_has_its_choices_and_reasons(tmp_path: Path) -> None:
    async with app_client(tmp_path) as client:
        whole = await client.post("/v1/completions", json={"prompt": "a", "n": 2})
        assert [choice["text"] for choice in whole.json()["choices"]] == ["", ""]
        body = {"messages": [{"role": "user", "content": "a"}], "stream": True}
        response = await client.post("/v1/chat/completions", json=body)
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    deltas = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert [delta["delta"] for delta in deltas] == [{"role": "assistant"}, {}]
    assert deltas[-1]["finish_reason"] == "stop"


async def test_chunks_of_one_wake_up_come_as_one_event(tmp_path: Path) -> None:
    async def lag(requests: Sequence[GenerationRequest]) -> Chunks:
        id_ = requests[0].request_id
        yield [TokenChunk(id_, (70,)), TokenChunk(id_, (71,))]
        yield [TokenChunk(id_, (72,), FinishReason.LENGTH)]

    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    async with app_client(tmp_path, generate=lag) as client:
        whole = (await client.post("/v1/completions", json=body | NOT_STREAMED)).json()
        response = await client.post("/v1/completions", json=body)
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) == 3  # two wake-ups and the usage
    texts = [chunk["choices"][0]["text"] for chunk in chunks[:2]]
    assert "".join(texts) == whole["choices"][0]["text"]
    assert chunks[2]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == 3


async def test_choice_that_a_stop_string_ended_is_cancelled_in_the_engine(tmp_path: Path) -> None:
    cancelled: list[str] = []

    async def repeat_prompts(requests: Sequence[GenerationRequest]) -> Chunks:
        yield [TokenChunk(r.request_id, r.prompt_token_ids) for r in requests]
        assert cancelled == [requests[0].request_id]
        yield [TokenChunk(requests[1].request_id, (5,), FinishReason.LENGTH)]

    body = {"prompt": ["one STOP two", "three"], "stop": "STOP"}
    async with app_client(tmp_path, generate=repeat_prompts, cancel=cancelled.extend) as client:
        choices = (await client.post("/v1/completions", json=body)).json()["choices"]
    assert choices[0]["text"] == "one " and choices[0]["finish_reason"] == "stop"
    assert choices[1]["finish_reason"] == "length"
