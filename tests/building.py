"""Engines that tests compile with the command itself, each once in a test session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deepinfer.__main__ import main
from deepinfer.manifest import EngineFolder, read_engine
from tests.checkpoints import make_checkpoint

EditCheckpoint = Callable[[Path], None]


class BuildEngine(Protocol):
    def __call__(
        self,
        architecture: str,
        precision: str,
        *flags: str,
        edit_checkpoint: EditCheckpoint | None = None,
    ) -> BuiltEngine: ...


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and the checkpoint that it was compiled from."""

    checkpoint: Path
    engine: EngineFolder


def make_engine_builder(folder: Path) -> BuildEngine:
    """A function that compiles a tiny random checkpoint, or returns the engine made before."""
    built: dict[tuple[object, ...], BuiltEngine] = {}

    def build(
        architecture: str,
        precision: str,
        *flags: str,
        edit_checkpoint: EditCheckpoint | None = None,
    ) -> BuiltEngine:
        key = (architecture, precision, flags, edit_checkpoint)
        if key not in built:
            name = f"engine-{len(built)}"
            checkpoint = make_checkpoint(folder / f"checkpoint-{len(built)}", architecture)
            if edit_checkpoint is not None:
                edit_checkpoint(checkpoint)
            arguments = ["--model", str(checkpoint), "--output", str(folder / "engines")]
            arguments += ["--name", name, "--precision", precision]
            arguments += [*flags] if "--target" in flags else ["--target", "cpu", *flags]
            assert main(["build", *arguments]) == 0
            built[key] = BuiltEngine(checkpoint, read_engine(folder / "engines" / name))
        return built[key]

    return build
