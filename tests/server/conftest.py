"""One server for all tests that leave it as it was, and clients for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest

from tests.contract.echo import make_echo_tensorrt_engine
from tests.contract.installing import double_environment, make_double_root
from tests.server.serving import (
    DEADLINE_S,
    MAX_WAITING,
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
)


@pytest.fixture(scope="session", params=["simulated", "tensorrt-llm"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """An engine that repeats its prompt: simulated, or on the recorded double of TensorRT-LLM."""
    folder = tmp_path_factory.mktemp("engines")
    environment = None
    if request.param == "simulated":
        make_echo_engine(folder / "echo")
    else:
        root = make_double_root(tmp_path_factory.mktemp("double"))
        make_echo_tensorrt_engine(folder / "echo", tmp_path_factory.mktemp("work"), root)
        environment = {**os.environ, **double_environment(root, is_echo=True)}
    limit = ("--max-waiting-requests", str(MAX_WAITING))
    with serving(folder, *limit, environment=environment) as process:
        yield process


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="session")
def sdk(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0, timeout=DEADLINE_S
    ) as client:
        yield client


@pytest.fixture
async def async_sdk(server: ServerProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0, timeout=DEADLINE_S
    ) as client:
        yield client
