"""One build from plan to published engine folder.

Staging, compiler, manifest and publication come together here, so that on any failure the
folder holds either the whole engine or what was there before.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, cast

from deepinfer import __version__
from deepinfer.adapter import Adapter
from deepinfer.checkpoint import Checkpoint, digest_source
from deepinfer.compiler.build_log import BuildLog
from deepinfer.compiler.compile_process import compile_in_child
from deepinfer.compiler.failures import UnexpectedBuildError, errors_translated
from deepinfer.compiler.lora import merge_adapter
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.staging import Staging, open_staging
from deepinfer.errors import BuildError, EngineError
from deepinfer.manifest import (
    BackendRecord,
    BuildRecord,
    EngineFolder,
    EngineManifest,
    ModelRecord,
    Origin,
    TokenRecord,
    read_engine,
    record_files,
    write_manifest,
)

COMPILERS = {
    "openvino": "deepinfer.compiler.openvino",
    "tensorrt-llm": "deepinfer.compiler.tensorrt_llm",
}
# Native code that can abort or be killed, and that must not take the command with it.
COMPILED_IN_CHILD = ("tensorrt-llm",)
MERGED_DIR = ".merged"


class Compiler(Protocol):
    """What a module of a backend offers. It is imported when a build needs it."""

    def read_versions(self, plan: BuildPlan) -> dict[str, str]:
        """Versions of the libraries that compile, the backend's own first.

        Raises BackendError when a library, or the device that the plan is for, is not here.
        """

    def compile_checkpoint(
        self, plan: BuildPlan, checkpoint: Checkpoint, folder: Path, progress: Progress
    ) -> None:
        """Write `payload/` and `tokenizer/` into the empty `folder`; raises BuildError."""


@dataclass(frozen=True)
class BuildResult:
    engine: EngineFolder
    was_up_to_date: bool


def build_engine(
    plan: BuildPlan,
    checkpoint: Checkpoint,
    output: Path,
    progress: Progress,
    *,
    adapter: Adapter | None = None,
    is_forced: bool = False,
    is_name_asked: bool = True,
) -> BuildResult:
    """Build `output/<plan.name>`, or find that it is what the plan would give.

    `adapter` is the one in the plan. An automatic name does not replace an engine of another model,
    which another build may have made since the plan.

    Raises BuildError when it cannot, BackendError when libraries are missing; either way, and
    when interrupted, `output` is left as it was.
    """
    compiler = load_compiler(plan)
    versions = compiler.read_versions(plan)
    target = output / plan.name

    def say_waiting() -> None:
        progress.write(f"waiting for another build of `{plan.name}` to finish")

    with open_staging(target, say_waiting) as staging:
        if not is_name_asked:
            _refuse_other_model(
                target,
                Origin.of(checkpoint.id, checkpoint.source, adapter.source if adapter else None),
            )
        source_digest = digest_source(checkpoint, with_code=plan.trust_remote_code)
        if not is_forced and (found := _find_same(target, plan, source_digest, versions)):
            return BuildResult(found, was_up_to_date=True)
        started_at = time.monotonic()
        with errors_translated(plan.name, target.parent):
            with _merged(checkpoint, adapter, staging.path, progress) as merged:
                peak_bytes = _compile(plan, merged, staging, progress)
            with progress.phase("seal", "digests, manifest, flush to disk"):
                build = BuildRecord(
                    deepinfer_version=__version__,
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    duration_s=round(time.monotonic() - started_at, 2),
                    peak_memory_bytes=peak_bytes,
                    plan_digest=plan.digest,
                    choices=plan.automatic_choices,
                )
                manifest = _make_manifest(
                    plan, checkpoint, staging.path, source_digest, versions, build
                )
                write_manifest(staging.path, manifest)
                staging.publish()
    return BuildResult(EngineFolder(path=target, manifest=manifest), was_up_to_date=False)


def _compile(plan: BuildPlan, checkpoint: Checkpoint, staging: Staging, progress: Progress) -> int:
    """Run the compiler; the most memory that it held, in bytes.

    The output of its libraries goes to a log; warnings about accuracy are shown, and the log's last
    lines when the compiler fails.
    """
    log = BuildLog.create(staging.target)
    is_verbose = logging.getLogger().isEnabledFor(logging.DEBUG)
    try:
        with log.follow(progress.stream) if is_verbose else nullcontext():
            if plan.backend in COMPILED_IN_CHILD:
                return compile_in_child(plan, checkpoint, staging.path, progress, log)
            with log.capture(), errors_translated(plan.name, staging.target.parent):
                load_compiler(plan).compile_checkpoint(plan, checkpoint, staging.path, progress)
            return measure_peak_memory()
    except UnexpectedBuildError:
        if not is_verbose:
            for line in log.tail():
                progress.write(f"  | {line}")
        progress.write(f"all output of the libraries: {log.path}")
        raise
    finally:
        for line in log.accuracy_warnings():
            progress.write(f"warning: {line}")


@contextmanager
def _merged(
    checkpoint: Checkpoint, adapter: Adapter | None, folder: Path, progress: Progress
) -> Iterator[Checkpoint]:
    """The checkpoint with the adapter in its weights, in a folder below `folder` for as long."""
    if adapter is None:
        yield checkpoint
        return
    with progress.phase("merge", f"adapter {adapter.id} into the weights"):
        merged = merge_adapter(checkpoint, adapter, folder / MERGED_DIR)
    try:
        yield merged
    finally:
        shutil.rmtree(merged.folder)


def load_compiler(plan: BuildPlan) -> Compiler:
    return cast(Compiler, importlib.import_module(COMPILERS[plan.backend]))


def measure_peak_memory() -> int:
    """The most memory that this process has held so far, in bytes, mapped files included."""
    import resource

    # Linux passes a parent's ru_maxrss on to its children; VmHWM is the process's own.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _refuse_other_model(target: Path, origin: Origin) -> None:
    try:
        other = read_engine(target).manifest.origin
    except EngineError:
        return  # there is none, or it is damaged and will be replaced
    if other != origin:
        raise BuildError(
            f"`{target}` is an engine of `{other}`; one of `{origin}` would replace it",
            hint="run the build again, which finds another name, or choose one with `--name`",
        )


def _find_same(
    target: Path, plan: BuildPlan, source_digest: str, versions: dict[str, str]
) -> EngineFolder | None:
    try:
        engine = read_engine(target)
    except EngineError:
        return None  # there is none, or it is damaged and will be replaced
    manifest = engine.manifest
    is_same = (
        manifest.build.plan_digest == plan.digest
        and manifest.model.source_digest == source_digest
        and manifest.backend.version == versions[plan.backend]
        and manifest.backend.libraries.get("tensorrt") == versions.get("tensorrt")
        and all((target / name).is_file() for name in manifest.files)
    )
    return engine if is_same else None


def _make_manifest(
    plan: BuildPlan,
    checkpoint: Checkpoint,
    folder: Path,
    source_digest: str,
    versions: dict[str, str],
    build: BuildRecord,
) -> EngineManifest:
    engine: dict[str, Any] = {
        name: value for name, value in plan if name in EngineManifest.model_fields
    }
    engine |= {
        "model": ModelRecord(
            # A merged model is another one than its base, which may be served beside it.
            id=plan.adapter.id if plan.adapter else checkpoint.id,
            source=checkpoint.source,
            revision=checkpoint.revision,
            architecture=checkpoint.architecture,
            num_parameters=checkpoint.num_parameters,
            source_digest=source_digest,
            trust_remote_code=plan.trust_remote_code,
        ),
        "backend": BackendRecord(
            name=plan.backend,
            version=versions[plan.backend],
            libraries={name: version for name, version in versions.items() if name != plan.backend},
            settings=plan.settings,
        ),
        "tokens": TokenRecord(
            vocab_size=checkpoint.dims.vocab_size,
            bos_token_id=checkpoint.bos_token_id,
            pad_token_id=checkpoint.pad_token_id,
            eos_token_ids=checkpoint.eos_token_ids,
        ),
        "files": record_files(folder),
        "build": build,
    }
    return EngineManifest(**engine)
