"""Which device `--target` means, on machines with and without GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deepinfer.compiler.capabilities import CAPABILITIES
from deepinfer.compiler.devices import DRIVER_BYTES, GPU_MODELS, find_gpu_model
from deepinfer.compiler.target import require_here, resolve_target
from deepinfer.compiler.wishes import AS_ASKED
from deepinfer.device import Gpu
from deepinfer.errors import PlanError
from deepinfer.trtllm_release import CONTAINER
from tests.compiler.planning import GIB, make_gpu, make_machine, resolve

RTX5090 = make_gpu()
SECOND = make_gpu(index=1, free_gib=20)
T4 = make_gpu("Tesla T4", (7, 5), total_gib=15)
A100 = make_gpu("NVIDIA A100-SXM4-80GB", (8, 0), total_gib=80, free_gib=79)
RTX5080 = make_gpu("NVIDIA GeForce RTX 5080", (12, 0), total_gib=15.9, free_gib=15)


@pytest.mark.parametrize("model", GPU_MODELS, ids=lambda model: model.target)
def test_row_of_the_table_is_plausible(model: Any) -> None:
    assert model.capability in CAPABILITIES
    assert model.name.startswith("NVIDIA ")
    assert 20 * GIB < model.memory_bytes < 200 * GIB
    assert 5e11 < model.bandwidth_bytes_per_s < 1e13
    assert 1.9 < model.flops_fp8 / model.flops_16 < 2.1
    assert (model.flops_fp4 is not None) == ("NVFP4" in CAPABILITIES[model.capability].quant_algos)


def test_rtx_5090_has_the_memory_that_nvml_reports_and_not_32_gib() -> None:
    model = find_gpu_model("rtx5090")
    assert model is not None
    assert model.memory_bytes / GIB == pytest.approx(31.8, abs=0.1)


@pytest.mark.parametrize("target", ["auto", "cpu"])
def test_target_is_this_cpu(target: str) -> None:
    device = resolve(target)
    assert (device.kind, device.name, device.capability) == ("cpu", "A CPU", "x86_64")
    assert device.features == ("avx2", "avx512_bf16")
    assert device.has_native_bf16
    assert (device.memory_bytes, device.disk_bytes) == (200 * GIB, 500 * GIB)


AUTO: dict[str, tuple[tuple[Gpu, ...], dict[str, Any], str, str]] = {
    "no-gpu": ((), {"has_tensorrt_llm": True}, "cpu", "this machine has no NVIDIA GPU"),
    "gpu-without-library": ((RTX5090,), {}, "cpu", f"run in {CONTAINER} to use the NVIDIA GeForce"),
    "gpu-with-library": ((RTX5090,), {"has_tensorrt_llm": True}, "gpu", "compiles for sm_120"),
    "gpu-that-is-too-old": ((T4,), {"has_tensorrt_llm": True}, "cpu", "Tesla T4 is sm_75, and"),
    "older-gpu-first": ((T4, RTX5090), {"has_tensorrt_llm": True}, "gpu", "compiles for sm_120"),
    "card-without-a-row": ((A100,), {"has_tensorrt_llm": True}, "gpu", "compiles for sm_80"),
    "openvino-asked-for": (
        (RTX5090,),
        {"has_tensorrt_llm": True, "backend": "openvino"},
        "cpu",
        "the OpenVINO backend compiles for CPUs",
    ),
    "tensorrt-asked-for": (
        (RTX5090,),
        {"backend": "tensorrt-llm"},
        "gpu",
        "this machine has this GPU",
    ),
}


@pytest.mark.parametrize("name", AUTO)
def test_auto_takes_a_gpu_that_can_be_used_and_says_why_not(name: str) -> None:
    gpus, options, kind, reason = AUTO[name]
    device = resolve("auto", *gpus, **options)
    assert device.kind == kind
    assert reason in device.reason


def test_backend_for_gpus_without_a_gpu_is_refused() -> None:
    with pytest.raises(PlanError, match="this machine has no NVIDIA GPU") as caught:
        resolve("auto", backend="tensorrt-llm")
    assert "`--target rtx5090 --dry-run`" in (caught.value.hint or "")


@pytest.mark.parametrize("model", GPU_MODELS, ids=lambda model: model.target)
def test_gpu_by_name_is_known_on_any_machine(model: Any) -> None:
    device = resolve(model.target)
    assert (device.kind, device.name, device.capability) == ("gpu", model.name, model.capability)
    assert device.memory_bytes == model.memory_bytes - DRIVER_BYTES
    assert device.reason == AS_ASKED
    with pytest.raises(PlanError, match=f"this machine has no {model.name}"):
        require_here(device)


def test_gpu_in_this_machine_is_taken_as_it_is() -> None:
    device = resolve("rtx5090", T4, RTX5090, SECOND)
    assert device.memory_bytes == RTX5090.free_memory_bytes
    assert device.gpu is not None
    assert device.gpu.free_bytes == (RTX5090.free_memory_bytes, SECOND.free_memory_bytes)
    require_here(device)


def test_other_card_of_the_same_kind_is_not_the_named_one() -> None:
    with pytest.raises(PlanError, match="this machine has no NVIDIA GeForce RTX 5090"):
        require_here(resolve("rtx5090", RTX5080))


def test_capability_is_the_card_here_or_the_smallest_known() -> None:
    assert resolve("sm_120", RTX5080).name == "NVIDIA GeForce RTX 5080"
    elsewhere = resolve("sm_90")
    assert elsewhere.name == "NVIDIA H100 80GB HBM3"
    assert elsewhere.reason == "the smallest sm_90 card that is known here"
    assert resolve("sm_80", A100).name == A100.name


@pytest.mark.parametrize(
    ("name", "can_reach"),
    [("rtx5090", False), ("rtx4090", False), ("l40s", True), ("h100", True), ("b200", True)],
)
def test_geforce_cards_have_no_peer_access(name: str, can_reach: bool) -> None:
    device = resolve(name)
    assert device.gpu is not None
    assert device.gpu.has_peer_access == can_reach


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("rtx9999x", "there is no target `rtx9999x`", "`rtx5090`, `rtx4090`"),
        ("RTX5090", "there is no target `RTX5090`", "`rtx5090`"),
        ("sm_80", "no sm_80 card is known here", "plan for it on a machine that has such a card"),
        ("sm_75", "no sm_75 card is known here", "`auto`, `cpu`"),
    ],
)
def test_unknown_target_is_refused(target: str, message: str, hint: str) -> None:
    with pytest.raises(PlanError) as caught:
        resolve(target)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(("blocked", "has_access"), [((), True), (((0, 1),), False)])
def test_cards_that_nvml_keeps_apart_have_no_peer_access(
    blocked: tuple[tuple[int, int], ...], has_access: bool
) -> None:
    cards = [make_gpu("NVIDIA H100 80GB HBM3", (9, 0), index=i, total_gib=80) for i in (0, 1)]
    machine = replace(make_machine(*cards), blocked_peers=blocked)
    device = resolve_target("auto", machine, 500 * GIB, has_tensorrt_llm=True)
    assert device.gpu is not None
    assert device.gpu.has_peer_access is has_access
