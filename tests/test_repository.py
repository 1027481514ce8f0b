"""What the repository promises beside its code: the wheel, the generated pages, the plumbing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from deepinfer import __version__
from tools.make_cli_docs import PAGE, render_page

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "deepinfer").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    metadata = f"deepinfer-{__version__}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(metadata)} == package


def test_wheel_holds_the_sample_checkpoint(wheel: zipfile.ZipFile) -> None:
    sample = [name for name in wheel.namelist() if name.startswith("deepinfer/sample/")]
    for suffix in ("config.json", "tokenizer.json", ".safetensors"):
        assert any(name.endswith(suffix) for name in sample), suffix


def test_wheel_holds_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    metadata = f"deepinfer-{__version__}.dist-info"
    assert f"{metadata}/licenses/LICENSE" in wheel.namelist()
    assert (
        "deepinfer = deepinfer.__main__:main" in wheel.read(f"{metadata}/entry_points.txt").decode()
    )


def test_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{__version__}] - " in changelog


def test_serving_core_requires_no_library_of_models() -> None:
    core = " ".join(PROJECT["dependencies"])
    for library in ("torch", "transformers", "openvino", "optimum", "nncf", "huggingface-hub"):
        assert library not in core


def test_page_of_the_command_line_is_what_make_docs_writes() -> None:
    assert PAGE.read_text(encoding="utf-8") == render_page(), "run `make docs`"


@pytest.mark.parametrize(
    "target",
    [
        "serve",
        "test",
        "test-image",
        "test-clients",
        "check",
        "scripts",
        "docs",
        "bench",
        "clean",
        "help",
    ],
)
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    commands = script.read_text(encoding="utf-8").splitlines()[-4:]
    assert commands == ["make check", "make test", "make test-image", "make test-clients"]


def test_clients_of_node_are_pinned_and_come_from_whatever_registry_is_set() -> None:
    folder = ROOT / "tests" / "clients" / "node"
    pins = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert [name for name, pin in pins.items() if not re.fullmatch(r"\d+\.\d+\.\d+", pin)] == []
    packages = json.loads((folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in pins} == pins
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_dockerfile_copies_only_what_reaches_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [line.split()[1:-1] for line in dockerfile if line.startswith("COPY ")]
    sources = {
        Path(source).name for words in copies if "--from" not in words[0] for source in words
    }
    assert sources == admitted
    assert [name for name in sources if not (ROOT / name).exists()] == []
