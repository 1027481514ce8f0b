"""The plan of a build and its parts, as `--dry-run --json` prints them."""

from __future__ import annotations

import hashlib
import json

from deepinfer.compiler.options import AS_ASKED
from deepinfer.manifest import (
    AdapterRecord,
    BackendName,
    Choice,
    EngineLimits,
    LoraLimits,
    Parallelism,
    Record,
    Target,
)

# Texts about a plan and what is free today: they decide nothing about the engine.
UNDIGESTED = (
    *("name", "memory", "build", "choices", "warnings", "roofline"),
    *("fitted_limits", "alternatives", "allow_untried_release"),
)


class MemoryNeed(Record):
    """What the engine needs when it runs full, in bytes of one device, against what it may use."""

    weight_bytes: int
    kv_cache_bytes: int  # of max_batch_size sequences, as full as they are taken to be
    overhead_bytes: int
    usable_bytes: int
    num_full_sequences: int  # sequences of max_seq_len tokens that fit side by side
    longest_seq_len: int  # tokens of one sequence that has the memory to itself

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_cache_bytes + self.overhead_bytes


class BuildNeed(Record):
    """What the build itself needs of the machine that it runs on, in bytes, and what is free."""

    memory_bytes: int
    min_memory_bytes: int  # below this it cannot end, whatever is swapped out
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int


class Roofline(Record):
    """Upper bounds, in tokens per second."""

    decode_tokens_per_s: int  # of one sequence alone, its cache still short
    full_batch_tokens_per_s: int  # of max_batch_size sequences together, caches as full as planned
    prefill_tokens_per_s: int  # of prompts


PluginValue = str | bool | int | None


class TensorRtLlmPlan(Record):
    dtype: str  # "bfloat16" or "float16"
    quant_algo: str | None
    kv_cache_quant_algo: str | None
    is_prequantized: bool  # by ModelOpt: the checkpoint has its scales
    needs_calibration: bool
    calib_device: str  # "cuda" or "cpu"
    calib_data: str | None  # as requested; None is the set that ships with DeepInfer
    calib_batches: int
    calib_max_seq_length: int
    plugins: dict[str, PluginValue]  # fields of PluginConfig
    nccl_env: dict[str, str]
    has_smoke_test: bool


class PrecisionEstimate(Record):
    """What a plan in one precision would give, or why there is none."""

    precision: str
    obstacle: str | None = None
    kv_cache_precision: str | None = None
    memory: MemoryNeed | None = None
    limits: EngineLimits | None = None
    roofline: Roofline | None = None


class PlanHeader(Record):
    """What is built, and under which name."""

    name: str
    model_id: str
    revision: str | None
    architecture: str
    num_parameters: int
    source_precision: str
    trust_remote_code: bool
    allow_untried_release: bool = False  # of TensorRT-LLM


class EnginePlan(Record):
    """What the rules of one kind of device decide about an engine."""

    backend: BackendName
    target: Target
    precision: str
    export_precision: str  # of the weights before any compression, and of what is not compressed
    group_size: int | None  # of int4
    kv_cache_precision: str
    kv_bytes_per_token: int
    limits: EngineLimits
    lora: LoraLimits | None = None  # of engines that take adapters
    adapter: AdapterRecord | None = None  # merged into the weights
    parallelism: Parallelism = Parallelism()
    settings: dict[str, str | int | bool]
    memory: MemoryNeed  # of each device
    build: BuildNeed
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()
    tensorrt_llm: TensorRtLlmPlan | None = None  # of its engines only
    roofline: Roofline | None = None  # of GPUs whose speed is known
    fitted_limits: tuple[str, ...] = ()  # those that follow from how much memory is free


# The header is the second base so that its fields come first in JSON.
class BuildPlan(EnginePlan, PlanHeader):
    """A plan as it is printed, built and digested."""

    alternatives: tuple[PrecisionEstimate, ...] = ()  # to a precision that was chosen automatically

    @property
    def automatic_choices(self) -> tuple[Choice, ...]:
        return tuple(choice for choice in self.choices if choice.reason != AS_ASKED)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the engine will be.

        Memory and disk that happen to be free are left out, and so are limits that were fitted
        into them: the same options give the same plan tomorrow.
        """
        decided = self.model_dump(mode="json", exclude=set(UNDIGESTED))
        decided["limits"].update({name: "auto" for name in self.fitted_limits})
        for name in ("lora", "adapter"):
            if decided[name] is None:
                del decided[name]
        if self.tensorrt_llm is None:
            del decided["tensorrt_llm"]
        else:
            del decided["tensorrt_llm"]["has_smoke_test"]
        text = json.dumps(decided, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
