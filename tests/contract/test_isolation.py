"""Each backend's whole path, walked where the other's packages cannot be had.

A machine has one of the two: the container has no OpenVINO, and nothing else has TensorRT-LLM.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.contract.installing import double_environment, make_double_root
from tests.server.serving import client_of, serving

# Modules that cannot be imported, and distributions that have no metadata.
OPENVINO = ("openvino", "openvino_genai", "openvino_tokenizers", "openvino_telemetry")
COMPILING_FOR_CPU = ("nncf", "optimum", "optimum_intel")
TENSORRT = ("tensorrt_llm", "tensorrt", "modelopt", "nvidia_modelopt", "mpi4py")
BLOCKER = """
import importlib.metadata
import re
from importlib.machinery import PathFinder

BLOCKED = {blocked!r}
find_spec = PathFinder.find_spec


def find_other_spec(name, *arguments):
    return None if name.split(".")[0] in BLOCKED else find_spec(name, *arguments)


PathFinder.find_spec = staticmethod(find_other_spec)
distribution = importlib.metadata.distribution


def blocked_distribution(name):
    if re.sub(r"[-_.]+", "_", name).lower() in BLOCKED:
        raise importlib.metadata.PackageNotFoundError(name)
    return distribution(name)


importlib.metadata.distribution = blocked_distribution
"""
ASK = {"messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 5}


def environment_without(
    blocked: Sequence[str], folder: Path, base: Mapping[str, str]
) -> dict[str, str]:
    """Variables with which every Python process refuses to import `blocked`."""
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=tuple(blocked)))
    paths = [str(folder), *filter(None, [base.get("PYTHONPATH")])]
    return {**os.environ, **base, "PYTHONPATH": os.pathsep.join(paths)}


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def walk(environment: Mapping[str, str], output: Path) -> None:
    """Build, look, serve and ask, each in processes of its own."""
    flags = ("--model", "sample", "--output", str(output))
    assert run(environment, "build", *flags, "--dry-run").returncode == 0
    built = run(environment, "build", *flags)
    assert built.returncode == 0, built.stderr
    (engine,) = (path.name for path in output.iterdir() if not path.name.startswith("."))
    for command in ("list", "inspect", "verify"):
        names = () if command == "list" else (engine,)
        looked = run(environment, "engines", command, *names, "--engine-dir", str(output))
        assert looked.returncode == 0, looked.stderr
    examined = run(environment, "doctor", "--engine-dir", str(output))
    assert "sample" in examined.stdout and "internal" not in examined.stderr
    with serving(output, environment=environment) as server, client_of(server) as http:
        answer = http.post("/v1/chat/completions", json=ASK)
        assert answer.is_success and answer.json()["usage"]["completion_tokens"] <= 5
        assert http.get("/health").json()["status"] == "healthy"
        assert http.get("/metrics").is_success


def test_block_is_in_force(tmp_path: Path) -> None:
    environment = environment_without(["json5", "yaml"], tmp_path, {})
    code = "import importlib.metadata as m, yaml"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "No module named 'yaml'" in done.stderr
    code = "import importlib.metadata as m; m.version('PyYAML')"
    environment = environment_without(["pyyaml"], tmp_path, {})
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "PackageNotFoundError" in done.stderr


def test_gpu_path_needs_nothing_of_openvino(tmp_path: Path) -> None:
    base = double_environment(make_double_root(tmp_path / "double"))
    environment = environment_without([*OPENVINO, *COMPILING_FOR_CPU], tmp_path, base)
    walk(environment, tmp_path / "engines")


def test_cpu_path_needs_nothing_of_tensorrt(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="OpenVINO is not installed here")
    walk(environment_without(TENSORRT, tmp_path, {}), tmp_path / "engines")
