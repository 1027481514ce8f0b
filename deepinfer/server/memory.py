"""Which engines fit a machine together, and how its memory for KV caches is shared out among them.

An engine that is alone sizes its own cache when it loads; several would each take most of what is
free. So they are counted before any of them starts: weights and overhead of each, a cache for one
full sequence at least, and of what is left a share in proportion to what each could use. Engines
on different devices do not compete. Sizes are estimates from the manifest; no payload is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deepinfer.device import Gpu, Machine, read_machine
from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineError
from deepinfer.manifest import PAYLOAD_DIR, EngineFolder, EngineManifest, read_engine

logger = logging.getLogger(__name__)

GIB = 2**30
USABLE_SHARE = 0.9  # of what is free; the rest is for this process and for whatever starts later
# Of the free memory, as each backend takes it for an engine that is alone.
CPU_CACHE_SHARE, GPU_CACHE_SHARE = 0.6, 0.9
# OpenVINO keeps weights packed anew for its kernels beside the file's; with activations and the
# libraries' own memory it was 0.24 to 0.72 GB for files of 0.10 to 0.34 GB.
CPU_PACKED_COPIES, CPU_PROCESS_BYTES = 1.0, 250_000_000
GPU_PROCESS_BYTES = 1_000_000_000  # CUDA context, TensorRT and the executor's own buffers
CPU_TOKENS_PER_BLOCK = 32
CPU = "the CPU"


@dataclass(frozen=True)
class Guesses:
    """Tokens that are guessed of each sequence and step, and the draft that guesses, if any."""

    num_tokens: int = 0
    draft: EngineManifest | None = None


NO_GUESSES = Guesses()


@dataclass(frozen=True)
class Demand:
    """What one engine takes of each of its devices, in bytes."""

    name: str
    devices: tuple[str, ...]
    weight_bytes: int
    overhead_bytes: int
    sequence_bytes: int  # KV cache of one sequence of the longest length
    full_bytes: int  # KV cache of full batches, as full as they are taken to be

    @property
    def fixed_bytes(self) -> int:
        return self.weight_bytes + self.overhead_bytes

    @property
    def least_bytes(self) -> int:
        return self.fixed_bytes + self.sequence_bytes


@dataclass(frozen=True)
class Pool:
    """The memory of one device: what engines may take of it, and how much of that for caches."""

    device: str
    usable_bytes: int
    cache_bytes: int

    def cache_room(self, demands: Iterable[Demand]) -> int:
        """What is left for the caches of `demands`, which is less than nothing if they are many."""
        fixed_bytes = sum(demand.fixed_bytes for demand in demands)
        return min(self.cache_bytes, self.usable_bytes - fixed_bytes)


@dataclass(frozen=True)
class Shares:
    """The cache of each engine that fits, in bytes of each device, and why others do not."""

    cache_bytes: dict[str, int | None]  # None: none of its devices is counted here
    refusals: dict[str, str]


def share_memory(demands: Sequence[Demand], pools: Sequence[Pool]) -> Shares:
    """Take engines in their order, each that fits beside those before it; share out the rest."""
    admitted: list[Demand] = []
    refusals: dict[str, str] = {}
    for demand in demands:
        tight = next((p for p in _pools_of(demand, pools) if not _fits(p, admitted, demand)), None)
        if tight is None:
            admitted.append(demand)
        else:
            refusals[demand.name] = _explain(tight, _on(tight, admitted), demand)
    return Shares({d.name: _share(d, admitted, pools) for d in admitted}, refusals)


def _pools_of(demand: Demand, pools: Sequence[Pool]) -> list[Pool]:
    return [pool for pool in pools if pool.device in demand.devices]


def _on(pool: Pool, demands: Iterable[Demand]) -> list[Demand]:
    return [demand for demand in demands if pool.device in demand.devices]


def _fits(pool: Pool, admitted: Sequence[Demand], demand: Demand) -> bool:
    together = [*_on(pool, admitted), demand]
    return sum(d.sequence_bytes for d in together) <= pool.cache_room(together)


def _share(demand: Demand, admitted: Sequence[Demand], pools: Sequence[Pool]) -> int | None:
    shares = [_share_of(pool, _on(pool, admitted), demand) for pool in _pools_of(demand, pools)]
    return min(shares, default=None)


def _share_of(pool: Pool, together: Sequence[Demand], demand: Demand) -> int:
    """One full sequence, and of what is left as much as its part of everybody's further wishes."""
    spare_bytes = pool.cache_room(together) - sum(d.sequence_bytes for d in together)
    wished_bytes = sum(d.full_bytes - d.sequence_bytes for d in together)
    own_bytes = demand.full_bytes - demand.sequence_bytes
    if wished_bytes <= spare_bytes:
        return demand.full_bytes
    return demand.sequence_bytes + own_bytes * spare_bytes // wished_bytes


