"""Each client's own tests, in the client's own language, against one server of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.conftest import HERE, NODE_DIR, run

PYTHON_DIR = HERE / "python"
NODE_FILES = sorted(NODE_DIR.glob("*.test.mjs"))
PYTHON_FILES = sorted(PYTHON_DIR.glob("test_*.py"))


def name_of(path: Path) -> str:
    return path.name.removeprefix("test_").split(".")[0]


@pytest.mark.parametrize("file", NODE_FILES, ids=name_of)
def test_node_client(file: Path, node: str, url: str) -> None:
    said = run([node, "--test", "--test-reporter=spec", file.name], url, NODE_DIR)
    print(said)
    assert "\u2139 skipped 0" in said and "\u2139 tests 0" not in said


@pytest.mark.parametrize("file", PYTHON_FILES, ids=name_of)
def test_python_client(file: Path, client_python: str, url: str) -> None:
    # Our own conftest.py and configuration are for our environment, not for this one.
    ours = ["-c", "pytest.ini", "--rootdir", ".", "--confcutdir", "."]
    said = run([client_python, "-m", "pytest", "-q", *ours, file.name], url, PYTHON_DIR)
    print(said)
    assert " passed" in said


@pytest.mark.parametrize("version", ["HTTP_2", "HTTP_1_1"])
def test_java_client(version: str, java: str, url: str) -> None:
    said = run([java, "java/JdkHttpClient.java", url, version], url)
    assert said.splitlines()[-1] == "all is well"
