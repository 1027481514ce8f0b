"""engine.json: the border between compiling and serving.

An engine is a folder with an `engine.json`, a `payload/` that only the backend reads and a
`tokenizer/` that only the API process reads. The manifest is written last, so a folder without one
is not an engine. This module reads, writes and verifies; it knows no backend.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from deepinfer.errors import EngineError

MANIFEST_NAME = "engine.json"
PAYLOAD_DIR = "payload"
TOKENIZER_DIR = "tokenizer"
SCHEMA_VERSION: Final = 1

# The setting that says how many tokens of KV cache each sequence of a full batch has. An engine
# that lacks it has as many as its longest sequence takes.
CACHED_TOKENS_KEY = "cached_tokens_per_sequence"
MIN_FULL_SEQUENCES = 4  # of the longest length, that the KV cache is to hold whatever the setting

BackendName = Literal["openvino", "tensorrt-llm", "simulated"]
TARGET_KINDS = {"openvino": "cpu", "tensorrt-llm": "gpu"}  # the simulated one runs anywhere

REBUILD_HINT = "rebuild the engine with `deepinfer build --force`"

MAX_MANIFEST_BYTES = 64 * 2**20  # thousands of files have some hundred bytes each
MAX_TOKENS = 2**31 - 1  # as the libraries count them
MAX_BYTES = 2**50
MAX_VOCAB_SIZE = 2**24  # many times the largest there is
GPU_CAPABILITY = re.compile(r"sm_[0-9]{2,3}")


def _check_created_at(value: str) -> str:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() != timedelta(0) or moment.year < 1970:
        raise PydanticCustomError(
            "moment",
            "must be a moment in UTC, such as {example}",
            {"example": datetime(2026, 1, 31, tzinfo=UTC).isoformat()},
        )
    return value


def _check_relative(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == ".":
        raise PydanticCustomError("relative", "must be a path within the engine's folder")
    return name


Moment = Annotated[str, AfterValidator(_check_created_at)]  # ISO 8601, UTC
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+_!-]{0,99}$")]
RelativePath = Annotated[str, AfterValidator(_check_relative)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(Record):
    """Where the weights came from."""

    id: str  # what clients call it
    source: str  # what `deepinfer build --model` was given: a hub id, a folder or "sample"
    revision: str | None = None
    architecture: str
    num_parameters: int = Field(ge=0)
    source_digest: str  # over the names, sizes and SHA-256 of the source files that were read
    trust_remote_code: bool = False


class BackendRecord(Record):
    """The library that compiled the payload, and the settings with which it must be loaded."""

    name: BackendName
    version: Version
    libraries: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, str | int | bool] = Field(default_factory=dict)


class Target(Record):
    """The device that the payload was compiled for."""

    kind: Literal["cpu", "gpu"]
    name: str
    capability: str  # "sm_120" for a GPU, the machine type such as "x86_64" for a CPU
    features: tuple[str, ...] = ()  # CPU instruction sets that the choice of precision relied on

    @model_validator(mode="after")
    def _check_capability(self) -> Self:
        if self.kind == "gpu" and GPU_CAPABILITY.fullmatch(self.capability) is None:
            raise PydanticCustomError("capability", "capability of a gpu must be such as sm_120")
        return self


class EngineLimits(Record):
    """What one engine accepts, in tokens and sequences."""

    max_batch_size: int = Field(ge=1, le=MAX_TOKENS)
    max_input_len: int = Field(ge=1, le=MAX_TOKENS)
    max_seq_len: int = Field(ge=2, le=MAX_TOKENS)
    max_num_tokens: int = Field(ge=1, le=MAX_TOKENS)
    max_beam_width: int = Field(default=1, ge=1, le=MAX_TOKENS)


class LoraLimits(Record):
    """The adapters that an engine takes, one a request."""

    max_rank: int = Field(ge=1)
    max_loras: int = Field(ge=1)  # that are held in memory, and so may be served
    num_layers: int = Field(ge=1)
    module_shapes: dict[str, tuple[int, int]]  # outputs and inputs, by the layer's last name

    @property
    def adapter_bytes(self) -> int:
        """Of one adapter of the highest rank on every layer, in 16 bits."""
        width = sum(sum(shape) for shape in self.module_shapes.values())
        return self.num_layers * width * self.max_rank * 2

    @property
    def cache_bytes(self) -> int:
        """Of all adapters that are held, over all GPUs."""
        return self.max_loras * self.adapter_bytes


class AdapterRecord(Record):
    """The LoRA adapter that was merged into the weights."""

    id: str
    source: str  # what `deepinfer build --lora` was given
    revision: str | None = None
    digest: str  # SHA-256 over its files
    rank: int = Field(ge=1)
    base_model_id: str


class Parallelism(Record):
    tensor_parallel_size: int = Field(default=1, ge=1)
    pipeline_parallel_size: int = Field(default=1, ge=1)

    @property
    def world_size(self) -> int:
        """GPUs that hold a part of the engine each."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


