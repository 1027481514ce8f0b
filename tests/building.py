"""Engines that tests compile with the command itself, each once in a test session."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from deepinfer.__main__ import main
from deepinfer.manifest import EngineFolder, read_engine
from tests.checkpoints import make_checkpoint


class BuildEngine(Protocol):
    def __call__(self, architecture: str, precision: str, *flags: str) -> EngineFolder: ...


def make_engine_builder(folder: Path) -> BuildEngine:
    """A function that compiles a tiny random checkpoint, or returns the engine made before."""
    engines: dict[tuple[str, ...], EngineFolder] = {}

    def build(architecture: str, precision: str, *flags: str) -> EngineFolder:
        key = (architecture, precision, *flags)
        if key not in engines:
            checkpoint = folder / architecture
            if not checkpoint.exists():
                make_checkpoint(checkpoint, architecture)
            name = f"engine-{len(engines)}"
            arguments = ["--model", str(checkpoint), "--output", str(folder / "engines")]
            arguments += ["--name", name, "--precision", precision, "--target", "cpu", *flags]
            assert main(["build", *arguments]) == 0
            engines[key] = read_engine(folder / "engines" / name)
        return engines[key]

    return build
