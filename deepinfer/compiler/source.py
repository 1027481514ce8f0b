"""Finds the checkpoint that `--model` names: the sample, a folder, or a model on the hub.

For a plan only the small files are downloaded; the weights follow when a build begins, and only
safetensors are.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepinfer.adapter import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    Adapter,
    read_adapter,
)
from deepinfer.checkpoint import (
    CONFIG_NAME,
    NAMED_CHAT_TEMPLATES_DIR,
    SMALL_FILE_NAMES,
    Checkpoint,
    read_checkpoint,
)
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.staging import free_disk_bytes
from deepinfer.errors import BackendError, CheckpointError
from deepinfer.terminal import format_bytes
from deepinfer.weights import (
    PICKLE_SUFFIXES,
    WEIGHTS_INDEX_NAME,
    Tensor,
    Weights,
    are_weights_complete,
    sum_up_weights,
)

SAMPLE_NAME = "sample"
SAMPLE_DIR = Path(__file__).parent.parent / "sample"
HUB_ID_PATTERN = re.compile(r"[\w.-]+(/[\w.-]+)?")
# How the hub's cache names a repository's folder; an id has at most one slash.
HUB_CACHE_PATTERN = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?")
CODE_PATTERN = "*.py"
SMALL_FILE_PATTERNS = (*SMALL_FILE_NAMES, f"{NAMED_CHAT_TEMPLATES_DIR}/*.jinja")
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# With an LM head of its own, so that the configuration alone says whether the two are tied.
NO_WEIGHTS = Weights(
    files=(),
    num_bytes=0,
    parameters_by_dtype={"BF16": 0},
    embedding_parameters=0,
    lm_head_parameters=1,
    expert_parameters=0,
)


def find_checkpoint(
    model: str, revision: str | None = None, *, needs_weights: bool = True
) -> Checkpoint:
    """Read what `model` names, without its weights' bytes. Raises CheckpointError.

    Without `needs_weights`, a folder may lack them: a plan needs no more than their number.
    """
    if model == SAMPLE_NAME:
        _refuse_revision(revision, "the sample")
        return read_checkpoint(SAMPLE_DIR, model_id=SAMPLE_NAME)
    path = Path(model).expanduser()
    if path.is_dir():
        _refuse_revision(revision, "a folder")
        folder, model_id = _open_hub_cache(path.resolve())
        source = None if model_id is None else str(path.resolve())
        if not needs_weights and not has_weight_files(folder):
            return read_config_only_checkpoint(folder, model_id=model_id, source=source)
        return read_checkpoint(folder, model_id=model_id, source=source)
    if path.is_file():
        raise CheckpointError(
            f"`{model}` is a file", hint="give the folder with config.json and the safetensors"
        )
    if not HUB_ID_PATTERN.fullmatch(model) or model.startswith("."):
        raise CheckpointError(
            f"there is no folder `{model}`",
            hint="`--model <hub id | folder | sample>`, such as `Qwen/Qwen2.5-0.5B-Instruct`",
        )
    return _find_on_hub(model, revision)


def _open_hub_cache(path: Path) -> tuple[Path, str | None]:
    """The snapshot in a folder of the hub's cache, and the model's id by the folder's name.

    `path` is a repository's folder there, or one of its snapshots; any other is given back without
    an id. Raises CheckpointError when a repository has no snapshot that is the current one.
    """
    repository = path if path.parent.name != "snapshots" else path.parent.parent
    match = HUB_CACHE_PATTERN.fullmatch(repository.name)
    if match is None:
        return path, None
    model_id = "/".join(part for part in match.groups() if part)
    if repository != path:
        return path, model_id
    snapshots = repository / "snapshots"
    ref = repository / "refs" / "main"
    if ref.is_file():
        snapshot = snapshots / ref.read_text(encoding="utf-8").strip()
        if snapshot.parent == snapshots and snapshot.is_dir():
            return snapshot, model_id
    elif snapshots.is_dir() and len(found := [s for s in snapshots.iterdir() if s.is_dir()]) == 1:
        return found[0], model_id
    elif not snapshots.exists():
        return path, None  # only its name is that of a cache
    raise CheckpointError(
        f"`{path}` is a folder of the hub's cache without a snapshot that `refs/main` names",
        hint=f"give one of its folders in `snapshots`, or `--model {model_id}`",
    )


def find_adapter(source: str) -> Adapter:
    """Read the LoRA adapter that `source` names; one of the hub is fetched whole, being small.

    Raises CheckpointError.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return read_adapter(path)
    if not HUB_ID_PATTERN.fullmatch(source) or source.startswith("."):
        raise CheckpointError(
            f"there is no folder `{source}`", hint="`--lora <hub id | folder>`, as `peft` saves it"
        )
    hub = _import_hub()
    with _hub_errors_translated(source, None):
        folder = Path(
            hub.snapshot_download(
                source,
                allow_patterns=[ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME],
                tqdm_class=_make_progress_bar(Progress()),
            )
        )
    return read_adapter(folder, adapter_id=source, revision=folder.name)


