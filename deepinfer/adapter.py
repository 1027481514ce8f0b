"""What a folder of PEFT says about its LoRA adapter, and whether it fits a model.

Configuration and safetensors headers only: no torch, and no byte of the tensors but for the digest.
Kinds of adapters that would be applied wrongly, or in part, are refused by name. What is done with
one that fits, merged into a checkpoint or taken by an engine at run time, is not known here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import Checkpoint, ModelDims
from deepinfer.errors import CheckpointError
from deepinfer.manifest import LoraLimits
from deepinfer.weights import PICKLE_SUFFIXES, PRECISION_BY_DTYPE, Tensor, read_safetensors_header

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1_000_000
NAME_PREFIX = "base_model.model."
TENSOR_PATTERN = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
LAYER_PATTERN = re.compile(r"(?:.+\.)?(?:layers|h)\.(?P<layer>\d+)\.(?:.+\.)?(?P<name>[^.]+)")
MERGEABLE_PRECISIONS = ("fp32", "fp16", "bf16")
# Whatever makes an adapter more than B x A added to weights, with what it is.
REFUSED_KEYS = {
    "use_dora": "DoRA, which scales the weights as well",
    "use_qalora": "QALoRA, which is for quantised weights",
    "use_bdlora": "BD-LoRA, which is split into blocks",
    "lora_bias": "LoRA with biases",
    "modules_to_save": "LoRA with whole modules beside it",
    "trainable_token_indices": "LoRA with tokens of its own",
    "target_parameters": "LoRA of parameters that are not linear layers",
    "layer_replication": "LoRA that repeats layers",
    "alora_invocation_tokens": "aLoRA, which begins in the middle of a prompt",
    "arrow_config": "a router of several adapters",
    "kasa_config": "KaSA, which changes the weights as well",
    "monteclora_config": "MonteCLoRA, which samples its weights",
    "velora_config": "VeLoRA, which compresses activations",
}
WAY_OUT = "merge it into its base model with `peft`, and build from that folder"


@dataclass(frozen=True)
class AdaptedModule:
    """One linear layer of the base model and what is added to it: scale * B @ A."""

    name: str  # such as "model.layers.0.self_attn.q_proj"
    num_outputs: int  # rows of B
    num_inputs: int  # columns of A
    rank: int
    scale: float


@dataclass(frozen=True)
class Adapter:
    id: str  # of the hub, or the folder's name
    source: str  # what `--lora` names
    revision: str | None
    folder: Path
    base_model: str | None  # as its own configuration names it
    modules: tuple[AdaptedModule, ...]
    is_uniform: bool  # one rank and one scale for all
    is_transposed: bool  # the base model's weights are [inputs, outputs]
    digest: str  # SHA-256 over the configuration and the tensors

    @property
    def rank(self) -> int:
        return max(module.rank for module in self.modules)


def read_adapter(
    folder: Path, *, adapter_id: str | None = None, revision: str | None = None
) -> Adapter:
    """Read `folder`. Raises CheckpointError for what is not a LoRA adapter, or another kind."""
    source = adapter_id or str(folder.resolve())
    config = _read_config(folder, source)
    _refuse_other_kinds(config, source)
    weights = _find_weights(folder, source)
    shapes = _pair_tensors(read_safetensors_header(weights), source)
    base_model = config.get("base_model_name_or_path")
    return Adapter(
        id=adapter_id or folder.resolve().name,
        source=source,
        revision=revision,
        folder=folder,
        base_model=base_model if isinstance(base_model, str) and base_model else None,
        modules=tuple(_describe(name, *shapes[name], config) for name in sorted(shapes)),
        is_uniform=not config.get("rank_pattern") and not config.get("alpha_pattern"),
        is_transposed=bool(config.get("fan_in_fan_out")),
        digest=_digest(folder),
    )


def check_base(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Raise CheckpointError unless `adapter` can be merged into `checkpoint`, all of it.

    A checkpoint that is known by its dimensions alone is held against those.
    """
    if checkpoint.quantization is not None or checkpoint.precision not in MERGEABLE_PRECISIONS:
        raise CheckpointError(
            f"adapter `{adapter.id}` cannot be merged into {checkpoint.precision} weights, only "
            "into fp32, fp16 or bf16",
            hint="give the checkpoint that this one was quantised from",
        )
    for module in adapter.modules:
        shape = _find_shape(module.name, checkpoint)
        if shape is None:
            raise _does_not_fit(adapter, checkpoint.id, f"it has no linear layer `{module.name}`")
        found = shape[::-1] if adapter.is_transposed else shape
        _check_shape(adapter, module, found, checkpoint.id)