class TokenRecord(Record):
    vocab_size: int = Field(ge=1, le=MAX_VOCAB_SIZE)
    bos_token_id: int | None = Field(None, ge=-MAX_TOKENS, le=MAX_TOKENS)
    pad_token_id: int | None = Field(None, ge=-MAX_TOKENS, le=MAX_TOKENS)
    eos_token_ids: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _check_eos(self) -> Self:
        if not all(0 <= token_id < self.vocab_size for token_id in self.eos_token_ids):
            raise PydanticCustomError("eos", "eos_token_ids must be ids of the vocabulary")
        return self


class FileRecord(Record):
    size_bytes: int = Field(ge=0, le=MAX_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Choice(Record):
    """One automatic decision of the planner, kept so that anyone can ask why later."""

    name: str
    value: str
    reason: str


class BuildRecord(Record):
    deepinfer_version: Version
    created_at: Moment
    duration_s: float = Field(ge=0, allow_inf_nan=False)
    peak_memory_bytes: int = Field(ge=0, le=MAX_BYTES)
    plan_digest: str
    choices: tuple[Choice, ...] = ()


class Origin(Record):
    """Which model, and which adapter in it, an engine is made of, whatever its revision."""

    model: str  # its id with the organisation's name, or its folder
    adapter: str | None = None  # what `--lora` named

    @classmethod
    def of(cls, model_id: str, source: str, adapter_source: str | None) -> Origin:
        # A folder goes by its last name alone, which others may have too.
        return cls(model=model_id if "/" in model_id else source, adapter=adapter_source)

    def __str__(self) -> str:
        return self.model if self.adapter is None else f"{self.model} with {self.adapter}"


class EngineManifest(Record):
    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(min_length=1, max_length=255)
    model: ModelRecord
    backend: BackendRecord
    precision: str
    kv_cache_precision: str
    kv_bytes_per_token: int = Field(ge=1, le=MAX_BYTES)
    target: Target
    limits: EngineLimits
    lora: LoraLimits | None = None  # None: it takes no adapters
    adapter: AdapterRecord | None = None
    parallelism: Parallelism = Parallelism()
    tokens: TokenRecord
    files: dict[RelativePath, FileRecord]  # by path in the engine folder, with forward slashes
    build: BuildRecord

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        kind = TARGET_KINDS.get(self.backend.name, self.target.kind)
        if kind != self.target.kind:
            raise PydanticCustomError(
                "target",
                "target.kind must be {kind} for the backend {backend}",
                {"kind": kind, "backend": self.backend.name},
            )
        return self

    @property
    def source_flags(self) -> str:
        """The options of `deepinfer build` that name what this engine was made of, for a shell."""
        lora = f" --lora {shlex.quote(self.adapter.source)}" if self.adapter else ""
        return f"--model {shlex.quote(self.model.source)}{lora}"

    @property
    def origin(self) -> Origin:
        base_id = self.adapter.base_model_id if self.adapter else self.model.id
        adapter = self.adapter.source if self.adapter else None
        return Origin.of(base_id, self.model.source, adapter)

    @property
    def size_bytes(self) -> int:
        return sum(record.size_bytes for record in self.files.values())

    def count_cache_blocks(self, tokens_per_block: int, num_guesses: int = 0) -> tuple[int, int]:
        """Blocks of KV cache for one sequence of the longest length, and for full batches.

        `num_guesses` tokens are held beside each sequence. The sequences of a batch share its
        blocks: few of them are as long as the longest may be.
        """
        limits = self.limits
        longest = -(-(limits.max_seq_len + num_guesses) // tokens_per_block)
        cached_tokens = int(self.backend.settings.get(CACHED_TOKENS_KEY, limits.max_seq_len))
        usual = -(-(min(cached_tokens, limits.max_seq_len) + num_guesses) // tokens_per_block)
        num_full = min(limits.max_batch_size, MIN_FULL_SEQUENCES)
        return longest, max(limits.max_batch_size * usual, num_full * longest)


class EngineFolder(Record):
    """An engine on disk: where it is and what its manifest says."""

    path: Path
    manifest: EngineManifest

    @property
    def payload_dir(self) -> Path:
        return self.path / PAYLOAD_DIR

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / TOKENIZER_DIR


def write_manifest(folder: Path, manifest: EngineManifest) -> None:
    """Write `engine.json` into `folder` and flush it to the disk."""
    with open(folder / MANIFEST_NAME, "w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_engine(folder: Path) -> EngineFolder:
    """Read one engine folder. Raises EngineError when it is not one or is of another schema."""
    path = folder / MANIFEST_NAME
    if not path.exists():
        raise EngineError(
            f"`{folder}` is not an engine: it has no {MANIFEST_NAME}",
            hint="make one with `deepinfer build --model sample`",
        )
    # A pipe or a device has no end, and reading it might wait for ever.
    if not path.is_file() or not _is_within(folder, path):
        raise EngineError(f"`{path}` is not a file of this folder", hint=REBUILD_HINT)
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise EngineError(
                f"`{path}` has more than {MAX_MANIFEST_BYTES:,} bytes", hint=REBUILD_HINT
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"cannot read `{path}`: {error}") from error
    try:
        return EngineFolder(path=folder, manifest=EngineManifest.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise EngineError(
            f"`{path}` is damaged or of another version: {where}: {first['msg']}",
            hint=REBUILD_HINT,
        ) from error


def find_engine_folders(engine_dir: Path) -> list[Path]:
    """The path of every engine in `engine_dir`, which may also be one engine itself, sorted.

    Hidden folders are builds in progress and are passed over. Raises EngineError when the folder
    does not exist, and for an engine that a symbolic link brings in from elsewhere.
    """
    if not engine_dir.is_dir():
        raise EngineError(
            f"engine folder `{engine_dir}` does not exist",
            hint="make one with `deepinfer build --model sample --output <folder>`",
        )
    if (engine_dir / MANIFEST_NAME).exists():
        return [engine_dir]
    folders = sorted(path for path in engine_dir.iterdir() if not path.name.startswith("."))
    engines = [path for path in folders if (path / MANIFEST_NAME).exists()]
    for path in engines:
        if not _is_within(engine_dir, path):
            raise EngineError(
                f"`{path}` leads out of the engine folder, to `{path.resolve()}`",
                hint="move the engine there, or serve it with an `--engine-dir` of its own",
            )
    return engines


def _is_within(folder: Path, path: Path) -> bool:
    """Whether `path` is below `folder` once every symbolic link is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def find_engines(engine_dir: Path) -> list[EngineFolder]:
    """Every engine in `engine_dir`; raises EngineError when one of them cannot be read, too."""
    return [read_engine(path) for path in find_engine_folders(engine_dir)]


def find_origins(engine_dir: Path) -> dict[str, Origin]:
    """What each engine in `engine_dir` is made of, by the name of its folder.

    Folders that cannot be read as engines are passed over, and so is a missing `engine_dir`.
    """
    origins = {}
    for path in engine_dir.glob(f"*/{MANIFEST_NAME}"):
        with suppress(EngineError):
            origins[path.parent.name] = read_engine(path.parent).manifest.origin
    return origins


def record_file(path: Path) -> FileRecord:
    """Size and SHA-256 of one file, read in pieces."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Records of every file below `folder` but the manifest, keyed by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): record_file(path)
        for path in paths
        if path != folder / MANIFEST_NAME
    }


def find_damage(engine: EngineFolder, *, with_digests: bool) -> Iterator[str]:
    """What differs between the folder and its manifest, a line each; nothing when it is whole.

    What the manifest does not list is a difference too, links among it: it would be read as a part
    of the engine, whatever it is and wherever it leads. Sizes are compared always; `with_digests`
    also reads every byte and compares SHA-256.
    """
    for name, record in engine.manifest.files.items():
        path = engine.path / name
        if not path.is_file():
            yield f"{name} is missing"
        elif not _is_within(engine.path, path):
            yield f"{name} leads out of the folder, to {path.resolve()}"
        elif (size := path.stat().st_size) != record.size_bytes:
            yield f"{name} has {size:,} bytes; the manifest says {record.size_bytes:,}"
        elif with_digests and record_file(path).sha256 != record.sha256:
            yield f"{name} differs from its SHA-256 in the manifest"
    yield from _find_unlisted(engine)


def _find_unlisted(engine: EngineFolder) -> Iterator[str]:
    listed = {MANIFEST_NAME, *engine.manifest.files}
    folders = {parent.as_posix() for name in listed for parent in PurePosixPath(name).parents}
    for root, dir_names, file_names in os.walk(engine.path):
        for name in sorted([*dir_names, *file_names]):
            path = Path(root, name)
            relative = path.relative_to(engine.path).as_posix()
            is_folder = name in dir_names and not path.is_symlink()
            if relative not in listed and not is_folder and relative not in folders:
                yield f"{relative} is not in the manifest"
