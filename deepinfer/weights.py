"""The safetensors of a checkpoint, from their headers alone.

Headers are held against the files' sizes, so that a damaged download is found before anything heavy
loads. The tensors' bytes are not read here, and pickled weights are never opened.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from deepinfer.errors import CheckpointError

WEIGHTS_NAME = "model.safetensors"
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_HEADER_BYTES = 100_000_000  # as in the safetensors library

PRECISION_BY_DTYPE = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
}


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, summed up. `files` are relative to its folder."""

    files: tuple[str, ...]
    num_bytes: int
    parameters_by_dtype: Mapping[str, int]
    embedding_parameters: int  # of the token embedding alone
    lm_head_parameters: int  # 0 when the head is the embedding
    expert_parameters: int
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by tensor; may be unknown

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters_by_dtype.values())

    @property
    def dtype(self) -> str:
        """The safetensors name of the type that holds most parameters."""
        return max(self.parameters_by_dtype, key=lambda dtype: self.parameters_by_dtype[dtype])


def read_weights(folder: Path) -> Weights:
    """Sum up the safetensors of `folder` from their headers. Raises CheckpointError on damage."""
    files, weight_map = _list_weight_files(folder)
    tensors_by_file = {name: read_safetensors_header(folder / name) for name in files}
    for tensor_name, file_name in weight_map.items():
        if all(tensor.name != tensor_name for tensor in tensors_by_file[file_name]):
            raise CheckpointError(
                f"`{folder / file_name}` lacks the tensor `{tensor_name}` that the index names",
                hint="download the checkpoint again",
            )
    tensors = [tensor for name in files for tensor in tensors_by_file[name]]
    return sum_up_weights(files, tensors)


def are_weights_complete(folder: Path) -> bool:
    """Whether every safetensors file that `folder` should have is there."""
    index = folder / WEIGHTS_INDEX_NAME
    names = set(_read_weight_map(index).values()) if index.is_file() else {WEIGHTS_NAME}
    return all((folder / name).is_file() for name in names)


def sum_up_weights(files: Iterable[str], tensors: Iterable[Tensor]) -> Weights:
    """Count the parameters of `tensors`; integers are buffers or packed weights, not parameters."""
    by_dtype: Counter[str] = Counter()
    by_part: Counter[str] = Counter()
    shapes = {}
    num_bytes = 0
    for tensor in tensors:
        shapes[tensor.name] = tensor.shape
        num_bytes += tensor.num_bytes
        if tensor.dtype in PRECISION_BY_DTYPE:
            by_dtype[tensor.dtype] += tensor.num_elements
            by_part[_part_of(tensor.name)] += tensor.num_elements
    if not by_dtype:
        raise CheckpointError(
            "the checkpoint's safetensors hold no floating-point tensors",
            hint="give a checkpoint in fp32, fp16 or bf16",
        )
    return Weights(
        files=tuple(files),
        num_bytes=num_bytes,
        parameters_by_dtype=dict(by_dtype),
        embedding_parameters=by_part["embedding"],
        lm_head_parameters=by_part["lm_head"],
        expert_parameters=by_part["experts"],
        shapes=shapes,
    )


def _part_of(tensor_name: str) -> str:
    if tensor_name.endswith("embed_tokens.weight"):
        return "embedding"
    if tensor_name.endswith("lm_head.weight"):
        return "lm_head"
    return "experts" if ".experts." in tensor_name else "layers"


def read_safetensors_header(path: Path) -> list[Tensor]:
    """The tensors of one file, from its header alone. Raises CheckpointError when it is damaged."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        if start.startswith(b"version "):
            raise CheckpointError(
                f"`{path}` is a Git LFS pointer, not weights", hint="fetch them with `git lfs pull`"
            )
        if len(start) < 8 or header_bytes > min(size_bytes - 8, MAX_HEADER_BYTES):
            raise damaged(path, f"it ends inside its header, after {size_bytes:,} bytes")
        try:
            header = json.loads(file.read(header_bytes))
            tensors, data_bytes = _parse_header(header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged(path, "its header is not a safetensors header") from error
    expected_bytes = 8 + header_bytes + data_bytes
    if size_bytes != expected_bytes:
        raise damaged(path, f"it has {size_bytes:,} bytes of {expected_bytes:,}")
    return tensors


def _parse_header(header: dict[str, Any]) -> tuple[list[Tensor], int]:
    tensors = []
    data_bytes = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        tensors.append(Tensor(name, entry["dtype"], _parse_shape(entry["shape"]), end - begin))
        data_bytes = max(data_bytes, end)
    return tensors, data_bytes


def _parse_shape(shape: list[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a file that cannot be what it should be."""
    return CheckpointError(f"`{path}` is damaged: {reason}", hint="download the checkpoint again")


def _list_weight_files(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the weight files, and which tensor the index says is in which."""
    if (folder / WEIGHTS_INDEX_NAME).is_file():
        weight_map = _read_weight_map(folder / WEIGHTS_INDEX_NAME)
        names = tuple(sorted(set(weight_map.values())))
        for name in names:
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"shard `{name}` is named by {WEIGHTS_INDEX_NAME} and missing in `{folder}`",
                    hint="download the checkpoint again",
                )
        return names, weight_map
    if (folder / WEIGHTS_NAME).is_file():
        return (WEIGHTS_NAME,), {}
    raise _no_weights(folder)


def _read_weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, "it has no weight_map") from error
    for name in set(files.values()):
        shard = PurePosixPath(name)
        if shard.is_absolute() or ".." in shard.parts:
            raise damaged(path, f"it names `{name}`, which is outside of the checkpoint")
    return files


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir())
    pickled = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickled:
        return CheckpointError(
            f"`{folder}` has its weights only as pickle (`{pickled[0]}`), which can run code",
            hint="choose a revision with safetensors, or save it again with `save_pretrained`",
        )
    return CheckpointError(
        f"`{folder}` has neither {WEIGHTS_NAME} nor {WEIGHTS_INDEX_NAME}",
        hint="give a checkpoint whose weights are safetensors",
    )
