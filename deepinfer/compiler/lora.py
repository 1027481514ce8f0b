"""LoRA adapters: which ones an engine for GPUs accepts by request, and merging one into weights.

Merging works on the files, not on a loaded model, so it is the same for every backend, holds one
file's tensors at a time and changes only the weights that the adapter names:
W + scale * B @ A, computed in float32 and rounded once to the type of the stored weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepinfer.adapter import (
    ADAPTER_WEIGHTS_NAME,
    NAME_PREFIX,
    AdaptedModule,
    Adapter,
    adaptable_modules,
)
from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.errors import BuildError, PlanError
from deepinfer.manifest import AdapterRecord, Choice, LoraLimits
from deepinfer.terminal import format_bytes
from deepinfer.weights import read_safetensors_header

DEFAULT_MAX_LORAS = 4
# PEFT's names of linear layers, as the library's own `LoraConfig` has them.
LORA_MODULES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "qkv_proj": "attn_qkv",
    "o_proj": "attn_dense",
    "gate_proj": "mlp_h_to_4h",
    "up_proj": "mlp_gate",
    "gate_up_proj": "mlp_gate_up",
    "down_proj": "mlp_4h_to_h",
}


def choose_lora(
    checkpoint: Checkpoint, options: BuildOptions
) -> tuple[LoraLimits | None, tuple[Choice, ...]]:
    """None without `--max-lora-rank`: an engine that adapts costs memory and some speed.

    Raises PlanError for options without it, and for a model with no layer that could be adapted.
    """
    if options.max_lora_rank is None:
        if options.max_loras is not None:
            raise PlanError(
                "`--max-loras` is for engines that take adapters",
                hint="add `--max-lora-rank`, such as `--max-lora-rank 64`",
            )
        return None, ()
    modules = adaptable_modules(checkpoint)
    if not modules:
        raise PlanError(
            f"`{checkpoint.id}` has none of the layers that TensorRT-LLM adapts by request",
            hint="merge the adapter with `--lora`, and omit `--max-lora-rank`",
        )
    limits = LoraLimits(
        max_rank=options.max_lora_rank,
        max_loras=options.max_loras or DEFAULT_MAX_LORAS,
        num_layers=checkpoint.dims.num_layers,
        module_shapes=modules,
    )
    each = f"{format_bytes(limits.adapter_bytes)} each at the highest rank, held in memory"
    return limits, (
        Choice(name="max_lora_rank", value=str(limits.max_rank), reason=AS_ASKED),
        Choice(
            name="max_loras",
            value=str(limits.max_loras),
            reason=AS_ASKED if options.max_loras else each,
        ),
        Choice(
            name="lora_modules",
            value=", ".join(limits.module_shapes),
            reason="every linear layer that the library adapts",
        ),
    )


def record_adapter(adapter: Adapter, checkpoint: Checkpoint) -> AdapterRecord:
    return AdapterRecord(
        id=adapter.id,
        source=adapter.source,
        revision=adapter.revision,
        digest=adapter.digest,
        rank=adapter.rank,
        base_model_id=checkpoint.id,
    )


def merge_adapter(checkpoint: Checkpoint, adapter: Adapter, folder: Path) -> Checkpoint:
    """Write the merged checkpoint into the new `folder`, with links to all that stays as it is.

    Raises BuildError when the adapter's values are not finite.
    """
    folder.mkdir()
    source = checkpoint.folder.resolve()
    modules = {f"{module.name}.weight": module for module in adapter.modules}
    factors = _load_factors(adapter)
    for path in source.iterdir():
        if path.name in checkpoint.weights.files and any(
            tensor.name in modules for tensor in read_safetensors_header(path)
        ):
            _merge_file(path, folder / path.name, modules, factors, adapter)
        else:
            (folder / path.name).symlink_to(path)
    return replace(checkpoint, folder=folder)


def _load_factors(adapter: Adapter) -> dict[str, Any]:
    """A and B of every module in float32, by the names of the base model's modules."""
    from safetensors.torch import load_file

    tensors = load_file(adapter.folder / ADAPTER_WEIGHTS_NAME)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise BuildError(
                f"adapter `{adapter.id}` has values in `{name}` that are not finite",
                hint="its training has diverged: choose an earlier state of it",
            )
    return {name.removeprefix(NAME_PREFIX): tensor.float() for name, tensor in tensors.items()}


def _merge_file(
    path: Path,
    merged: Path,
    modules: Mapping[str, AdaptedModule],
    factors: Mapping[str, Any],
    adapter: Adapter,
) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name in tensors.keys() & modules.keys():
        module = modules[name]
        a = factors[f"{module.name}.lora_A.weight"]  # [rank, inputs]
        b = factors[f"{module.name}.lora_B.weight"]  # [outputs, rank]
        change = module.scale * (b @ a)
        weight = tensors[name]
        summed = weight.float() + (change.T if adapter.is_transposed else change)
        tensors[name] = summed.to(weight.dtype).contiguous()
    save_file(tensors, merged, metadata={"format": "pt"})
