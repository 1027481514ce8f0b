"""One server for all tests that leave it as it was, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import openai
import pytest

from tests.server.serving import (
    DEADLINE_S,
    MAX_WAITING,
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_echo_engine(folder / "echo")
    with serving(folder, "--max-waiting-requests", str(MAX_WAITING)) as process:
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