def fetch_weights(
    checkpoint: Checkpoint, progress: Progress, *, with_code: bool = False
) -> Checkpoint:
    """The checkpoint with its weights on this machine; downloads what is missing."""
    if checkpoint.has_weights and not with_code:
        return checkpoint
    if checkpoint.revision is None:
        return checkpoint
    hub = _import_hub()
    _check_disk(checkpoint, Path(hub.constants.HF_HUB_CACHE))
    patterns = [*SMALL_FILE_PATTERNS, *checkpoint.weights.files]
    if with_code:
        patterns.append(CODE_PATTERN)
    with (
        progress.phase("download", f"{checkpoint.id} from the hub"),
        _hub_errors_translated(checkpoint.id, checkpoint.revision),
    ):
        folder = hub.snapshot_download(
            checkpoint.id,
            revision=checkpoint.revision,
            allow_patterns=patterns,
            tqdm_class=_make_progress_bar(progress),
        )
    return read_checkpoint(Path(folder), model_id=checkpoint.id, revision=checkpoint.revision)


def _check_disk(checkpoint: Checkpoint, cache: Path) -> None:
    free_bytes = free_disk_bytes(cache)
    if not checkpoint.has_weights and checkpoint.weights.num_bytes > free_bytes:
        raise CheckpointError(
            f"downloading `{checkpoint.id}` needs {format_bytes(checkpoint.weights.num_bytes)} of "
            f"disk; {format_bytes(free_bytes)} are free for `{cache}`",
            hint="free some, or set HF_HOME to a folder on another disk",
        )


def _refuse_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise CheckpointError(f"`--revision {revision}` is for models on the hub, not for {what}")


def _find_on_hub(repo_id: str, revision: str | None) -> Checkpoint:
    hub = _import_hub()
    with _hub_errors_translated(repo_id, revision):
        folder = Path(
            hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(SMALL_FILE_PATTERNS),
                tqdm_class=_make_progress_bar(Progress()),
            )
        )
        commit = folder.name
        weights = None
        if not are_weights_complete(folder):
            weights = _read_remote_weights(hub, repo_id, commit)
    return read_checkpoint(folder, model_id=repo_id, revision=commit, weights=weights)


def _read_remote_weights(hub: Any, repo_id: str, commit: str) -> Weights:
    metadata = hub.get_safetensors_metadata(repo_id, revision=commit)
    tensors = [
        Tensor(
            name=name,
            dtype=info.dtype,
            shape=tuple(info.shape),
            num_bytes=info.data_offsets[1] - info.data_offsets[0],
        )
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    ]
    return sum_up_weights(sorted(metadata.files_metadata), tensors)


