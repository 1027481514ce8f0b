"""Engines for measuring what a draft gains: one in the shape of a real model, and two drafts of it.

    .venv/bin/python benchmarks/draft_pairs.py --output /tmp/pairs
    .venv/bin/python benchmarks/speculation.py /tmp/pairs/engine --draft /tmp/pairs/right

The engine has random weights, but only its first layers say anything: the others add next to
nothing to what passes through them, at the full cost of computing them. A draft of just those first
layers is always right; one with other weights is always wrong. Real drafts lie between the two.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from random_model import SHAPE, make_random_checkpoint
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
LAYER = re.compile(r"model\.layers\.(\d+)\.")
NEXT_TO_NOTHING = 1e-5  # a matrix of zeros would not be multiplied at all
ADDING = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # whose output a layer adds
Tensors = dict[str, torch.Tensor]


def layer_of(name: str) -> int:
    """-1 for what belongs to no layer."""
    found = LAYER.match(name)
    return int(found[1]) if found else -1


def silence(tensors: Tensors, num_speaking: int) -> Tensors:
    return {
        name: NEXT_TO_NOTHING * tensor
        if layer_of(name) >= num_speaking and name.endswith(ADDING)
        else tensor
        for name, tensor in tensors.items()
    }


def cut(tensors: Tensors, num_layers: int) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if layer_of(name) < num_layers}


def make_checkpoints(folder: Path, num_speaking: int) -> list[Path]:
    engine, right, wrong = (folder / f"{name}.checkpoint" for name in ("engine", "right", "wrong"))
    make_random_checkpoint(engine)
    tensors = silence(load_file(engine / WEIGHTS), num_speaking)
    save_file(tensors, engine / WEIGHTS, metadata={"format": "pt"})
    torch.manual_seed(1)
    drafts = {
        right: cut(tensors, num_speaking),
        wrong: {k: t[torch.randperm(len(t))] for k, t in cut(tensors, num_speaking).items()},
    }
    for draft, weights in drafts.items():
        shutil.copytree(engine, draft, ignore=shutil.ignore_patterns(WEIGHTS))
        save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((draft / "config.json").read_text())
        config["num_hidden_layers"] = num_speaking
        config["layer_types"] = config["layer_types"][:num_speaking]
        (draft / "config.json").write_text(json.dumps(config))
    return [engine, right, wrong]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="new folder for all of them")
    parser.add_argument("--draft-layers", type=int, default=2)
    parser.add_argument("--precision", default="int8")
    arguments = parser.parse_args()
    assert 0 < arguments.draft_layers < SHAPE["num_hidden_layers"]
    for checkpoint in make_checkpoints(arguments.output, arguments.draft_layers):
        command = [sys.executable, "-m", "deepinfer", "build", "--model", str(checkpoint)]
        command += ["--output", str(arguments.output), "--name", checkpoint.stem]
        command += ["--precision", arguments.precision, "--max-seq-len", "1024"]
        subprocess.run([*command, "--max-batch-size", "16"], check=True)


if __name__ == "__main__":
    main()
