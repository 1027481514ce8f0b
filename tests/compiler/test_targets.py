"""Which device `--target` means, on machines with and without GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from deepinfer.compiler.options import AS_ASKED
from deepinfer.compiler.targets import (
    CAPABILITIES,
    DRIVER_BYTES,
    GPU_MODELS,
    find_gpu_model,
    require_here,
    resolve_target,
)
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
    assert 11 * GIB < model.memory_bytes < 200 * GIB
    assert 4e11 < model.bandwidth_bytes_per_s < 1e13
    assert (model.flops_fp8 is not None) == ("FP8" in CAPABILITIES[model.capability].quant_algos)
    assert 1.9 < (model.flops_fp8 or 2 * model.flops_16) / model.flops_16 < 2.1
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
    gpus, settings, kind, reason = AUTO[name]
    device = resolve("auto", *gpus, **settings)
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


def test_capability_is_the_card_here_or_one_that_the_plan_names() -> None:
    assert resolve("sm_120", RTX5080).name == "NVIDIA GeForce RTX 5080"
    elsewhere = resolve("sm_120")
    assert elsewhere.name == "NVIDIA GeForce RTX 5090"
    assert "sm_120 alone is taken for this card, of 32 GiB" in elsewhere.reason
    assert "`rtx5070ti`" in elsewhere.reason
    assert resolve("sm_80", A100).name == A100.name


SPELLINGS = {
    "rtx5090": (
        "RTX5090",
        "5090",
        "rtx-5090",
        "RTX 5090",
        "NVIDIA GeForce RTX 5090",
        "GeForce 5090",
    ),
    "rtx5080": ("5080", "RTX 5080", "NVIDIA GeForce RTX 5080"),
    "rtx5070ti": ("5070Ti", "RTX 5070 Ti", "5070-ti", "NVIDIA GeForce RTX 5070 Ti"),
    "rtx5070": ("5070", "RTX 5070"),
    "rtx5060ti": ("5060 Ti", "RTX 5060 Ti 16 GB", "rtx5060ti-16gb"),
    "rtxpro6000": (
        *("RTX PRO 6000", "pro 6000", "RTX PRO 6000 Blackwell"),
        *("NVIDIA RTX PRO 6000 Blackwell Server Edition",),
    ),
    "rtx4090": ("4090", "RTX 4090"),
    "rtx4080": ("4080", "GeForce RTX 4080"),
    "l40s": ("L40S", "NVIDIA L40S"),
    "h100": ("H100", "H100 SXM5", "NVIDIA H100 80GB HBM3"),
    "h200": ("H200", "NVIDIA H200"),
    "a100-80gb": ("A100 80GB", "a100", "NVIDIA A100-SXM4-80GB"),
    "a100-40gb": ("A100 40 GB", "A100-SXM4-40GB"),
    "b200": ("B200",),
}


@pytest.mark.parametrize(
    ("spelling", "target"),
    [(spelling, target) for target, spellings in SPELLINGS.items() for spelling in spellings],
)
def test_card_is_known_in_every_spelling(spelling: str, target: str) -> None:
    assert resolve(spelling).name == resolve(target).name
    assert resolve(spelling).capability == resolve(target).capability


def test_every_row_of_the_table_is_spelt_in_some_other_way() -> None:
    assert set(SPELLINGS) == {model.target for model in GPU_MODELS}
    names = [name for model in GPU_MODELS for name in set(model.names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("spelling", ["sm120", "SM_120", "sm-120", "sm 120"])
def test_compute_capability_is_known_in_every_spelling(spelling: str) -> None:
    assert resolve(spelling).capability == "sm_120"


def test_one_of_two_cards_with_a_name_is_said() -> None:
    assert "a100-40gb" in resolve("A100").reason


@pytest.mark.parametrize("target", ["NVIDIA GeForce RTX 5090 Laptop GPU", "rtx5090-laptop"])
def test_laptop_card_is_not_the_desktop_card_of_its_name(target: str) -> None:
    with pytest.raises(PlanError, match="a laptop's card is another one") as caught:
        resolve(target)
    assert "`--target auto`" in (caught.value.hint or "")
    here = make_gpu("NVIDIA GeForce RTX 5090 Laptop GPU", (12, 0), total_gib=24, free_gib=23)
    device = resolve("NVIDIA GeForce RTX 5090 Laptop GPU", here)
    assert device.gpu is not None
    assert (device.gpu.model, device.memory_bytes) == (None, here.free_memory_bytes)


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
        ("tpu", "there is no target `tpu`", "`rtx5090`, `rtx5080`"),
        ("rtx5091", "there is no target `rtx5091`", "did you mean `rtx5090`?"),
        ("4090 Ti", "there is no target `4090 Ti`", "did you mean `rtx4090`?"),
        ("sm_86", "no sm_86 card is known here", "plan for it on a machine that has such a card"),
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
