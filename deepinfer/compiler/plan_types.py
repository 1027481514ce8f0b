"""What the rules of one kind of device decide, in the words that all kinds share."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.compiler.memory import Limits
from deepinfer.compiler.roofline import Roofline
from deepinfer.compiler.tensorrt_llm_plan import TensorRtLlmPlan
from deepinfer.manifest import BackendName, Choice, LoraLimits, Parallelism, Record


class BuildNeed(Record):
    """What the build itself needs of the machine that it runs on, in bytes, and what is free."""

    memory_bytes: int
    min_memory_bytes: int  # below this it cannot end, whatever is swapped out
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int


@dataclass(frozen=True)
class Decisions:
    backend: BackendName
    precision: str
    export_precision: str
    group_size: int | None
    kv_cache_precision: str
    kv_bytes_per_token: int
    limits: Limits
    settings: dict[str, str | int | bool]
    build: BuildNeed
    choices: tuple[Choice, ...]  # without those of the limits
    warnings: tuple[str, ...] = ()
    parallelism: Parallelism = Parallelism()
    tensorrt_llm: TensorRtLlmPlan | None = None
    lora: LoraLimits | None = None
    roofline: Roofline | None = None
