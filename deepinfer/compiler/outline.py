"""A checkpoint of which there is only a config.json: its parameters are counted, not read.

Enough to plan with, on a machine that has neither the weights nor the room for them. A build
needs the whole checkpoint; who may do with an outline is not decided here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from deepinfer.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from deepinfer.weights import PICKLE_SUFFIXES, WEIGHTS_INDEX_NAME, Weights

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# With an LM head of its own, so that the configuration alone says whether the two are tied.
NO_WEIGHTS = Weights(
    files=(),
    num_bytes=0,
    parameters_by_dtype={"BF16": 0},
    embedding_parameters=0,
    lm_head_parameters=1,
    expert_parameters=0,
)


def has_weight_files(folder: Path) -> bool:
    """Whether there is anything in `folder` that holds weights, of whatever format."""
    suffixes = (".safetensors", ".gguf", *PICKLE_SUFFIXES)
    names = [path.name for path in folder.iterdir()]
    return WEIGHTS_INDEX_NAME in names or any(name.endswith(suffixes) for name in names)


def read_outline(
    folder: Path, *, model_id: str | None = None, source: str | None = None
) -> Checkpoint:
    """The checkpoint that `folder` describes, without its weights. Raises CheckpointError."""
    outline = read_checkpoint(
        folder, model_id=model_id, source=source, weights=NO_WEIGHTS, has_counted_weights=True
    )
    return replace(outline, weights=_count_weights(outline, _read_dtype(folder)))


def _count_weights(outline: Checkpoint, dtype: str) -> Weights:
    dims = outline.dims
    embedding = dims.vocab_size * dims.hidden_size
    lm_head = 0 if outline.is_tied else embedding
    total = dims.num_layer_parameters + embedding + lm_head
    return Weights(
        files=(),
        num_bytes=total * BYTES[dtype],
        parameters_by_dtype={dtype: total},
        embedding_parameters=embedding,
        lm_head_parameters=lm_head,
        expert_parameters=dims.num_expert_parameters,
    )


def _read_dtype(folder: Path) -> str:
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype")
    return DTYPES.get(str(named), "BF16")
