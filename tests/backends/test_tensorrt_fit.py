"""Engines that this machine cannot run are refused in one line, before the library is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deepinfer.backends.tensorrt_fit import check_fit
from deepinfer.device import Gpu
from deepinfer.errors import CommandError
from deepinfer.manifest import EngineFolder, Parallelism
from tests.backends.tensorrt import INSTALLED, RTX_5090, make_tensorrt_engine


def check(
    engine: EngineFolder,
    gpus: tuple[Gpu, ...] = (RTX_5090,),
    installed: dict[str, str] | None = None,
) -> None:
    check_fit(engine, gpus, (INSTALLED if installed is None else installed).get)


def test_engine_for_this_machine_is_not_refused(tmp_path: Path) -> None:
    check(make_tensorrt_engine(tmp_path))


def test_tensorrt_without_package_metadata_is_left_to_the_library(tmp_path: Path) -> None:
    check(make_tensorrt_engine(tmp_path), installed={"tensorrt-llm": "1.2.1"})


RTX_4090 = replace(RTX_5090, name="NVIDIA GeForce RTX 4090", compute_capability=(8, 9))
OLD_DRIVER = replace(RTX_5090, driver_version="570.86.10")


def truncate_rank(engine: EngineFolder) -> None:
    (engine.payload_dir / "rank0.engine").write_bytes(b"plan")


def remove_rank(engine: EngineFolder) -> None:
    (engine.payload_dir / "rank0.engine").unlink()


REFUSED: dict[str, tuple[dict[str, object], dict[str, object], str, str]] = {
    "another compute capability": (
        {"name": "llama-8b.fp8.sm89", "capability": "sm_89"},
        {},
        "engine `llama-8b.fp8.sm89` was built for sm_89; this GPU is sm_120",
        "deepinfer build --model meta-llama/Llama-3.1-8B-Instruct --target auto",
    ),
    "a machine without a GPU": (
        {},
        {"gpus": ()},
        "was built for sm_120; this machine has no NVIDIA GPU",
        "--target cpu",
    ),
    "another TensorRT": (
        {},
        {"installed": {"tensorrt-llm": "1.2.1", "tensorrt": "10.13.3.9"}},
        "was built with TensorRT 10.14.1.48; 10.13.3.9 is installed",
        "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    ),
    "no TensorRT-LLM": (
        {},
        {"installed": {}},
        "need TensorRT-LLM, which is not installed",
        "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    ),
    "a TensorRT-LLM that lost its compiled engines": (
        {},
        {"installed": {"tensorrt-llm": "1.3.0rc22"}},
        "TensorRT-LLM 1.3.0rc22 has no compiled engines; DeepInfer works with 1.2.1",
        "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    ),
    "a TensorRT-LLM from before the backend was a module": (
        {},
        {"installed": {"tensorrt-llm": "0.21.0"}},
        "TensorRT-LLM 0.21.0 has no compiled engines",
        "nvcr.io/nvidia/tensorrt-llm/release:1.2.1",
    ),
    "too few GPUs": (
        {"parallelism": Parallelism(pipeline_parallel_size=2)},
        {"gpus": (RTX_5090, RTX_4090)},
        "was built for 2 GPUs of sm_120; this machine has 1",
        "--pipeline-parallel-size 1",
    ),
    "an old driver": (
        {},
        {"gpus": (OLD_DRIVER,)},
        "TensorRT-LLM 1.2.1 needs NVIDIA driver 580 or later on sm_120; this machine has 570.86.10",
        "install driver 580",
    ),
}


@pytest.mark.parametrize("made, machine, message, hint", REFUSED.values(), ids=REFUSED)
def test_engine_that_cannot_run_here_is_refused_in_one_line(
    tmp_path: Path,
    made: dict[str, object],
    machine: dict[str, object],
    message: str,
    hint: str,
) -> None:
    engine = make_tensorrt_engine(tmp_path, **made)  # type: ignore[arg-type]
    with pytest.raises(CommandError) as caught:
        check(engine, **machine)  # type: ignore[arg-type]
    assert message in caught.value.message and "\n" not in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "tensorrt_llm" not in sys.modules and "tensorrt" not in sys.modules


@pytest.mark.parametrize(
    "damage, message",
    [(truncate_rank, "rank0.engine has 4 bytes"), (remove_rank, "rank0.engine is missing")],
)
def test_damaged_payload_is_refused(
    tmp_path: Path, damage: Callable[[EngineFolder], None], message: str
) -> None:
    engine = make_tensorrt_engine(tmp_path)
    damage(engine)
    with pytest.raises(CommandError, match=message):
        check(engine)
