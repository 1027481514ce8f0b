"""Puts the double where `import tensorrt_llm` finds it, in this process or in a child.

`make_double_root` writes a folder for `sys.path`: thin packages, one file for each home that the
record names, and the metadata that `importlib.metadata` answers from without an import.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.contract.double.building import BUILD_ENDING_VARIABLE
from tests.contract.double.executor import (
    BAD_OUTPUT_VARIABLE,
    EXECUTOR_FAULT_VARIABLE,
    ITERATION_VARIABLE,
    REQUEST_FAULT_VARIABLE,
    STATISTICS_FAULT_VARIABLE,
    STICKY_FAULT_VARIABLE,
    WORKER_DEATH_VARIABLE,
)
from tests.contract.double.machine import MACHINE_VARIABLE, GpuMachine
from tests.contract.double.record import ASSUMPTIONS_VARIABLE, entries, recorded
from tests.contract.double.requests import ECHO_VARIABLE
from tests.fake_nvml import GIB, Card

REPOSITORY = Path(__file__).parent.parent.parent
RTX_5090 = Card("NVIDIA GeForce RTX 5090", 32 * GIB, 31 * GIB, (12, 0))
SECTIONS = ("classes", "enums", "surfaces", "errors")
PACKAGES = ("tensorrt_llm", "tensorrt", "pynvml")
LIBRARY_CHECK = (
    "from tests.contract.double import machine as _machine\n\n"
    "_machine.require_tensorrt_libraries()\n"
)
TENSORRT_VERSION = f"{recorded('versions')['tensorrt_series']}.1"


def make_double_root(
    folder: Path,
    *,
    tensorrt_llm_version: str = "1.2.1",
    tensorrt_version: str = TENSORRT_VERSION,
) -> Path:
    """Write the packages into `folder` and return it."""
    lines = _imports_by_home()
    banner = recorded("versions")["banner"].format(version=tensorrt_llm_version)
    lines["tensorrt_llm"] += [
        "from tests.contract.double.log import bind_to_stdout",
        "bind_to_stdout()",
        f'__version__ = "{tensorrt_llm_version}"',
        f'print("{banner}")',
        "from tests.contract.double.environment import note_import",
        "note_import()",
    ]
    lines["tensorrt"] = [f'__version__ = "{tensorrt_version}"']
    for package in ("tensorrt_llm", "tensorrt"):
        lines[package].insert(0, LIBRARY_CHECK)
    for home, content in lines.items():
        _write_package(folder, home, content)
    (folder / "pynvml.py").write_text(
        "import sys\n\n"
        "from tests.contract.double.machine import make_nvml\n\n"
        "sys.modules[__name__] = make_nvml()\n",
        encoding="utf-8",
    )
    _write_metadata(folder, "tensorrt-llm", tensorrt_llm_version)
    _write_metadata(folder, "tensorrt", tensorrt_version)
    return folder


def double_environment(
    root: Path,
    cards: Sequence[Card] = (RTX_5090,),
    *,
    driver_version: str = "580.126.20",
    cuda_version: int = 13000,
    has_tensorrt_libraries: bool = True,
    assumptions: Mapping[str, bool] | None = None,
    request_fault_token: int | None = None,
    executor_fault_token: int | None = None,
    sticky_fault_token: int | None = None,
    worker_death_token: int | None = None,
    bad_output_token: int | None = None,
    statistics_fault: str | None = None,
    iteration_ms: float | None = None,
    is_echo: bool = False,
    build_ending: str | None = None,
) -> dict[str, str]:
    """Variables for a child process, to be added to its own. Every one of the double is set.

    A prompt that holds a token of those does what double/executor.py says of its variable; with
    `is_echo` answers repeat their prompt. `build_ending` names the signal that ends a
    build, or one of the other endings in double/building.py.
    """
    machine = GpuMachine(tuple(cards), driver_version, cuda_version, has_tensorrt_libraries)
    chosen = {
        REQUEST_FAULT_VARIABLE: request_fault_token,
        EXECUTOR_FAULT_VARIABLE: executor_fault_token,
        STICKY_FAULT_VARIABLE: sticky_fault_token,
        WORKER_DEATH_VARIABLE: worker_death_token,
        BAD_OUTPUT_VARIABLE: bad_output_token,
        STATISTICS_FAULT_VARIABLE: statistics_fault,
        ITERATION_VARIABLE: iteration_ms,
        ECHO_VARIABLE: "1" if is_echo else None,
        BUILD_ENDING_VARIABLE: build_ending,
    }
    return {
        "PYTHONPATH": os.pathsep.join([str(root), str(REPOSITORY)]),
        MACHINE_VARIABLE: machine.to_json(),
        ASSUMPTIONS_VARIABLE: json.dumps(dict(assumptions or {})),
        **{name: str(value) for name, value in chosen.items() if value is not None},
    }


@contextmanager
def installed_double(
    root: Path, cards: Sequence[Card] = (RTX_5090,), **machine: Any
) -> Iterator[Path]:
    """Make this process find the packages of `root`, and forget them afterwards.

    Arguments as of `double_environment`.
    """
    variables = double_environment(root, cards, **machine)
    saved_modules = take_modules()
    saved_variables = dict(os.environ)  # all: whoever loads the library sets some too
    os.environ.update(variables)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield root
    finally:
        sys.path.remove(str(root))
        os.environ.clear()
        os.environ.update(saved_variables)
        take_modules()
        sys.modules.update(saved_modules)


def _imports_by_home() -> defaultdict[str, list[str]]:
    lines: defaultdict[str, list[str]] = defaultdict(list)
    for section in SECTIONS:
        for name, record in entries(section):
            for home in record["homes"]:
                lines[home].append(f"from tests.contract.double.public import {name} as {name}")
    for home, origin, name in (
        ("tensorrt_llm.models", "public", "MODEL_MAP"),
        ("tensorrt_llm._utils", "machine", "get_sm_version"),
    ):
        lines[home].append(f"from tests.contract.double.{origin} import {name} as {name}")
    return lines


def _write_package(folder: Path, home: str, lines: Sequence[str]) -> None:
    """Each home is a package, so that one can lie below another."""
    package = folder
    for part in home.split("."):
        package = package / part
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
    text = "\n".join(lines) + "\n"
    (package / "__init__.py").write_text(text, encoding="utf-8")


def _write_metadata(folder: Path, name: str, version: str) -> None:
    metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")


def take_modules() -> dict[str, ModuleType]:
    """Remove the packages from `sys.modules` and return what was there."""
    names = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}
