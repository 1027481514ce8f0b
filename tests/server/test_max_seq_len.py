"""Engines that are served with another `max_seq_len` than they were built for, over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.__main__ import main
from deepinfer.manifest import EngineFolder, write_manifest
from tests.building import BuildEngine
from tests.server.serving import ServerProcess, client_of, make_echo_engine, serving, starting
from tests.server.test_bad_requests import assert_error
from tests.server.test_several_engines import ask

LOWERED = 40
ANTHROPIC = {"anthropic-version": "2023-06-01"}
PROMPT = [65] * LOWERED  # token ids, of which there are as many as the server takes


def lower(max_seq_len: int) -> tuple[str, str]:
    return "--max-seq-len", str(max_seq_len)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    engine = make_echo_engine(tmp_path_factory.mktemp("engines") / "echo", counts=True)
    with serving(engine.path, *lower(LOWERED)) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json=fields)


def test_prompt_beyond_the_lowered_limit_is_refused_with_it(client: httpx.Client) -> None:
    refused = complete(client, prompt=PROMPT)
    message = assert_error(refused, 400, "context_length_exceeded", "prompt")
    assert "it has 40" in message and "at most 39" in message
    assert complete(client, prompt=PROMPT[1:]).json()["usage"]["completion_tokens"] == 1


def test_answer_beyond_the_lowered_limit_is_refused_with_it(client: httpx.Client) -> None:
    refused = complete(client, prompt=PROMPT[:10], max_tokens=31)
    message = assert_error(refused, 400, "context_length_exceeded", "prompt")
    assert "maximum context length is 40" in message and "at most 30" in message
    whole = complete(client, prompt=PROMPT[:10], max_tokens=30).json()
    assert whole["usage"]["completion_tokens"] == 30


def test_default_of_max_tokens_is_what_the_lowered_limit_leaves(client: httpx.Client) -> None:
    answer = complete(client, prompt=PROMPT[:10]).json()
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 30, "total_tokens": 40}
    assert answer["choices"][0]["finish_reason"] == "length"


def test_max_tokens_of_a_message_are_cut_to_the_lowered_limit(client: httpx.Client) -> None:
    body = {"max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}
    answer = client.post("/v1/messages", json=body, headers=ANTHROPIC).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert sum(answer["usage"][f"{kind}_tokens"] for kind in ("input", "output")) == LOWERED


def test_routes_show_the_lowered_limit(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["max_model_len"], model["context_length"]) == (LOWERED, LOWERED)
    (info,) = client.get("/v1/models", headers=ANTHROPIC).json()["data"]
    assert (info["max_input_tokens"], info["max_tokens"]) == (39, 39)
    assert client.post("/tokenize", json={"prompt": "a"}).json()["max_model_len"] == LOWERED


def test_log_says_what_the_engine_takes_and_was_built_for(server: ServerProcess) -> None:
    assert "takes sequences of 40 tokens; it was built for 4,096" in server.log


def test_list_of_engines_says_what_they_were_built_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_echo_engine(tmp_path / "echo")
    with serving(engine.path, *lower(LOWERED)):
        assert main(["engines", "list", "--engine-dir", str(tmp_path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["limits"]["max_seq_len"] == 4096


def test_limit_is_taken_from_the_environment_and_the_option_wins(tmp_path: Path) -> None:
    engine = make_echo_engine(tmp_path / "echo")
    environment = {**os.environ, "DEEPINFER_ENGINE_MAX_SEQ_LEN": "50"}
    shown = []
    for options in ((), lower(60)):
        with (
            serving(engine.path, *options, environment=environment) as server,
            client_of(server) as client,
        ):
            shown.append(client.get("/v1/models").json()["data"][0]["max_model_len"])
    assert shown == [50, 60]


def test_limit_holds_for_each_engine_and_one_that_cannot_have_it_is_not_served(
    tmp_path: Path,
) -> None:
    make_echo_engine(tmp_path / "a", name="a", model_id="test/a", max_seq_len=100)
    make_echo_engine(tmp_path / "b", name="b", model_id="test/b", max_seq_len=200)
    make_echo_engine(tmp_path / "c", name="c", model_id="test/c", max_seq_len=300)
    options = (*lower(150), "--served-model-name", "gpt-4")
    with serving(tmp_path, *options) as server, client_of(server) as client:
        (line,) = (line for line in server.log.splitlines() if "not served: engine `a`" in line)
        assert "100 tokens" in line and "`engine.max_seq_len` is 150" in line
        assert "`--max-seq-len 100`" in line
        models = client.get("/v1/models").json()["data"]
        assert [(m["engine"], m["max_model_len"]) for m in models] == [("b", 150), ("c", 150)]
        # The name was for `a`; it moves on to no other model.
        assert_error(ask(client, "gpt-4"), 404, "model_not_found", "model")
        assert "nothing answers to `gpt-4`" in server.log


def test_server_ends_when_no_engine_can_have_the_limit(tmp_path: Path) -> None:
    for name in ("a", "b"):
        engine = make_echo_engine(tmp_path / name, name=name, max_seq_len=100)
        set_target(engine, kind="gpu", capability="sm_120")
    with starting(tmp_path, *lower(101)) as server:
        assert server.wait() == 1
    assert server.log.startswith("error: engine `a` was compiled for")
    assert "100 tokens; `engine.max_seq_len` is 101\nhint: " in server.log
    assert "engine process" not in server.log


def set_target(engine: EngineFolder, **changes: str) -> None:
    target = engine.manifest.target.model_copy(update=changes)
    write_manifest(engine.path, engine.manifest.model_copy(update={"target": target}))


def test_raised_cpu_engine_answers_as_one_that_was_built_longer(build_engine: BuildEngine) -> None:
    short = build_engine("llama", "fp32", "--max-seq-len", "32", "--max-batch-size", "8").engine
    long = build_engine("llama", "fp32", "--max-seq-len", "256", "--max-batch-size", "8").engine
    body = {"prompt": list(range(10, 110)), "max_tokens": 156, "temperature": 0, "ignore_eos": True}
    answers = []
    for engine, options in ((short, lower(256)), (long, ())):
        with serving(engine.path, *options) as server, client_of(server) as client:
            assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 256
            answers.append(complete(client, **body).json())
            beyond = complete(client, **body | {"max_tokens": 157})
            assert_error(beyond, 400, "context_length_exceeded", "prompt")
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["usage"]["completion_tokens"] == 156
    assert answers[0]["choices"] == answers[1]["choices"]


def test_cpu_engine_is_not_raised_beyond_the_positions_of_its_model(
    build_engine: BuildEngine,
) -> None:
    short = build_engine("llama", "fp32", "--max-seq-len", "32", "--max-batch-size", "8").engine
    with starting(short.path, *lower(513)) as server:
        assert server.wait() == 1
    assert "512 positions; `engine.max_seq_len` is 513\nhint: `--max-seq-len 512`" in server.log
