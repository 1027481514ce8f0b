"""What a checkpoint's generation_config.json decides, and for which routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from deepinfer.runtime.client import EngineClient
from deepinfer.server import sampling_defaults
from deepinfer.server.chat_body import ChatBody
from deepinfer.server.engines import ServedEngine
from deepinfer.server.messages_api.body import MessagesBody
from deepinfer.server.messages_api.run import prepare_message
from deepinfer.server.names import EngineNames
from deepinfer.server.prepare import prepare_chat
from deepinfer.server.record import RequestRecord
from deepinfer.server.sampling_defaults import read_sampling_defaults, with_sampling_defaults
from deepinfer.server.schemas import GenerationBody
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from tests.engines import record_again
from tests.server.serving import ServerProcess, make_echo_engine, serving

GENERATION_CONFIG = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "do_sample": True}
USER = {"role": "user", "content": "hello"}


def make_engine(folder: Path) -> Path:
    engine = make_echo_engine(folder)
    path = engine.tokenizer_dir / "generation_config.json"
    path.write_text(json.dumps(GENERATION_CONFIG), encoding="utf-8")
    record_again(engine.path)
    return engine.path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(make_engine(tmp_path_factory.mktemp("engines") / "echo")) as server:
        yield server


def respond(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    body = {"input": "hello", "max_output_tokens": 4, **fields}
    answer = httpx.post(f"{server.url}/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_response_takes_the_values_of_the_checkpoint(server: ServerProcess) -> None:
    found = respond(server)
    assert (found["temperature"], found["top_p"]) == (0.6, 0.8)


def test_what_the_client_says_comes_first(server: ServerProcess) -> None:
    found = respond(server, temperature=0.3)
    assert (found["temperature"], found["top_p"]) == (0.3, 0.8)


def test_setting_keeps_the_values_of_the_route(tmp_path: Path) -> None:
    with serving(make_engine(tmp_path / "echo"), "--generation-config", "none") as server:
        found = respond(server)
    assert (found["temperature"], found["top_p"]) == (0.7, 0.95)


def test_message_is_answered_with_a_checkpoint_that_has_values(server: ServerProcess) -> None:
    body = {"messages": [USER], "max_tokens": 4}
    assert httpx.post(f"{server.url}/v1/messages", json=body).status_code == 200


def test_values_that_no_request_could_have_are_ignored_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        sampling_defaults.logger, "warning", lambda text, *v: warnings.append(text % v)
    )
    found = read_sampling_defaults(
        {"temperature": -1, "top_p": "high", "top_k": 50.0, "min_p": None, "max_length": 20}
    )
    assert found == {"top_k": 50}
    assert [warning.split("`")[1] for warning in warnings] == ["temperature", "top_p"]


def test_only_fields_that_were_left_out_are_filled_in() -> None:
    body = GenerationBody.model_validate({"temperature": 0.0})
    filled = with_sampling_defaults(body, GENERATION_CONFIG)
    assert (filled.temperature, filled.top_p, filled.top_k) == (0.0, 0.8, 20)


async def test_message_takes_all_values_of_the_checkpoint_and_a_chat_none(tmp_path: Path) -> None:
    folder = make_echo_engine(tmp_path / "echo")
    client = cast(EngineClient, SimpleNamespace(manifest=folder.manifest, capacity=None))
    tokenizer = Tokenizer.load(folder.tokenizer_dir)
    template = ChatTemplate.load(folder.tokenizer_dir)
    values = {**GENERATION_CONFIG, "min_p": 0.05, "repetition_penalty": 1.1}
    engine = ServedEngine(
        client,
        tokenizer,
        template,
        EngineNames(("test/echo",)),
        sampling_defaults=read_sampling_defaults(values),
    )
    body = MessagesBody.model_validate({"messages": [USER], "max_tokens": 4, "top_k": 5})
    message = await prepare_message(engine, body, RequestRecord("id"))
    sampling = message.choice.request.sampling
    assert (sampling.temperature, sampling.top_p) == pytest.approx((0.6, 0.8))
    assert sampling.top_k == 5
    assert (sampling.min_p, sampling.repetition_penalty) == pytest.approx((0.05, 1.1))
    chat = await prepare_chat(engine, ChatBody.model_validate({"messages": [USER]}), "id")
    promised = chat.choices[0].request.sampling
    assert (promised.temperature, promised.top_p) == pytest.approx((0.7, 0.95))
    assert promised.top_k is None