def check_limits(adapter: Adapter, limits: LoraLimits, model_id: str) -> None:
    """Raise CheckpointError unless an engine of `limits` can take `adapter` at run time."""
    if adapter.rank > limits.max_rank:
        raise CheckpointError(
            f"adapter `{adapter.id}` has rank {adapter.rank}; the engine was built for at most "
            f"{limits.max_rank}",
            hint=f"rebuild it with `--max-lora-rank {adapter.rank}`",
        )
    if not adapter.is_uniform:
        raise CheckpointError(
            f"adapter `{adapter.id}` has a rank or scale of its own for some layers "
            "(`rank_pattern`, `alpha_pattern`), which TensorRT-LLM does not read",
            hint="merge it into an engine with `deepinfer build --lora`",
        )
    for module in adapter.modules:
        match = LAYER_PATTERN.fullmatch(module.name)
        shape = limits.module_shapes.get(match["name"]) if match else None
        if match is None or shape is None or int(match["layer"]) >= limits.num_layers:
            raise _does_not_fit(adapter, model_id, f"its engine adapts no layer `{module.name}`")
        _check_shape(adapter, module, shape, model_id)


def module_shapes(dims: ModelDims) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a decoder layer's linear layers, by the names that PEFT knows."""
    hidden_size, intermediate = dims.hidden_size, dims.intermediate_size
    queries = dims.num_attention_heads * dims.head_dim
    keys = dims.num_kv_heads * dims.head_dim
    return {
        "q_proj": (queries, hidden_size),
        "k_proj": (keys, hidden_size),
        "v_proj": (keys, hidden_size),
        "qkv_proj": (queries + 2 * keys, hidden_size),
        "o_proj": (hidden_size, queries),
        "gate_proj": (intermediate, hidden_size),
        "up_proj": (intermediate, hidden_size),
        "gate_up_proj": (2 * intermediate, hidden_size),
        "down_proj": (hidden_size, intermediate),
    }


