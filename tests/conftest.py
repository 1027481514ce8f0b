"""For all tests: engines that are compiled once, and no more threads than there are cores."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.building import BuildEngine, make_engine_builder

# The same examples in every run, on machines that others keep busy.
settings.register_profile(
    "tests", None, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores: a pool of threads in each would only get in the way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def build_engine(tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    """Compile tiny random checkpoints: `build_engine("llama", "fp32", *flags)`."""
    return make_engine_builder(tmp_path_factory.mktemp("built"))
