"""What the README and `examples/` tell people to run works as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.serving import DEADLINE_S, ServerProcess, make_echo_engine, serving

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
README_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def sample_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """It answers to the sample's name and says the question again."""
    folder = tmp_path_factory.mktemp("sample") / "engine"
    make_echo_engine(folder, model_id="sample")
    with serving(folder) as server:
        yield server


def run(command: list[str], server: ServerProcess) -> str:
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=DEADLINE_S, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def readme_block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_readme_python_snippet_runs(sample_server: ServerProcess) -> None:
    snippet = readme_block("python").replace(README_URL, sample_server.url)
    assert "Tell me a story" in run([sys.executable, "-c", snippet], sample_server)


def test_readme_curl_streams_an_answer(sample_server: ServerProcess) -> None:
    command = readme_block("bash").replace(README_URL, sample_server.url)
    lines = run(["bash", "-c", command], sample_server).split("\n\n")
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "Tell me a story" in "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.parametrize(
    ("example", "argument", "expected"),
    [
        ("chat.py", "Sing, please", "Sing, please"),
        ("stream.py", "Sing, please", "Sing, please"),
        ("many_at_once.py", "5", "5 answers"),
    ],
)
def test_example_runs(
    example: str, argument: str, expected: str, sample_server: ServerProcess
) -> None:
    command = [sys.executable, str(ROOT / "examples" / example), argument]
    assert expected in run(command, sample_server)
