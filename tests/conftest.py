from __future__ import annotations

import pytest

from tests.building import BuildEngine, make_engine_builder


@pytest.fixture(scope="session")
def build_engine(tmp_path_factory: pytest.TempPathFactory) -> BuildEngine:
    """Compile tiny random checkpoints: `build_engine("llama", "fp32", *flags)`."""
    return make_engine_builder(tmp_path_factory.mktemp("built"))
