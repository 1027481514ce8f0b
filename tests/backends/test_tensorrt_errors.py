"""Texts of TensorRT and TensorRT-LLM, each turned into one line and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepinfer.backends.tensorrt_errors import (
    describe,
    ends_batch_on_grammar,
    explain_load_error,
    grammar_fault,
    is_dead_engine,
)
from tests.backends.tensorrt import make_tensorrt_engine

# What the libraries print, as users reported it.
TEXTS = {
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
    "stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match. Note: Current "
    "Version: 228, Serialized Engine Version: 237)": (
        "TensorRT format 237, and this TensorRT reads 228",
        "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    ),
    "The engine plan file is generated on an incompatible device, expecting compute 8.9 got "
    "compute 12.0, please rebuild.": (
        "built for compute capability 8.9; this GPU has 12.0",
        "deepinfer build",
    ),
    "Only 1 GPUs are available, but 2 are required.": (
        "needs 2 GPUs; this process sees 1",
        "--gpus",
    ),
    "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine.": (
        "cannot read it",
        "deepinfer engines verify",
    ),
    "Error opening engine file: /srv/x/rank1.engine": (
        "`rank1.engine` is missing",
        "deepinfer build",
    ),
    "maxTokensInPagedKvCache (1024) must be large enough to process at least 1 sequence to "
    "completion": ("does not hold one sequence of 512 tokens", "--kv-cache-gb"),
    "CUDA error: out of memory": ("not enough free memory", "--kv-cache-gb"),
    "No CUDA GPUs are available": ("CUDA finds no GPU", "--gpus all"),
    "CUDA driver version is insufficient for CUDA runtime version": ("older", "driver 580"),
    "line of a trace\nsomething that nobody has seen": (
        "something that nobody has seen",
        "deepinfer engines verify",
    ),
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_of_the_library_becomes_one_line_with_a_way_out(tmp_path: Path, text: str) -> None:
    message, hint = TEXTS[text]
    explained = explain_load_error(RuntimeError(text), make_tensorrt_engine(tmp_path).manifest)
    assert message in explained.message and "\n" not in explained.message
    assert "llama-8b.fp8.sm120" in explained.message
    assert hint in (explained.hint or "")


def test_cause_of_an_error_is_looked_at_too(tmp_path: Path) -> None:
    error = RuntimeError("Executor worker returned error")
    error.__cause__ = RuntimeError("CUDA error: out of memory")
    explained = explain_load_error(error, make_tensorrt_engine(tmp_path).manifest)
    assert "not enough free memory" in explained.message


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("[1:2:3] /src/cpp/grammar_parser.cc:20: EBNF parser error", "EBNF parser error"),
        ("Invalid guided decoding parameters: x", "Invalid guided decoding parameters: x"),
        ("[1:2:3] /src/cpp/json.cc:902: Unsupported type\nquoted", "Unsupported type"),
        ("CUDA runtime error: an illegal memory access was encountered", None),
        ("", None),
    ],
)
def test_error_about_a_grammar_is_told_from_others(said: str, fault: str | None) -> None:
    assert grammar_fault(RuntimeError(said)) == fault


TRACE = (
    "\n1       0x7f7b3cc2d65c void tensorrt_llm::common::check<cudaError>(cudaError, int) + 92"
    "\n2       0x7f7b3d7b74f2 /usr/local/lib/libtensorrt_llm.so(+0x827d5e) [0x7f07f479dd5e]"
)
IN_FORWARD = "Encountered an error in forwardAsync function: "
XGRAMMAR = "[20:47:47] /src/_deps/xgrammar-src/cpp/grammar_parser.cc:550: "
# What ends the engine, as users and the sources have it.
DEAD = {
    "copy": f"{IN_FORWARD}[TensorRT-LLM][ERROR] CUDA runtime error in cudaMemcpyAsync(dst, src): "
    f"an illegal memory access was encountered (/src/runtime/bufferManager.cpp:156){TRACE}",
    "torch": "CUDA error: device-side assert triggered",
    "launch": "CUDA runtime error in ::cudaFreeHost(ptr): unspecified launch failure",
    "assertion of an iteration": f"{IN_FORWARD}[TensorRT-LLM][ERROR] Assertion failed: "
    f"mNextBlocks.empty() (/src/batch_manager/kvCacheManager.cpp:256){TRACE}",
    "end of an iteration": "Encountered an error in forwardSync function: std::bad_alloc",
    "ECC": "CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered",
    "NCCL": "[TensorRT-LLM][ERROR] NCCL error: unhandled cuda error",
    "cuBLAS": "CUBLAS_STATUS_EXECUTION_FAILED",
    "worker": "Executor worker died during initialization",
    "generation": "Failed during generation: Shutdown called",
    "shutdown": "LLM is shutting down",
}
# What ends one request: `is_dead_engine` must not be led by what a client wrote.
ALIVE = {
    "assertion of Python": "logprobs length: 3 != output.length: 2",
    "finish reason": "Unknown finish reason: FinishReason.NOT_FINISHED",
    "fetching": "Encountered an error when fetching new request: [TensorRT-LLM][ERROR] Assertion "
    f"failed: Prompt length (300) exceeds maximum input length (255). (/src/Request.h:99){TRACE}",
    "grammar": f'{IN_FORWARD}{XGRAMMAR}EBNF parser error at line 1, column 14: Rule "b" is not '
    "defined\n",
    "grammar with words of a GPU": f'{XGRAMMAR}Unsupported type "CUDA error: Xid 79"',
    "grammar over lines": f"{XGRAMMAR}Failed to parse:\nLLM is shutting down",
    "adapter": "lora_path (/nowhere) does not exist.",
}


@pytest.mark.parametrize("text", DEAD.values(), ids=DEAD)
def test_text_that_ends_the_engine(text: str) -> None:
    assert is_dead_engine(RuntimeError(text))
    wrapped = RuntimeError("a request failed")
    wrapped.__cause__ = RuntimeError(text)
    assert is_dead_engine(wrapped)


@pytest.mark.parametrize("text", ALIVE.values(), ids=ALIVE)
def test_text_that_ends_one_request(text: str) -> None:
    assert not is_dead_engine(RuntimeError(text))


def test_only_a_grammar_in_an_iteration_ends_the_batch() -> None:
    assert ends_batch_on_grammar(RuntimeError(ALIVE["grammar"]))
    assert not ends_batch_on_grammar(RuntimeError(ALIVE["grammar with words of a GPU"]))
    assert not ends_batch_on_grammar(RuntimeError(DEAD["assertion of an iteration"]))
    assert grammar_fault(RuntimeError(ALIVE["grammar"])) == (
        'EBNF parser error at line 1, column 14: Rule "b" is not defined'
    )


DESCRIBED = {
    DEAD["copy"]: "an illegal memory access was encountered",
    DEAD["assertion of an iteration"]: "Assertion failed: mNextBlocks.empty()",
    "[TensorRT-LLM] trace\nwhat is wrong": "what is wrong",
    "the worker failed\nStack trace:\nNoneType: None\n": "the worker failed",
    "1 validation error for TrtLlmArgs\nkv_cache_config\n  Input should be a dict\n    For further "
    "information visit https://errors.pydantic.dev/2.12/v/dict_type": "Input should be a dict",
    "": "RuntimeError",
}


@pytest.mark.parametrize("text", DESCRIBED, ids=range(len(DESCRIBED)))
def test_exception_is_described_by_its_message_and_not_by_its_trace(text: str) -> None:
    line = describe(RuntimeError(text))
    assert line.endswith(DESCRIBED[text]) and "\n" not in line
