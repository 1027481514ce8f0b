"""What an engine could do at most on a machine of known rates. Pure arithmetic, and no forecast.

A step of decoding reads every weight once and the cache of every sequence, and multiplies each
weight with each sequence; it cannot be shorter than the longer of the two. Prompts are held to the
arithmetic only. Weights of a mixture of experts are counted whole, so that there the bound is low.
"""

from __future__ import annotations

import msgspec

from deepinfer.bench.machine import MachineRates
from deepinfer.manifest import PAYLOAD_DIR, EngineManifest

FLOPS_PER_PARAMETER = 2  # a product and a sum


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has to read and to multiply."""

    weight_bytes: int
    num_parameters: int
    kv_bytes_per_token: int


class Bounds(msgspec.Struct, frozen=True):
    """Tokens a second, of all sequences together."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def read_work(manifest: EngineManifest) -> Work:
    """The weights are the payload without the tokenizers that some backends keep there."""
    sizes = [
        record.size_bytes
        for path, record in manifest.files.items()
        if path.startswith(f"{PAYLOAD_DIR}/") and "tokenizer" not in path
    ]
    return Work(
        weight_bytes=sum(sizes),
        num_parameters=manifest.model.num_parameters,
        kv_bytes_per_token=manifest.kv_bytes_per_token,
    )


def find_bounds(
    work: Work, rates: MachineRates, batch_size: int, context_len: int
) -> Bounds | None:
    """`context_len` tokens are in each sequence's cache. None for an engine without weights."""
    if not work.weight_bytes or not work.num_parameters:
        return None
    cache_bytes = batch_size * context_len * work.kv_bytes_per_token
    reading_s = (work.weight_bytes + cache_bytes) / rates.read_bytes_per_s
    flops_per_token = FLOPS_PER_PARAMETER * work.num_parameters
    multiplying_s = batch_size * flops_per_token / rates.gemm_flops
    return Bounds(
        prefill_tokens_per_s=rates.gemm_flops / flops_per_token,
        decode_tokens_per_s=batch_size / max(reading_s, multiplying_s),
    )
