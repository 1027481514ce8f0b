"""Engines and cards of numbers alone, for what is decided before TensorRT-LLM is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepinfer.device import Gpu
from deepinfer.manifest import (
    BackendRecord,
    EngineFolder,
    EngineManifest,
    Parallelism,
    Target,
    record_files,
    write_manifest,
)
from tests.engines import make_simulated_engine

RTX_5090 = Gpu(
    index=0,
    name="NVIDIA GeForce RTX 5090",
    total_memory_bytes=32_607 * 2**20,
    free_memory_bytes=31_000 * 2**20,
    compute_capability=(12, 0),
    driver_version="580.126.20",
    cuda_version="13.0",
)
SETTINGS: dict[str, str | int | bool] = {
    "tokens_per_block": 32,
    "chunked_prefill": True,
    "block_reuse": True,
}
INSTALLED = {"tensorrt-llm": "1.2.1", "tensorrt": "10.14.1.48"}


def make_tensorrt_engine(
    folder: Path,
    *,
    name: str = "llama-8b.fp8.sm120",
    capability: str = "sm_120",
    parallelism: Parallelism | None = None,
    settings: dict[str, str | int | bool] | None = None,
    libraries: dict[str, str] | None = None,
    **changes: Any,
) -> EngineFolder:
    """A folder with the manifest of a TensorRT engine and a payload that nothing could load."""
    parallelism = parallelism or Parallelism()
    made = make_simulated_engine(folder, name=name, model_id="meta-llama/Llama-3.1-8B-Instruct")
    for rank in range(parallelism.world_size):
        (made.payload_dir / f"rank{rank}.engine").write_bytes(b"plan" * 100)
    manifest = made.manifest.model_copy(
        update={
            "backend": BackendRecord(
                name="tensorrt-llm",
                version="1.2.1",
                libraries={"tensorrt": "10.14.1.48"} if libraries is None else libraries,
                settings=SETTINGS | (settings or {}),
            ),
            "target": Target(kind="gpu", name="NVIDIA GeForce RTX 5090", capability=capability),
            "parallelism": parallelism,
            "files": record_files(folder),
            **changes,
        }
    )
    manifest = EngineManifest.model_validate(manifest.model_dump())
    write_manifest(folder, manifest)
    return EngineFolder(path=folder, manifest=manifest)
