"""What TensorRT and TensorRT-LLM say when something fails, in words that help.

For engines that do not load: a text of theirs, what it means, and the way out. For engines that
run: whether an exception means that the device is gone, or is about one request or its grammar.
"""

from __future__ import annotations

import re
import shlex
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
        f"`deepinfer engines verify {shlex.quote(manifest.name)}` tells which; "
        f"{_rebuild(manifest)} mends both",
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
        f"TensorRT-LLM cannot load engine `{manifest.name}`: {describe(error)}",
        hint=f"check it with `deepinfer engines verify {shlex.quote(manifest.name)}`",
    )


# What says that the GPU, its driver's context or the executor is gone. The executor hands such
# errors out request by request, and goes on taking requests that fail in the same way: a CUDA error
# stays with the process that had it. What it calls an error in forward has ended a whole batch.
_DEAD_ENGINE = re.compile(
    r"CUDA (?:runtime |driver )?error|cudaError|CUDA_ERROR_|CUDA failure"
    r"|illegal memory access|unspecified launch failure|device-side assert|misaligned address"
    r"|uncorrectable ECC|\bXid\b|fallen off the bus|\b(?:CUBLAS|CUDNN)_STATUS_|cublas error"
    r"|NCCL (?:error|failure)|\bnccl(?:Unhandled|Internal|System|Remote)\w*Error"
    r"|MPI_ERR_|MPI_ABORT|executor worker|failed during generation"
    r"|LLM is shutting down|shutdown called|encountered an error in forward",
    re.IGNORECASE,
)
# The executor's words before the text of an exception in its loop.
_INTRODUCTION = r"Encountered an error [\w ]+: "
_IN_FORWARD = re.compile(r"Encountered an error in forward", re.IGNORECASE)
# An exception of xgrammar begins with its time and place, "[20:47:47] /src/cpp/grammar.cc:550: ",
# behind which it may quote a grammar. Those of the executor have their place at the end.
_OF_XGRAMMAR = re.compile(rf"^(?:{_INTRODUCTION})?(?:\[[\d:]+\] )?/\S+\.cc:\d+: ")
_OF_GRAMMARS = re.compile(r"(?i)guided decoding|grammar|ebnf|regex|json schema")
_INTRODUCED_PLACE = re.compile(rf"^(?:{_INTRODUCTION})?(?:.*\.(?:cc|cpp|h):\d+:\s*)?")
# Lines below a message: "1       0x7f3ab738cce8 tensorrt_llm::batch_manager::... + 1320" of the
# native side, and where pydantic explains its errors.
_BELOW = re.compile(r"^(?:\d+\s+0x[0-9a-f]+\b|For further information visit)")
_PLACE_BEHIND = re.compile(r"\s*\(/[^()]*:\d+\)$")


def is_dead_engine(error: BaseException) -> bool:
    """Whether the device or the executor is gone, whichever request is told so."""
    texts = _texts(error)
    if any(_OF_XGRAMMAR.search(text) for text in texts):
        return False  # a client's grammar, quoted, may hold any words
    # A trace has the names of functions that look for such errors, whatever was found.
    return any(_DEAD_ENGINE.search(line) for text in texts for line in _message_lines(text))


def ends_batch_on_grammar(error: BaseException) -> bool:
    """Whether the executor has ended all that it ran since one request's grammar is wrong."""
    text = str(error)
    return bool(_IN_FORWARD.match(text) and _OF_XGRAMMAR.search(text))


def grammar_fault(error: Exception) -> str | None:
    """What is wrong with a request's grammar; None where the error is about something else."""
    lines = _message_lines(str(error)) or [""]
    if _OF_XGRAMMAR.match(lines[0]):  # the rest is what it quotes
        return _INTRODUCED_PLACE.sub("", lines[0])
    return _INTRODUCED_PLACE.sub("", lines[-1]) if _OF_GRAMMARS.search(lines[-1]) else None


def describe(error: BaseException) -> str:
    """One line of what an exception says: no native trace below it, no place in the sources."""
    lines = _message_lines(str(error))
    return _PLACE_BEHIND.sub("", lines[-1]) if lines else type(error).__name__


def _message_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.partition("\nStack trace:")[0].splitlines()]
    return [line for line in lines if line and not _BELOW.match(line)]


def _texts(error: BaseException | None) -> list[str]:
    """What an error and those that caused it say, the outermost first."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return texts


def _rebuild(manifest: EngineManifest) -> str:
    return f"`deepinfer build {manifest.source_flags} --force`"
