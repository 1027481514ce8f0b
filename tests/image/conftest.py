"""Tests that need the environment of `make test-image`; elsewhere they are skipped aloud."""

from __future__ import annotations

import os
from importlib import metadata

import pytest

NEEDS_IMAGE = "needs the packages of the TensorRT-LLM image: `make test-image`"


def has_modelopt() -> bool:
    try:
        metadata.version("nvidia-modelopt")
    except metadata.PackageNotFoundError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # `make test-image` says that the packages are there: then their lack is a failure.
    if has_modelopt() or "TEST_IMAGE" in os.environ:
        return
    for item in items:
        if item.path.is_relative_to(os.path.dirname(__file__)):
            item.add_marker(pytest.mark.skip(reason=NEEDS_IMAGE))