def adaptable_modules(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Those of `module_shapes` that the checkpoint has; experts are left out."""
    shapes = module_shapes(checkpoint.dims)
    if not checkpoint.weights.shapes:
        fused = {"qkv_proj", "gate_up_proj"}
        if checkpoint.model_type == "phi3":
            fused = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
        present = shapes.keys() - fused
    else:
        present = {name.split(".")[-2] for name in checkpoint.weights.shapes if "." in name}
    if checkpoint.dims.num_experts:
        present = {name for name in present if name not in ("gate_proj", "up_proj", "down_proj")}
    return {name: shape for name, shape in shapes.items() if name in present}


def _find_shape(name: str, checkpoint: Checkpoint) -> tuple[int, ...] | None:
    if name.rsplit(".")[-1] == "lm_head" and checkpoint.is_tied:
        return None  # it is the embedding, which the same change would alter as well
    if checkpoint.weights.shapes:
        return checkpoint.weights.shapes.get(f"{name}.weight")
    match = LAYER_PATTERN.fullmatch(name)
    if match is None or int(match["layer"]) >= checkpoint.dims.num_layers:
        return None
    return module_shapes(checkpoint.dims).get(match["name"])


def _check_shape(
    adapter: Adapter, module: AdaptedModule, shape: tuple[int, ...], model_id: str
) -> None:
    wanted = (module.num_outputs, module.num_inputs)
    if shape != wanted:
        raise _does_not_fit(
            adapter,
            model_id,
            f"`{module.name}` is {_size(wanted)} in the adapter and {_size(shape)} in the model",
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)


def _does_not_fit(adapter: Adapter, model_id: str, reason: str) -> CheckpointError:
    made_for = f"; its own configuration names `{adapter.base_model}`" if adapter.base_model else ""
    return CheckpointError(
        f"adapter `{adapter.id}` does not fit `{model_id}`: {reason}",
        hint=f"give the model that it was trained on{made_for}",
    )


def _read_config(folder: Path, source: str) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(
            f"`{source}` is not an adapter: it has no {ADAPTER_CONFIG_NAME}",
            hint="give a folder as `peft` saves one",
        )
    try:
        with open(path, "rb") as file:
            config = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, "it is not JSON") from error
    if not isinstance(config, dict):
        raise _damaged(path, "it is not a JSON object")
    return config


def _refuse_other_kinds(config: Mapping[str, Any], source: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"adapter `{source}` is of the kind `{kind}`; only LORA is supported", hint=WAY_OUT
        )
    refused = {key: what for key, what in REFUSED_KEYS.items() if config.get(key)}
    if config.get("bias", "none") != "none":
        refused["bias"] = "LoRA with biases"
    for key, what in refused.items():
        raise CheckpointError(
            f"adapter `{source}` is {what} (`{key}`), which is not supported", hint=WAY_OUT
        )


def _find_weights(folder: Path, source: str) -> Path:
    path = folder / ADAPTER_WEIGHTS_NAME
    if path.is_file():
        return path
    pickled = sorted(p.name for p in folder.iterdir() if p.name.endswith(PICKLE_SUFFIXES))
    if pickled:
        raise CheckpointError(
            f"adapter `{source}` has its weights only as pickle (`{pickled[0]}`), which can run "
            "code",
            hint="save it again with `save_pretrained`, which writes safetensors",
        )
    raise CheckpointError(
        f"adapter `{source}` has no {ADAPTER_WEIGHTS_NAME}", hint="download the adapter again"
    )


def _pair_tensors(
    tensors: list[Tensor], source: str
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of A and B of each module."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor in tensors:
        match = TENSOR_PATTERN.fullmatch(tensor.name.removeprefix(NAME_PREFIX))
        if match is None:
            raise CheckpointError(
                f"adapter `{source}` holds `{tensor.name}`, which is not part of a linear layer's "
                "LoRA: embeddings and whole modules are not supported",
                hint=WAY_OUT,
            )
        if tensor.dtype not in PRECISION_BY_DTYPE:
            raise CheckpointError(
                f"adapter `{source}` holds `{tensor.name}` as {tensor.dtype}, not as a "
                "floating-point number",
                hint="save it again in fp32, fp16 or bf16",
            )
        parts.setdefault(match["module"], {})[match["part"]] = tensor.shape
    pairs = {name: (found.get("A", ()), found.get("B", ())) for name, found in parts.items()}
    if not pairs:
        raise CheckpointError(
            f"adapter `{source}` changes no layer at all", hint="download the adapter again"
        )
    for name, (a, b) in pairs.items():
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] < 1:
            raise CheckpointError(
                f"adapter `{source}` is damaged: A and B of `{name}` are {_size(a) or 'missing'} "
                f"and {_size(b) or 'missing'}",
                hint="download the adapter again",
            )
    return pairs


def _describe(
    name: str, a: tuple[int, ...], b: tuple[int, ...], config: Mapping[str, Any]
) -> AdaptedModule:
    rank = a[0]
    alpha = _find_alpha(name, config)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return AdaptedModule(name, num_outputs=b[0], num_inputs=a[1], rank=rank, scale=scale)


def _find_alpha(name: str, config: Mapping[str, Any]) -> float:
    """Of one module: a pattern names the end of its name, as in `peft`."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        try:
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
                return _as_number(alpha)
        except re.error as error:
            raise CheckpointError(f"`alpha_pattern` holds `{pattern}`: {error}") from error
    return _as_number(config.get("lora_alpha"))


def _as_number(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(
            f"`lora_alpha` of an adapter is a number; {alpha!r} is given",
            hint="download the adapter again",
        )
    return float(alpha)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME):
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"`{path}` is damaged: {reason}", hint="download the adapter again")