def _import_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise BackendError(
            "reading a model from the hub needs huggingface-hub, which is not installed",
            hint="pip install 'deepinfer[openvino-build]'",
        ) from None
    # Its warnings, such as those about retries, end in an error of ours or in nothing.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return huggingface_hub


@contextlib.contextmanager
def _hub_errors_translated(repo_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        # The answer of the hub, if there was one, is its cause.
        raise _translate(error.__cause__ or error, repo_id, revision) from error
    except (
        errors.HfHubHTTPError,
        errors.OfflineModeIsEnabled,
        errors.NotASafetensorsRepoError,
        errors.SafetensorsParsingError,
        errors.HFValidationError,
        *_transport_errors(),
    ) as error:
        raise _translate(error, repo_id, revision) from error


def _transport_errors() -> Iterator[type[Exception]]:
    """What a broken connection raises: httpx's since huggingface-hub 1.0, requests' before it."""
    for library, name in (("httpx", "TransportError"), ("requests", "RequestException")):
        with contextlib.suppress(ImportError):
            yield getattr(importlib.import_module(library), name)


def _translate(error: BaseException, repo_id: str, revision: str | None) -> CheckpointError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"`{repo_id}` is gated: its owners let in only those who accepted their terms",
            hint=f"accept them at https://huggingface.co/{repo_id}, then `hf auth login`",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"`{repo_id}` has no revision `{revision}`",
            hint="omit `--revision` for the newest",
        )
    if isinstance(error, errors.NotASafetensorsRepoError):
        return CheckpointError(
            f"`{repo_id}` has no safetensors",
            hint="choose a model or a revision with safetensors; pickled weights can run code",
        )
    if isinstance(error, errors.HFValidationError | errors.SafetensorsParsingError):
        return CheckpointError(" ".join(str(error).split()).rstrip("."))
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403, 404):
        return CheckpointError(
            f"there is no model `{repo_id}` on the hub, or it is private",
            hint="check the spelling; for a private model, `hf auth login`",
        )
    if status is not None:
        return CheckpointError(f"the hub answers {status} for `{repo_id}`", hint="try again later")
    return CheckpointError(
        f"`{repo_id}` is not on this machine, and the hub cannot be reached",
        hint=f"run `hf download {repo_id} --local-dir <folder>` where there is a network, then "
        "`--model <folder>` here",
    )


def _make_progress_bar(progress: Progress) -> type:
    """A class for the hub's downloader that counts bytes and draws nothing of its own."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class ByteCounter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.unit == "B":
                progress.advance(int(self.n), int(self.total or 0))
            return shown

    # The default lock would start a process of its own.
    ByteCounter.set_lock(threading.RLock())
    return ByteCounter


def has_weight_files(folder: Path) -> bool:
    """Whether there is anything in `folder` that holds weights, of whatever format."""
    suffixes = (".safetensors", ".gguf", *PICKLE_SUFFIXES)
    names = [path.name for path in folder.iterdir()]
    return WEIGHTS_INDEX_NAME in names or any(name.endswith(suffixes) for name in names)


def read_config_only_checkpoint(
    folder: Path, *, model_id: str | None = None, source: str | None = None
) -> Checkpoint:
    """A checkpoint whose parameters are counted from its config.json, as far as a plan needs them.

    The weights need not be there. Raises CheckpointError.
    """
    checkpoint = read_checkpoint(
        folder, model_id=model_id, source=source, weights=NO_WEIGHTS, has_counted_weights=True
    )
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    dtype = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "BF16")
    dims = checkpoint.dims
    embedding = dims.vocab_size * dims.hidden_size
    lm_head = 0 if checkpoint.is_tied else embedding
    total = dims.num_layer_parameters + embedding + lm_head
    weights = Weights(
        files=(),
        num_bytes=total * BYTES[dtype],
        parameters_by_dtype={dtype: total},
        embedding_parameters=embedding,
        lm_head_parameters=lm_head,
        expert_parameters=dims.num_expert_parameters,
    )
    return replace(checkpoint, weights=weights)
