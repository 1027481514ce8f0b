"""The server that the clients talk to, and the environments that they need.

Only `make test-clients` runs these tests: it makes the environments, and says so by TEST_CLIENTS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.engines import make_engines
from tests.server.serving import serving

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE_DIR = HERE / "node"
CLIENT_PYTHON = ROOT / ".venv-clients" / "bin" / "python"
RUN_S = 400.0  # of one client's whole suite, on a machine that does other things as well
MIN_NODE = 20
MIN_JAVA = 11  # runs source files, and has the HTTP client

# Its tests belong to the environment of the clients, which has none of our packages.
collect_ignore = ["python"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "TEST_CLIENTS" in os.environ:
        return
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason="`make test-clients` runs these"))


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("engines")
    make_engines(folder)
    with serving(folder) as server:
        yield server.wait_ready()


@pytest.fixture(scope="session")
def node() -> str:
    """The command, if it is there, is new enough and has had its packages installed."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("Node.js is not installed")
    version = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
    major = re.match(r"v(\d+)", version)
    if major is None or int(major[1]) < MIN_NODE:
        pytest.skip(f"the clients need Node.js {MIN_NODE} or later; this is {version.strip()}")
    if not (NODE_DIR / "node_modules").is_dir():
        pytest.skip("npm is not installed: `make test-clients` could not install the packages")
    return command


@pytest.fixture(scope="session")
def client_python() -> str:
    assert CLIENT_PYTHON.exists(), "`make test-clients` makes the environment"
    return str(CLIENT_PYTHON)


@pytest.fixture(scope="session")
def java() -> str:
    command = shutil.which("java")
    if command is None or shutil.which("javac") is None:
        pytest.skip("no JDK is installed: Debian has one as default-jdk-headless")
    shown = subprocess.run([command, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', shown)
    if version is None or int(version[1]) < MIN_JAVA:
        pytest.skip(f"the clients need a JDK {MIN_JAVA} or later; this is {shown.strip()}")
    return command


def run(command: list[str], url: str, cwd: Path = HERE) -> str:
    """Run a client against the server; what it said is shown when it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = kept | {"DEEPINFER_URL": url, "NODE_NO_WARNINGS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
