"""Which engines fit together, and who gets how much KV cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from deepinfer.device import Cpu, Gpu, Machine
from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineError
from deepinfer.manifest import EngineFolder, FileRecord, Parallelism, Target
from deepinfer.server import memory
from deepinfer.server.memory import (
    GIB,
    Demand,
    Guesses,
    Pool,
    describe_demand,
    describe_pools,
    place_engines,
    share_memory,
)
from deepinfer.serving_limits import with_max_seq_len
from tests.engines import make_simulated_engine
from tests.server.test_app import RTX_5090


def demand(
    name: str, *, fixed: int, sequence: int, full: int, devices: Sequence[str] = ("cpu",)
) -> Demand:
    return Demand(name, tuple(devices), fixed, 0, sequence, full)


SMALL = demand("small", fixed=10, sequence=5, full=20)
LARGE = demand("large", fixed=50, sequence=10, full=40)
ON_GPU = demand("gpu", fixed=70, sequence=10, full=20, devices=["gpu"])
ON_BOTH = demand("both", fixed=10, sequence=5, full=20, devices=["cpu", "gpu"])

# Engines, usable bytes and bytes for caches of the CPU, the cache of each that fits.
SHARES: dict[str, tuple[list[Demand], int, int, dict[str, int | None]]] = {
    "room for all that both want": ([SMALL, LARGE], 120, 120, {"small": 20, "large": 40}),
    "half of what both want": ([SMALL, LARGE], 60 + 15 + 22, 100, {"small": 12, "large": 24}),
    "one sequence each": ([SMALL, LARGE], 75, 100, {"small": 5, "large": 10}),
    "second does not fit": ([SMALL, LARGE], 74, 100, {"small": 20}),
    "first does not fit": ([LARGE, SMALL], 59, 100, {"small": 20}),
    "none fits": ([LARGE, SMALL], 14, 100, {}),
    "third fits where the second does not": (
        [SMALL, LARGE, dataclasses.replace(SMALL, name="other")],
        40,
        40,
        {"small": 10, "other": 10},
    ),
    "caches are bounded": ([SMALL, LARGE], 1000, 30, {"small": 10, "large": 20}),
    "bound too small for two": ([SMALL, LARGE], 1000, 14, {"small": 14}),
    "GPU apart": ([LARGE, ON_GPU], 60, 60, {"large": 10, "gpu": 20}),
    "least of two devices": ([ON_GPU, ON_BOTH], 1000, 8, {"gpu": 10, "both": 5}),
    "device that is not there": (
        [demand("tpu", fixed=10**9, sequence=1, full=1, devices=["tpu"])],
        10,
        10,
        {"tpu": None},
    ),
}


@pytest.mark.parametrize(
    ("demands", "usable", "caches", "expected"), list(SHARES.values()), ids=list(SHARES)
)
def test_memory_is_shared_out(
    demands: list[Demand], usable: int, caches: int, expected: dict[str, int | None]
) -> None:
    pools = [Pool("cpu", usable, caches), Pool("gpu", 100, 15 if ON_BOTH in demands else 90)]
    shares = share_memory(demands, pools)
    assert shares.cache_bytes == expected
    assert set(shares.refusals) == {d.name for d in demands} - set(expected)
    on_cpu = [d for d in demands if d.name in expected and "cpu" in d.devices]
    given = sum(expected[d.name] or 0 for d in on_cpu)
    assert given <= caches and given + sum(d.fixed_bytes for d in on_cpu) <= max(usable, given)


def test_refusal_says_the_numbers() -> None:
    first = Demand("first", ("GPU 0",), 4 * GIB, GIB, GIB // 2, 8 * GIB)
    second = Demand("second", ("GPU 0",), 6 * GIB, GIB, GIB, 8 * GIB)
    refusals = share_memory([first, second], [Pool("GPU 0", 12 * GIB, 10 * GIB)]).refusals
    assert refusals == {
        "second": "it needs 8.00 GiB of GPU 0's memory (weights 6.00 GiB, overhead 1.00 GiB, KV "
        "cache of one sequence 1.00 GiB); 6.50 GiB of 12.00 GiB are left beside `first`"
    }
    tight = share_memory([first, second], [Pool("GPU 0", 90 * GIB, GIB)]).refusals["second"]
    assert tight.endswith("; 0.50 GiB are left for its KV cache beside `first`")


def machine(available_bytes: int, gpus: Sequence[Gpu] = ()) -> Machine:
    cpu = Cpu("test", "x86_64", frozenset(), 2, 2)
    return Machine(cpu, tuple(gpus), 64 * GIB, available_bytes)


def test_pools_are_the_free_memory_within_what_the_operator_allows() -> None:
    here = machine(10 * GIB, [RTX_5090])
    cpu, gpu = describe_pools(here, EngineOptions())
    assert (cpu.usable_bytes, cpu.cache_bytes) == (9 * GIB, 6 * GIB)
    assert gpu.device == "GPU 0"
    assert gpu.cache_bytes == int(RTX_5090.free_memory_bytes * 0.9)
    half = describe_pools(here, EngineOptions(kv_cache_fraction=0.5))
    assert [pool.cache_bytes for pool in half] == [5 * GIB, RTX_5090.free_memory_bytes // 2]
    fixed = describe_pools(here, EngineOptions(kv_cache_bytes=GIB))
    assert [pool.cache_bytes for pool in fixed] == [GIB, GIB]


def weighty(folder: Path, name: str, weight_bytes: int) -> EngineFolder:
    """An engine whose manifest tells of large weights; nothing here opens them."""
    engine = make_simulated_engine(folder / name, name=name, max_batch_size=4, max_seq_len=100)
    files = {"payload/w.bin": FileRecord(size_bytes=weight_bytes, sha256="0" * 64)}
    tokens = {"tokenizer/t.json": FileRecord(size_bytes=10**12, sha256="0" * 64)}
    update = {"files": files | tokens, "kv_bytes_per_token": 2**20}
    return EngineFolder(path=engine.path, manifest=engine.manifest.model_copy(update=update))


def test_demand_of_an_engine_for_a_cpu(tmp_path: Path) -> None:
    found = describe_demand(weighty(tmp_path, "one", GIB).manifest, [])
    assert found.devices == ("the CPU",)
    assert (found.weight_bytes, found.overhead_bytes) == (GIB, GIB + 250_000_000)
    assert found.sequence_bytes == 128 * 2**20  # blocks of 32 tokens are whole
    assert found.full_bytes == 4 * found.sequence_bytes


def test_demand_of_an_engine_for_two_gpus(tmp_path: Path) -> None:
    manifest = weighty(tmp_path, "one", 2 * GIB).manifest.model_copy(
        update={
            "target": Target(kind="gpu", name="any", capability="sm_120"),
            "parallelism": Parallelism(tensor_parallel_size=2),
        }
    )
    old = dataclasses.replace(RTX_5090, index=0, compute_capability=(8, 9))
    gpus = [old, *(dataclasses.replace(RTX_5090, index=i) for i in (1, 2, 3))]
    found = describe_demand(manifest, gpus)
    assert found.devices == ("GPU 1", "GPU 2")
    assert (found.weight_bytes, found.sequence_bytes) == (GIB, 64 * 2**20)
    assert describe_demand(manifest, [old]).devices == ()


def test_engine_that_is_alone_sizes_its_own_cache(tmp_path: Path) -> None:
    engine, options = weighty(tmp_path, "one", 10**15), EngineOptions(num_threads=3)
    assert place_engines([engine], options) == [(engine, options)]


def test_engines_that_fit_get_their_caches_and_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(memory.logger, "warning", lambda text, *v: warnings.append(text % v))
    monkeypatch.setattr(memory, "read_machine", lambda: machine(4 * GIB))
    engines = [weighty(tmp_path, name, size) for name, size in
               [("one", GIB // 2), ("huge", 9 * GIB), ("two", GIB // 4)]]  # fmt: skip
    placed = place_engines(engines, EngineOptions(num_threads=3))
    assert [engine.manifest.name for engine, _ in placed] == ["one", "two"]
    assert [options.kv_cache_bytes for _, options in placed] == [512 * 2**20] * 2
    assert {options.num_threads for _, options in placed} == {3}
    assert warnings[0].startswith("engine `huge` is not served: it needs 18.36 GiB of the CPU's")


def test_nothing_that_fits_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_machine", lambda: machine(GIB))
    engines = [weighty(tmp_path, name, GIB) for name in ("one", "two")]
    with pytest.raises(EngineError, match="none of 2 engines fits") as refused:
        place_engines(engines, EngineOptions())
    assert "--model" in (refused.value.hint or "")


def test_cache_is_counted_for_sequences_as_they_are_served(tmp_path: Path) -> None:
    engine = make_simulated_engine(tmp_path, max_seq_len=512, max_batch_size=8)
    found = describe_demand(with_max_seq_len(engine, 100).manifest, [])
    assert (found.sequence_bytes, found.full_bytes) == (128, 128 * 8)  # in blocks of 32 tokens


def test_cache_of_long_sequences_is_shared_but_holds_four(tmp_path: Path) -> None:
    settings: dict[str, str | int | bool] = {"cached_tokens_per_sequence": 4096}
    engine = make_simulated_engine(
        tmp_path, max_seq_len=32_768, max_batch_size=64, settings=settings
    )
    found = describe_demand(engine.manifest, [])
    assert (found.sequence_bytes, found.full_bytes) == (32_768, 64 * 4096)  # a byte for each token
    few = engine.manifest.limits.model_copy(update={"max_batch_size": 8})
    found = describe_demand(engine.manifest.model_copy(update={"limits": few}), [])
    assert found.full_bytes == 4 * 32_768
    found = describe_demand(with_max_seq_len(engine, 1024).manifest, [])
    assert (found.sequence_bytes, found.full_bytes) == (1024, 64 * 1024)


def test_guesses_take_cache_beside_each_sequence(tmp_path: Path) -> None:
    manifest = make_simulated_engine(tmp_path, max_seq_len=512, max_batch_size=8).manifest
    found = [describe_demand(manifest, [], Guesses(count)) for count in (0, 5)]
    assert [one.sequence_bytes for one in found] == [512, 544]
    assert [one.full_bytes for one in found] == [512 * 8, 544 * 8]


def test_draft_takes_weights_and_cache_beside_its_engine(tmp_path: Path) -> None:
    manifest = weighty(tmp_path, "one", 3 * GIB).manifest
    draft = weighty(tmp_path, "small", GIB).manifest
    alone = describe_demand(manifest, [])
    found = describe_demand(manifest, [], Guesses(4, draft))
    assert found.weight_bytes == alone.weight_bytes + GIB
    assert found.overhead_bytes == alone.overhead_bytes + GIB
    num_tokens = -(-(manifest.limits.max_seq_len + 4) // 32) * 32
    assert found.sequence_bytes == num_tokens * (
        manifest.kv_bytes_per_token + draft.kv_bytes_per_token
    )
