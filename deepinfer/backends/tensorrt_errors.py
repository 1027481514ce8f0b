"""What TensorRT and TensorRT-LLM say when an engine does not load, in words that help.

Each row is a text of theirs, what it means, and the way out. Whatever is not known passes through,
shortened to its last line. Of the errors of one request, those about its grammar are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from deepinfer.errors import BackendError
from deepinfer.manifest import EngineManifest
from deepinfer.trtllm_release import CONTAINER

Explain = Callable[[re.Match[str], EngineManifest], tuple[str, str]]


def _version_differs(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        f"it was serialised by TensorRT format {found['engine']}, and this TensorRT reads "
        f"{found['current']}",
        f"rebuild it here, or serve it in {CONTAINER}",
    )


def _compute_differs(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        f"it was built for compute capability {found['built']}; this GPU has {found['here']}",
        _rebuild(manifest),
    )


def _too_few_gpus(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        f"it needs {found['needed']} GPUs; this process sees {found['here']}",
        "make them visible (`--gpus all`, CUDA_VISIBLE_DEVICES), or rebuild it for fewer",
    )


def _cannot_deserialise(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        "TensorRT cannot read it: it is for another GPU or version, or damaged",
        f"`deepinfer engines verify {manifest.name}` tells which; {_rebuild(manifest)} mends both",
    )


def _missing_rank(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (f"`{found['rank']}` is missing", _rebuild(manifest))


def _kv_cache_too_small(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        f"its KV cache does not hold one sequence of {manifest.limits.max_seq_len:,} tokens",
        "raise --kv-cache-gb or --kv-cache-fraction, or serve with a lower --max-seq-len",
    )


def _out_of_memory(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        "the GPU has not enough free memory for its weights and KV cache",
        "end what else uses the GPU (nvidia-smi), or lower --kv-cache-gb or --kv-cache-fraction",
    )


def _no_gpu(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        "CUDA finds no GPU",
        "start the container with `--gpus all`; `deepinfer doctor` looks at the driver",
    )


def _old_driver(found: re.Match[str], manifest: EngineManifest) -> tuple[str, str]:
    return (
        "the NVIDIA driver is older than this CUDA needs",
        "install driver 580 or later on the host",
    )


EXPLANATIONS: tuple[tuple[str, Explain], ...] = (
    (
        r"Current Version: (?P<current>\d+).*Serialized Engine Version: (?P<engine>\d+)",
        _version_differs,
    ),
    (r"expecting compute (?P<built>[\d.]+) got compute (?P<here>[\d.]+)", _compute_differs),
    (r"Only (?P<here>\d+) GPUs are available, but (?P<needed>\d+) are required", _too_few_gpus),
    (r"(?P<rank>rank\d+\.engine)", _missing_rank),
    (r"maxTokensInPagedKvCache", _kv_cache_too_small),
    (r"(?i)out of memory|cudaErrorMemoryAllocation|bad_alloc", _out_of_memory),
    (r"(?i)driver version is insufficient|driver is too old", _old_driver),
    (r"(?i)no CUDA GPUs|no CUDA-capable device|CUDA driver not found", _no_gpu),
    (r"(?i)failed to deserialize", _cannot_deserialise),
)


def explain_load_error(error: Exception, manifest: EngineManifest) -> BackendError:
    """One line and a way out for what the library raised when it loaded an engine."""
    said = " ".join(_texts(error))
    for pattern, explain in EXPLANATIONS:
        if found := re.search(pattern, said, re.DOTALL):
            reason, hint = explain(found, manifest)
            return BackendError(f"engine `{manifest.name}` cannot load: {reason}", hint=hint)
    return BackendError(
        f"TensorRT-LLM cannot load engine `{manifest.name}`: {last_line(error)}",
        hint=f"check it with `deepinfer engines verify {manifest.name}`",
    )


# What the library and the xgrammar within it say of a grammar that does not compile.
_OF_GRAMMARS = re.compile(r"(?i)guided decoding|grammar|ebnf|regex|json schema")
_PLACE_IN_SOURCES = re.compile(r"^.*\.(?:cc|cpp|h):\d+:\s*")


def grammar_fault(error: Exception) -> str | None:
    """What is wrong with a request's grammar; None where the error is about something else."""
    line = last_line(error)
    return _PLACE_IN_SOURCES.sub("", line) if _OF_GRAMMARS.search(line) else None


def last_line(error: BaseException) -> str:
    """What an exception says, without the trace that the native side prints above it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _texts(error: BaseException | None) -> list[str]:
    """What an error and those that caused it say, the outermost first."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


def _rebuild(manifest: EngineManifest) -> str:
    return f"`deepinfer build --model {manifest.model.source} --force`"
