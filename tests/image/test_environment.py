"""The environment of `make test-image` is like the image's where our code meets it."""

from __future__ import annotations

import re
from importlib import metadata, util
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", REQUIREMENTS.read_text(encoding="utf-8"), re.M))
# openvino_telemetry was imported by the GPU build once, and ended it in its first line.
ABSENT = ["openvino", "openvino_genai", "openvino_tokenizers", "openvino_telemetry", "nncf"]


@pytest.mark.parametrize("name", PINS)
def test_package_is_of_the_images_version(name: str) -> None:
    assert metadata.version(name).partition("+")[0] == PINS[name]  # torch adds its build


@pytest.mark.parametrize("name", [*ABSENT, "optimum"])
def test_nothing_of_openvino_is_there(name: str) -> None:
    assert util.find_spec(name) is None


def test_deepinfer_is_installed_without_extras() -> None:
    assert metadata.version("deepinfer")
