"""How fast an engine can be at the very most: what the memory and the arithmetic of a GPU allow.

An upper bound and no forecast: every byte at full bandwidth, every product at the data sheet's
rate, nothing lost to launches, attention, sampling or the link between GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.memory import BYTES_16, count_parameters, layer_bytes
from deepinfer.compiler.plan_types import Roofline
from deepinfer.compiler.targets import GpuModel
from deepinfer.manifest import Parallelism


@dataclass(frozen=True)
class _Work:
    """What one step does, over all GPUs."""

    read_bytes: float
    layer_flops: float
    lm_head_flops: float


@dataclass(frozen=True)
class _Rates:
    """Of the GPUs that work at the same time."""

    bandwidth_bytes_per_s: float
    layer_flops: float
    lm_head_flops: float

    def duration_s(self, work: _Work) -> float:
        arithmetic_s = work.layer_flops / self.layer_flops
        arithmetic_s += work.lm_head_flops / self.lm_head_flops
        return max(work.read_bytes / self.bandwidth_bytes_per_s, arithmetic_s)


def find_roofline(
    model: GpuModel,
    checkpoint: Checkpoint,
    precision: str,
    batch_size: int,
    kv_cache_bytes: int,
    parallelism: Parallelism,
) -> Roofline:
    """`kv_cache_bytes` is what `batch_size` sequences have written, over all GPUs."""
    # One sequence passes the stages one after the other; many keep all of them busy.
    alone = _rates(model, precision, parallelism.tensor_parallel_size)
    together = _rates(model, precision, parallelism.world_size)
    one = _decode(checkpoint, precision, 1, 0)
    full = _decode(checkpoint, precision, batch_size, kv_cache_bytes)
    prefill = _Work(0, 2 * _active_layers(checkpoint), 0)
    return Roofline(
        decode_tokens_per_s=int(1 / alone.duration_s(one)),
        full_batch_tokens_per_s=int(batch_size / together.duration_s(full)),
        prefill_tokens_per_s=int(1 / together.duration_s(prefill)),
    )


def _rates(model: GpuModel, precision: str, num_gpus: int) -> _Rates:
    flops = model.flops_16  # weight-only precisions are computed in 16 bits too
    if precision == "fp8":
        flops = model.flops_fp8 or flops
    elif precision == "nvfp4":
        flops = model.flops_fp4 or model.flops_fp8 or flops
    return _Rates(
        bandwidth_bytes_per_s=model.bandwidth_bytes_per_s * num_gpus,
        layer_flops=flops * num_gpus,
        lm_head_flops=model.flops_16 * num_gpus,
    )


def _decode(checkpoint: Checkpoint, precision: str, batch_size: int, kv_bytes: int) -> _Work:
    parameters = count_parameters(checkpoint)
    active = _active_layers(checkpoint)
    active_bytes = layer_bytes(checkpoint, precision) * active / parameters.layers
    lm_head_bytes = parameters.lm_head * BYTES_16
    return _Work(
        read_bytes=active_bytes + lm_head_bytes + kv_bytes,
        layer_flops=2 * active * batch_size,
        lm_head_flops=2 * parameters.lm_head * batch_size,
    )


def _active_layers(checkpoint: Checkpoint) -> float:
    """Parameters of the layers that one token meets; at best a whole batch meets the same."""
    dims = checkpoint.dims
    parameters = count_parameters(checkpoint)
    if not dims.num_experts:
        return parameters.layers
    met = (dims.num_experts_per_token or dims.num_experts) / dims.num_experts
    return parameters.layers - parameters.experts * (1 - met)
