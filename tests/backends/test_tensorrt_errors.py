"""Texts of TensorRT and TensorRT-LLM, each turned into one line and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepinfer.backends.tensorrt_errors import explain_load_error, grammar_fault
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
        ("CUDA runtime error: an illegal memory access was encountered", None),
    ],
)
def test_error_about_a_grammar_is_told_from_others(said: str, fault: str | None) -> None:
    assert grammar_fault(RuntimeError(said)) == fault
