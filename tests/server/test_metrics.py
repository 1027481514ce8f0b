"""/metrics says what the server does: exactly, by known names, without a client's own words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deepinfer import __version__
from deepinfer.config import ServeConfig
from deepinfer.engine import RESTARTING, Capacity, EngineStatus, Load
from deepinfer.errors import QueueFull
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    LoraAdapter,
    TokenChunk,
    Usage,
)
from deepinfer.server.engines import EngineCatalog, with_adapter
from deepinfer.server.keys import KeyRing, parse_keys
from deepinfer.server.meter import Histogram, HttpMeter
from deepinfer.server.metrics import make_registry
from deepinfer.server.record import RequestRecord
from tests.server.serving import client_of, make_echo_engine, read_events, serving
from tests.server.watched import A, B, Chunks, client_for, make_state

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
MODEL = {"model_name": "test/echo"}
ROUTER = {**MODEL, "engine_type": "simulated"}
COMPLETIONS = {"route": "/v1/completions"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parse(response.text)


def value(samples: Samples, name: str, labels: Mapping[str, str] = MODEL) -> float | None:
    return samples.get((name, frozenset(labels.items())))


# What the engine is at


async def test_gauges_that_routers_read(tmp_path: Path) -> None:
    state, engine = make_state(tmp_path / "echo")
    engine.load, engine.capacity = Load(3, 2, 40), Capacity(8, num_blocks=160, tokens_per_block=16)
    async with client_for(state) as client:
        samples = await scrape(client)
    assert value(samples, "trtllm_num_requests_waiting", ROUTER) == 2
    assert value(samples, "trtllm_num_requests_running", ROUTER) == 3
    assert value(samples, "trtllm_kv_cache_utilization", ROUTER) == 0.25
    assert value(samples, "trtllm_kv_cache_tokens_per_block", ROUTER) == 16
    assert value(samples, "trtllm_kv_cache_max_blocks", ROUTER) == 160
    assert value(samples, "deepinfer_requests_waiting") == 2
    assert value(samples, "deepinfer_requests_running") == 3
    assert value(samples, "deepinfer_build_info", {"version": __version__}) == 1


async def test_cache_of_an_engine_that_has_not_loaded_is_left_out(tmp_path: Path) -> None:
    state, engine = make_state(tmp_path / "echo")
    engine.status = EngineStatus("loading weights", 15)
    async with client_for(state) as client:
        samples = await scrape(client)
    assert value(samples, "deepinfer_engine_ready") == 0
    assert value(samples, "trtllm_num_requests_running", ROUTER) == 0
    assert value(samples, "trtllm_kv_cache_utilization", ROUTER) is None
    assert value(samples, "trtllm_kv_cache_max_blocks", ROUTER) is None


async def test_lives_of_the_engine_are_counted(tmp_path: Path) -> None:
    state, engine = make_state(tmp_path / "echo")
    engine.status, engine.num_restarts, engine.num_resumed = EngineStatus(RESTARTING), 3, 7
    async with client_for(state) as client:
        samples = await scrape(client)
    assert value(samples, "deepinfer_engine_ready") == 0
    assert value(samples, "deepinfer_engine_restarts_total") == 3
    assert value(samples, "deepinfer_requests_resumed_total") == 7


# What it has generated


async def test_answers_are_counted_as_usage_counts_them(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    async with client_for(state) as client:
        body = {"prompt": ["one two", "three"], "n": 2}
        usage = (await client.post("/v1/completions", json=body)).json()["usage"]
        await client.post("/v1/completions", json={"prompt": "x", "stream": True})
        samples = await scrape(client)
    reasons = {**MODEL, "finish_reason": "length"}
    prompt_tokens = usage["prompt_tokens"] + 1  # the letter
    assert value(samples, "deepinfer_prompt_tokens_total") == prompt_tokens
    assert value(samples, "deepinfer_generation_tokens_total") == usage["completion_tokens"] + 3
    assert value(samples, "deepinfer_request_success_total", reasons) == 5
    assert value(samples, "deepinfer_prompt_length_tokens_count") == 2
    assert value(samples, "deepinfer_prompt_length_tokens_sum") == prompt_tokens
    assert value(samples, "deepinfer_output_length_tokens_count") == 5
    assert value(samples, "deepinfer_output_length_tokens_sum") == 15
    assert value(samples, "deepinfer_output_length_tokens_bucket", {**MODEL, "le": "1.0"}) == 0
    assert value(samples, "deepinfer_output_length_tokens_bucket", {**MODEL, "le": "4.0"}) == 5
    ok = {**COMPLETIONS, "status": "200"}
    assert value(samples, "deepinfer_http_responses_total", ok) == 2


async def test_time_is_observed_once_a_request_and_between_its_wake_ups(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    async with client_for(state) as client:
        await client.post("/v1/completions", json={"prompt": "x", "n": 4})
        samples = await scrape(client)
    count = {
        name: value(samples, f"deepinfer_{name}_seconds_count")
        for name in ("time_to_first_token", "request_duration", "queue_time", "inter_token_latency")
    }
    assert count == {
        "time_to_first_token": 1,
        "request_duration": 1,
        "queue_time": 1,
        "inter_token_latency": 2,  # three wake-ups, however many sequences in each
    }
    first = value(samples, "deepinfer_time_to_first_token_seconds_sum") or 0
    gaps = value(samples, "deepinfer_inter_token_latency_seconds_sum") or 0
    assert 0 < first + gaps <= (value(samples, "deepinfer_request_duration_seconds_sum") or 0)


async def test_tokens_of_a_running_answer_are_counted_as_they_come(tmp_path: Path) -> None:
    has_read, go_on = asyncio.Event(), asyncio.Event()

    async def pause(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
        yield [TokenChunk(requests[0].request_id, (A, B))]
        has_read.set()
        await go_on.wait()
        yield [TokenChunk(requests[0].request_id, (A,), FinishReason.LENGTH)]

    state, _ = make_state(tmp_path / "echo", pause)
    async with client_for(state) as client:
        answer = asyncio.create_task(client.post("/v1/completions", json={"prompt": "x"}))
        await has_read.wait()
        samples = await scrape(client)
        assert value(samples, "deepinfer_generation_tokens_total") == 2
        assert value(samples, "deepinfer_request_duration_seconds_count") == 0
        go_on.set()
        await answer
        samples = await scrape(client)
    assert value(samples, "deepinfer_generation_tokens_total") == 3
    assert value(samples, "deepinfer_request_duration_seconds_count") == 1


async def test_adapter_has_figures_of_its_own(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    base = state.engines.default
    adapted = with_adapter(base, LoraAdapter("mine", 1, "/nowhere"))
    state.engines = EngineCatalog([base], [adapted])
    mine = {"model_name": "mine"}
    async with client_for(state) as client:
        await client.post("/v1/completions", json={"prompt": "x", "model": "mine"})
        samples = await scrape(client)
    assert value(samples, "deepinfer_generation_tokens_total", mine) == 3
    assert value(samples, "deepinfer_generation_tokens_total") == 0
    assert value(samples, "deepinfer_engine_ready") == 1
    assert value(samples, "deepinfer_engine_ready", mine) is None  # it has no process of its own


async def test_servers_in_one_process_do_not_share_their_figures(tmp_path: Path) -> None:
    busy, _ = make_state(tmp_path / "busy")
    idle, _ = make_state(tmp_path / "idle")
    async with client_for(busy) as one, client_for(idle) as other:
        await one.post("/v1/completions", json={"prompt": "x"})
        assert value(await scrape(one), "deepinfer_generation_tokens_total") == 3
        assert value(await scrape(other), "deepinfer_generation_tokens_total") == 0


# What went wrong


async def test_errors_are_counted_by_route_and_code(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    async with client_for(state) as client:
        for _ in range(2):
            await client.post("/v1/completions", json={"prompt": "x", "model": "secret-model"})
        await client.get("/secret-path")
        await client.get("/v1/models/secret-model")
        await client.post("/v1/completions", json={"prompt": "x", "temperature": 9})
        text = (await client.get("/metrics")).text
    errors = {
        (dict(labels)["route"], dict(labels)["code"]): count
        for (name, labels), count in parse(text).items()
        if name == "deepinfer_request_errors_total"
    }
    assert errors == {
        ("/v1/completions", "model_not_found"): 2,
        ("/v1/completions", "invalid_value"): 1,
        ("/v1/models/{model_id:path}", "model_not_found"): 1,
        ("unmatched", "not_found"): 1,
    }
    assert "secret" not in text


async def test_what_the_queue_refuses_is_rejected_and_generates_nothing(tmp_path: Path) -> None:
    async def refuse(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
        raise QueueFull("full", retry_after_s=1)
        yield []

    state, _ = make_state(tmp_path / "echo", refuse)
    async with client_for(state) as client:
        assert (await client.post("/v1/completions", json={"prompt": "x"})).status_code == 429
        samples = await scrape(client)
    code = {**COMPLETIONS, "code": "queue_full"}
    assert value(samples, "deepinfer_requests_rejected_total", {}) == 1
    assert value(samples, "deepinfer_request_errors_total", code) == 1
    assert value(samples, "deepinfer_prompt_tokens_total") == 0
    assert value(samples, "deepinfer_time_to_first_token_seconds_count") == 0
    assert value(samples, "deepinfer_request_duration_seconds_count") == 0
    assert value(samples, "deepinfer_requests_cancelled_total", {}) == 0


async def test_error_after_the_response_began_is_counted(tmp_path: Path) -> None:
    async def fail_later(requests: Sequence[GenerationRequest], terms: Any = None) -> Chunks:
        yield [TokenChunk(requests[0].request_id, (A,))]
        yield [TokenChunk(requests[0].request_id, (), FinishReason.ERROR, "no room for it")]

    state, _ = make_state(tmp_path / "echo", fail_later)
    async with client_for(state) as client:
        await client.post("/v1/completions", json={"prompt": "x", "stream": True})
        samples = await scrape(client)
    code = {**COMPLETIONS, "code": "internal_error"}
    assert value(samples, "deepinfer_request_errors_total", code) == 1
    assert value(samples, "deepinfer_http_responses_total", {**COMPLETIONS, "status": "200"}) == 1
    assert value(samples, "deepinfer_open_streams", {}) == 0


def test_stream_is_open_until_its_client_leaves(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo", step_us=2_000)
    body = {"prompt": "a b c", "ignore_eos": True, "max_tokens": 4000, "stream": True}
    headers = {"x-request-id": "leaving"}
    with serving(tmp_path) as server, client_of(server) as client:
        with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            events = read_events(response)  # held, as its end would close the response
            next(events)
            samples = parse(httpx.get(f"{server.url}/metrics").text)
            assert value(samples, "deepinfer_open_streams", {}) == 1
            assert value(samples, "trtllm_num_requests_running", ROUTER) == 1
            assert (value(samples, "trtllm_kv_cache_utilization", ROUTER) or 0) > 0
        server.wait_for_request("leaving")
        samples = parse(client.get("/metrics").text)
    assert value(samples, "deepinfer_open_streams", {}) == 0
    assert value(samples, "deepinfer_requests_cancelled_total", {}) == 1
    assert value(samples, "deepinfer_time_to_first_token_seconds_count") == 1
    assert value(samples, "deepinfer_queue_time_seconds_count") == 1
    assert value(samples, "deepinfer_request_duration_seconds_count") == 0
    assert value(samples, "process_open_fds", {}) is not None


def test_requests_and_tokens_are_counted_for_a_key_that_has_a_name() -> None:
    meter = HttpMeter()
    for key_name, first_token_at in (("alice", 1.0), ("alice", None), ("", 1.0)):
        record = RequestRecord("x", key_name=key_name, first_token_at=first_token_at)
        record.usage = Usage(5, 7)
        meter.end(record, "/v1/completions")
    assert meter.num_by_key == {"alice": 2}
    # What was refused has read no prompt.
    assert meter.tokens_by_key == {("alice", "prompt"): 5, ("alice", "generation"): 7}


# Who may read it


@pytest.mark.parametrize("needs_key", [True, False])
async def test_key_is_needed_unless_the_operator_says_otherwise(
    tmp_path: Path, needs_key: bool
) -> None:
    config = ServeConfig.model_validate({"server": {"metrics_need_key": needs_key}})
    state, _ = make_state(
        tmp_path / "echo", config=config, keys=KeyRing(parse_keys("a-key", "x", "x", config.limits))
    )
    key = {"authorization": "Bearer a-key"}
    async with client_for(state) as client:
        assert (await client.get("/metrics")).status_code == (401 if needs_key else 200)
        assert (await client.get("/metrics", headers=key)).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401


# How it is written down


def test_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1, 2, 4))
    for observed in (0, 1, 1.5, 4, 4.1, 1000):
        histogram.observe(observed)
    assert histogram.cumulative_counts == [2, 3, 4, 6]
    assert histogram.sum == pytest.approx(1010.6)


def test_every_metric_has_its_row_in_the_page(tmp_path: Path) -> None:
    state, _ = make_state(tmp_path / "echo")
    families = list(make_registry(state.engines, state.meter).collect())
    suffix = {"counter": "_total"}
    ours = {
        f"| `{family.name}{suffix.get(family.type, '')}` | {family.type} |"
        for family in families
        if family.name.startswith(("deepinfer_", "trtllm_"))
    }
    rows = re.findall(r"^\| `(?:deepinfer|trtllm)_\w+` \| \w+ \|", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(ours)
