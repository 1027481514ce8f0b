"""The engine that repeats its prompt, compiled for the double: the HTTP tests run on it as well."""

from __future__ import annotations

import shutil
from pathlib import Path

from deepinfer.__main__ import main
from deepinfer.manifest import TokenRecord, read_engine, record_files, write_manifest
from tests.checkpoints import make_checkpoint
from tests.contract.installing import installed_double
from tests.server.serving import CONTEXT_LENGTH, ENGINE_NAME, MODEL_ID, make_echo_engine


def make_echo_tensorrt_engine(folder: Path, work_dir: Path, double_root: Path) -> None:
    """Write an engine into `folder` that speaks as that of `make_echo_engine` does."""
    checkpoint = make_checkpoint(
        work_dir / "checkpoint", max_position_embeddings=CONTEXT_LENGTH, vocab_padding=200
    )
    options = ["--model", str(checkpoint), "--output", str(work_dir), "--name", "built"]
    options += ["--target", "rtx5090", "--max-batch-size", "8"]
    with installed_double(double_root):
        assert main(["build", *options, "--max-seq-len", str(CONTEXT_LENGTH)]) == 0
    spoken = make_echo_engine(work_dir / "spoken")
    shutil.copytree(work_dir / "built", folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(spoken.tokenizer_dir, folder / "tokenizer")
    built = read_engine(folder).manifest
    assert spoken.manifest.tokens.vocab_size <= built.tokens.vocab_size
    changes = {
        "name": ENGINE_NAME,
        "model": built.model.model_copy(update={"id": MODEL_ID}),
        "tokens": TokenRecord(**spoken.manifest.tokens.model_dump()),
        "build": spoken.manifest.build,  # tests know when it was
        "files": record_files(folder),
    }
    write_manifest(folder, built.model_copy(update=changes))
