from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.double.log import logger
from tests.contract.installing import installed_double, make_double_root
from tests.contract.loading import LIMITS, Loader, loader_on, write_checkpoint


@pytest.fixture(scope="session")
def double_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the double, for `sys.path`."""
    return make_double_root(tmp_path_factory.mktemp("double"))


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint's folder without weights; read it only."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def double(double_root: Path) -> Iterator[Path]:
    """`tensorrt_llm` can be imported, and sees one RTX 5090."""
    with installed_double(double_root) as root:
        yield root


@pytest.fixture
def load(double: Path) -> Iterator[Loader]:
    """Makes LLM objects that are shut down after the test."""
    loader = Loader()
    yield loader
    loader.close()


@pytest.fixture
def library_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the library logs, which does not reach the root logger."""
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def engine_dir(
    double_root: Path, hf_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An engine that the double has built with LIMITS; read it only."""
    folder = tmp_path_factory.mktemp("engine") / "engine"
    with loader_on(double_root) as load:
        load(hf_folder, build_config=load.build_config(**LIMITS)).save(str(folder))
    return folder


@pytest.fixture
def llm(load: Loader, engine_dir: Path) -> Any:
    """The engine, loaded as it should be: every limit passed."""
    return load(engine_dir, **LIMITS)