def _explain(pool: Pool, beside: Sequence[Demand], demand: Demand) -> str:
    left_bytes = max(0, pool.usable_bytes - sum(d.least_bytes for d in beside))
    others = "".join(
        f" beside `{d.name}`" if i == 0 else f", `{d.name}`" for i, d in enumerate(beside)
    )
    need = (
        f"it needs {_gib(demand.least_bytes)} of {pool.device}'s memory (weights "
        f"{_gib(demand.weight_bytes)}, overhead {_gib(demand.overhead_bytes)}, KV cache of one "
        f"sequence {_gib(demand.sequence_bytes)})"
    )
    if demand.least_bytes > left_bytes:
        return f"{need}; {_gib(left_bytes)} of {_gib(pool.usable_bytes)} are left{others}"
    left_bytes = max(0, pool.cache_room([*beside, demand]) - sum(d.sequence_bytes for d in beside))
    return f"{need}; {_gib(left_bytes)} are left for its KV cache{others}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"


def place_engines(
    engines: Sequence[EngineFolder], options: EngineOptions
) -> list[tuple[EngineFolder, EngineOptions]]:
    """The engines that fit, each with its options; those that do not are named in the log.

    One that is alone is not judged. Raises EngineError when none of several fits.
    """
    if len(engines) == 1:
        return [(engines[0], options)]
    machine = read_machine()
    draft = None if options.draft_engine is None else read_engine(Path(options.draft_engine))
    guesses = Guesses(options.num_guesses, draft.manifest if draft else None)
    demands = [describe_demand(engine.manifest, machine.gpus, guesses) for engine in engines]
    shares = share_memory(demands, describe_pools(machine, options))
    for name, reason in shares.refusals.items():
        logger.warning("engine `%s` is not served: %s", name, reason)
    if not shares.cache_bytes:
        raise EngineError(
            f"none of {len(engines)} engines fits this machine's free memory",
            hint="end what else uses it, or name one engine with --model to try it alone",
        )
    return [
        (engine, _with_cache(options, engine.manifest, shares.cache_bytes[engine.manifest.name]))
        for engine in engines
        if engine.manifest.name in shares.cache_bytes
    ]


def _with_cache(
    options: EngineOptions, manifest: EngineManifest, cache_bytes: int | None
) -> EngineOptions:
    if cache_bytes is None:
        return options
    # A backend counts the cache of all its devices together.
    total_bytes = cache_bytes * manifest.parallelism.world_size
    return msgspec.structs.replace(options, kv_cache_bytes=total_bytes)


def describe_demand(
    manifest: EngineManifest, gpus: Sequence[Gpu], guesses: Guesses = NO_GUESSES
) -> Demand:
    """What `manifest` says that its engine will take; a draft is a part of each engine."""
    num_devices = manifest.parallelism.world_size
    weight_bytes = _payload_bytes(manifest) // num_devices
    if guesses.draft is not None:
        weight_bytes += _payload_bytes(guesses.draft)
    is_gpu = manifest.target.kind == "gpu"
    packed_bytes = CPU_PROCESS_BYTES + int(weight_bytes * CPU_PACKED_COPIES)
    sequence_bytes, full_bytes = _cache_bytes_of(manifest, guesses)
    lora_bytes = manifest.lora.cache_bytes // num_devices if manifest.lora else 0
    return Demand(
        name=manifest.name,
        devices=_gpu_devices(manifest, gpus) if is_gpu else (CPU,),
        weight_bytes=weight_bytes,
        overhead_bytes=(GPU_PROCESS_BYTES if is_gpu else packed_bytes) + lora_bytes,
        sequence_bytes=sequence_bytes // num_devices,
        full_bytes=full_bytes // num_devices,
    )


def _gpu_devices(manifest: EngineManifest, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """The first GPUs that the engine was built for; it says itself when there are too few."""
    fitting = [gpu for gpu in gpus if gpu.capability == manifest.target.capability]
    return tuple(f"GPU {gpu.index}" for gpu in fitting[: manifest.parallelism.world_size])


def _payload_bytes(manifest: EngineManifest) -> int:
    prefix = f"{PAYLOAD_DIR}/"
    return sum(file.size_bytes for path, file in manifest.files.items() if path.startswith(prefix))


def _cache_bytes_of(manifest: EngineManifest, guesses: Guesses) -> tuple[int, int]:
    """KV cache of one sequence of the longest length and of full batches, over all devices."""
    block_len = int(manifest.backend.settings.get("tokens_per_block", CPU_TOKENS_PER_BLOCK))
    num_longest, num_full = manifest.count_cache_blocks(block_len, guesses.num_tokens)
    kv_bytes_per_token = manifest.kv_bytes_per_token
    if guesses.draft is not None:
        kv_bytes_per_token += guesses.draft.kv_bytes_per_token
    block_bytes = block_len * kv_bytes_per_token
    return num_longest * block_bytes, num_full * block_bytes


def describe_pools(machine: Machine, options: EngineOptions) -> list[Pool]:
    """The memory of the CPU and of each GPU, bounded by what the operator allows for caches."""
    free = [(CPU, machine.available_memory_bytes, CPU_CACHE_SHARE)]
    free += [(f"GPU {g.index}", g.free_memory_bytes, GPU_CACHE_SHARE) for g in machine.gpus]
    return [
        Pool(device, int(free_bytes * USABLE_SHARE), _cache_bytes(options, free_bytes, share))
        for device, free_bytes, share in free
    ]


def _cache_bytes(options: EngineOptions, free_bytes: int, default_share: float) -> int:
    if options.kv_cache_bytes is not None:
        return options.kv_cache_bytes
    return int(free_bytes * (options.kv_cache_fraction or default_share))
