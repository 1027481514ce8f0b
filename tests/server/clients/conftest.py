"""Two real servers for the clients of the field, and a watch that none of them looks elsewhere.

One server repeats the last message, so that a test writes the answer itself; the other has a real
model with random weights, which answers in a form only because it must.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.building import BuildEngine
from tests.server.serving import DEADLINE_S, MODEL_ID, make_echo_engine, serving
from tests.server.test_tools import ECHO_TEMPLATE, write_template

THIS_MACHINE = {None, "127.0.0.1", b"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Endpoint:
    """What a client is told of a server."""

    base_url: str  # ends in /v1
    model: str


@pytest.fixture(scope="package")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo", chat_template=ECHO_TEMPLATE)
    with serving(folder) as server:
        yield Endpoint(f"{server.url}/v1", MODEL_ID)


@pytest.fixture(scope="package")
def model(build_engine: BuildEngine) -> Iterator[Endpoint]:
    built = build_engine("llama", "fp32", "--max-batch-size", "4", edit_checkpoint=write_template)
    with serving(built.engine.path) as server:
        yield Endpoint(f"{server.url}/v1", built.engine.manifest.model.id)


@pytest.fixture(scope="module", autouse=True)
def strangers() -> Iterator[list[object]]:
    """Names of other machines that a client has looked up; there may be none when a module ends."""
    found: list[object] = []
    look_up = socket.getaddrinfo

    def look_up_here(host: object, *arguments: Any, **options: Any) -> Any:
        if host not in THIS_MACHINE:
            found.append(host)
            raise socket.gaierror(f"a test asked for the address of {host!r}")
        return look_up(host, *arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up_here)
        yield found
    assert not found


def connect(endpoint: Endpoint, **options: Any) -> openai.OpenAI:
    options = {"max_retries": 0, "timeout": DEADLINE_S} | options
    return openai.OpenAI(base_url=endpoint.base_url, api_key="not-needed", **options)


def say(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def write_call(name: str, arguments: str) -> str:
    """A tool call as the model of the echo server would write it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.fixture
def slow_engine(tmp_path: Path) -> Path:
    """The folder of an engine that serves one request at a time, and takes seconds if asked to."""
    make_echo_engine(tmp_path / "echo", max_batch_size=1, step_us=2_000)
    return tmp_path
