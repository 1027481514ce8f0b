"""Engine folders for tests that need no model: the simulated backend behind a real manifest."""

from __future__ import annotations

from pathlib import Path

from deepinfer.manifest import (
    PAYLOAD_DIR,
    TOKENIZER_DIR,
    BackendRecord,
    BuildRecord,
    EngineFolder,
    EngineLimits,
    EngineManifest,
    ModelRecord,
    Target,
    TokenRecord,
    read_engine,
    record_files,
    write_manifest,
)

EOS = 1


def make_simulated_engine(
    folder: Path,
    *,
    name: str = "simulated",
    model_id: str = "test/simulated",
    settings: dict[str, str | int | bool] | None = None,
    max_batch_size: int = 8,
    max_seq_len: int = 512,
    vocab_size: int = 512,
    eos_token_ids: tuple[int, ...] = (EOS,),
) -> EngineFolder:
    """Write a manifest around whatever `folder` holds already, a tokenizer for instance."""
    (folder / PAYLOAD_DIR).mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER_DIR).mkdir(exist_ok=True)
    manifest = EngineManifest(
        name=name,
        model=ModelRecord(
            id=model_id,
            source=model_id,
            architecture="None",
            num_parameters=0,
            source_digest="0" * 64,
        ),
        backend=BackendRecord(name="simulated", version="1", settings=settings or {}),
        precision="fp32",
        kv_cache_precision="f32",
        kv_bytes_per_token=1,
        target=Target(kind="cpu", name="any", capability="any"),
        limits=EngineLimits(
            max_batch_size=max_batch_size,
            max_input_len=max_seq_len - 1,
            max_seq_len=max_seq_len,
            max_num_tokens=256,
        ),
        tokens=TokenRecord(vocab_size=vocab_size, eos_token_ids=eos_token_ids),
        files=record_files(folder),
        build=BuildRecord(
            deepinfer_version="0",
            created_at="2026-01-01T00:00:00+00:00",
            duration_s=0,
            peak_memory_bytes=0,
            plan_digest="0" * 64,
        ),
    )
    write_manifest(folder, manifest)
    return EngineFolder(path=folder, manifest=manifest)


def record_again(folder: Path) -> None:
    """Let the manifest list what was changed in the engine's folder, or added to it, since."""
    manifest = read_engine(folder).manifest
    write_manifest(folder, manifest.model_copy(update={"files": record_files(folder)}))
