"""The checkpoints that are measured, and their engines: random weights, made once and kept.

`SHAPED` has the shape of Qwen2.5-0.5B and stands for a model that people serve. `ONE_LAYER` is next
to no work for any engine, so that what is seen of it is the server.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.random_model import make_random_checkpoint
from benchmarks.side_by_side.contender import Model
from deepinfer.device import read_machine


@dataclass(frozen=True)
class Recipe:
    name: str
    max_streams: int
    max_seq_len: int = 1024
    precision: str = "int8"
    shape: dict[str, Any] = field(default_factory=dict)  # what differs from Qwen2.5-0.5B's


SHAPED = Recipe("qwen2.5-0.5b-shape", max_streams=32)
ONE_LAYER = Recipe(
    "one-layer",
    max_streams=128,
    shape={
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
)


def make_model(recipe: Recipe, folder: Path) -> Model:
    checkpoint = folder / recipe.name
    make_random_checkpoint(checkpoint, recipe.shape)
    engine = folder / "engines" / f"{recipe.name}.{recipe.precision}"
    if not (engine / "engine.json").exists():
        build(checkpoint, engine, recipe)
    return Model(checkpoint, engine, recipe.max_streams, recipe.max_seq_len)


def native_dtype() -> str:
    """What torch computes these weights in fastest: it emulates bf16 on a CPU that has none."""
    return "bfloat16" if read_machine().cpu.has_native_bf16 else "float32"


def build(checkpoint: Path, engine: Path, recipe: Recipe) -> None:
    command = [sys.executable, "-m", "deepinfer", "build", "--model", str(checkpoint)]
    command += ["--output", str(engine.parent), "--name", engine.name]
    command += ["--precision", recipe.precision, "--max-seq-len", str(recipe.max_seq_len)]
    command += ["--max-batch-size", str(recipe.max_streams)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    note_path(engine).write_text(done.stdout)


def note_path(engine: Path) -> Path:
    """Where what `build` said of an engine is kept, which is made once and measured often."""
    return engine.with_name(f"{engine.name}.txt")
