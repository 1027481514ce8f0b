"""What TensorRT-LLM quantises to on each compute capability.

Algorithms go by the library's own names. A row says what its support matrix lists, which is less
than what its builder lets through; the builder's own refusals stand beside it. All of it is that of
the release that `trtllm_release.py` calls checked.
"""

from __future__ import annotations

from dataclasses import dataclass

MXFP4_ALGOS = frozenset({"W4A16_MXFP4", "W4A8_MXFP4_FP8", "W4A8_MXFP4_MXFP8"})
AWQ_ALGOS = frozenset({"W4A16_AWQ", "W4A8_AWQ"})
WEIGHT_ONLY_ALGOS = frozenset({"W8A16", "W4A16"})


@dataclass(frozen=True)
class Capability:
    """`quant_algos` and `kv_cache_quant_algos` are in the matrix; `refused` by the builder."""

    name: str
    generation: str
    quant_algos: frozenset[str]
    kv_cache_quant_algos: frozenset[str]
    refused: frozenset[str] = frozenset()

    @property
    def has_fp8(self) -> bool:
        return "FP8" in self.quant_algos


# From the hardware table of the release's page on quantisation. It lists no row for weight-only
# INT8 and INT4, and an FP8 KV cache for Ampere, which without FP8 weights costs paged attention.
CAPABILITIES = {
    row.name: row
    for row in (
        Capability("sm_80", "Ampere", frozenset({"W4A16_AWQ"}), frozenset({"FP8"})),
        Capability("sm_86", "Ampere", frozenset({"W4A16_AWQ"}), frozenset({"FP8"})),
        Capability("sm_89", "Ada Lovelace", frozenset({"FP8"}) | AWQ_ALGOS, frozenset({"FP8"})),
        Capability(
            "sm_90",
            "Hopper",
            frozenset({"FP8", "FP8_BLOCK_SCALES", "FP8_PER_CHANNEL_PER_TOKEN"}) | AWQ_ALGOS,
            frozenset({"FP8"}),
        ),
        Capability(
            "sm_100",
            "Blackwell",
            frozenset({"FP8", "NVFP4", "FP8_BLOCK_SCALES"}) | MXFP4_ALGOS,
            frozenset({"FP8"}),
            refused=WEIGHT_ONLY_ALGOS,
        ),
        Capability(
            "sm_120",
            "Blackwell GeForce",
            frozenset({"FP8", "NVFP4"}) | MXFP4_ALGOS,
            frozenset({"FP8"}),
        ),
    )
}


def find_capability(name: str) -> Capability | None:
    return CAPABILITIES.get(name)
