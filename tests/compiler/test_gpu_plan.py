"""Plans for GPUs: what fits a card, how several share an engine, and what the library is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.plan import BuildPlan
from deepinfer.compiler.target import TargetDevice
from deepinfer.compiler.tensorrt_llm_plan import TensorRtLlmPlan
from deepinfer.compiler.wishes import AS_ASKED
from deepinfer.errors import PlanError
from deepinfer.manifest import Parallelism
from tests.compiler.planning import (
    GIB,
    H100,
    LLAMA,
    LLAMA_FP8,
    QWEN14,
    QWEN32,
    RTX4090,
    RTX5090,
    TWO_5090,
    library_of,
    make_gpu,
    plan,
    read_config,
    reason,
    resolve,
    with_dims,
    with_dtype,
)


def test_rtx_5090_gets_fp8_weights_and_cache_with_reasons() -> None:
    made = plan(RTX5090, LLAMA)
    assert made.name == "llama-3.1-8b-instruct.fp8.sm120"
    assert (made.backend, made.precision, made.kv_cache_precision) == ("tensorrt-llm", "fp8", "fp8")
    assert (made.target.kind, made.target.capability) == ("gpu", "sm_120")
    assert "sm_120 has FP8 tensor cores" in reason(made, "precision")
    assert "half of bf16" in reason(made, "kv_cache_precision")
    assert made.export_precision == "bf16"
    assert made.kv_bytes_per_token == 32 * 8 * 128 * 2
    assert made.settings == {"tokens_per_block": 32, "chunked_prefill": True, "block_reuse": True}


def test_library_is_told_all_of_it_in_its_own_names() -> None:
    assert library_of(plan(RTX5090, LLAMA)) == TensorRtLlmPlan(
        dtype="bfloat16",
        quant_algo="FP8",
        kv_cache_quant_algo="FP8",
        is_prequantized=False,
        needs_calibration=True,
        calib_device="cuda",
        calib_data=None,
        calib_batches=512,
        calib_max_seq_length=512,
        plugins={
            "dtype": "bfloat16",
            "gemm_plugin": None,
            "nccl_plugin": None,
            "context_fmha": True,
            "remove_input_padding": True,
            "paged_kv_cache": True,
            "tokens_per_block": 32,
            "use_paged_context_fmha": True,
            "use_fp8_context_fmha": True,
            "reduce_fusion": False,
            "user_buffer": False,
        },
        nccl_env={},
        has_smoke_test=True,
    )


def test_eight_billion_parameters_in_fp8_fit_32_gb_with_room_for_a_large_batch() -> None:
    made = plan(RTX5090, read_config("llama-3.1-8b-instruct"))
    assert made.num_parameters == 8_030_261_248
    # Embedding and LM head stay in 16 bits.
    assert made.memory.weight_bytes == 6_979_588_096 + 2 * 1_050_673_152
    assert made.limits.max_batch_size == 256
    assert 60 <= made.memory.num_full_sequences <= 80
    assert made.memory.longest_seq_len == 131_072
    assert made.memory.total_bytes <= made.memory.usable_bytes
    assert any("counted from the dimensions" in warning for warning in made.warnings)


def test_largest_that_fits_does_fit_and_one_more_does_not() -> None:
    made = plan(RTX5090, LLAMA, precision="bf16", max_batch_size=1)
    longest = made.memory.longest_seq_len
    assert 4096 < longest < 131_072
    wishes: dict[str, Any] = {"precision": "bf16", "max_batch_size": 1}
    assert plan(RTX5090, LLAMA, max_seq_len=longest, **wishes).memory.num_full_sequences == 1
    assert refusal(RTX5090, LLAMA, max_seq_len=longest + 32, **wishes)


def refusal(device: TargetDevice, checkpoint: Checkpoint, **wishes: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan(device, checkpoint, **wishes)
    return caught.value


def test_every_way_out_of_what_does_not_fit_is_one() -> None:
    wishes: dict[str, Any] = {"max_batch_size": 300, "max_seq_len": 8192, "max_num_tokens": 16_384}
    error = refusal(RTX5090, LLAMA, **wishes)
    assert "may use 28 GiB of the free memory of the GPU" in error.message
    assert "for 300 sequences of 8,192 tokens that fill 1/4" in error.message
    ways = re.findall(r"`--([a-z-]+) (\w+)`", error.hint or "")
    assert [name for name, _ in ways] == [
        "max-batch-size",
        "max-seq-len",
        "pipeline-parallel-size",
    ]
    for name, value in ways:
        plan(RTX5090, LLAMA, **{**wishes, name.replace("-", "_"): value})
    batch = int(dict(ways)["max-batch-size"])
    assert refusal(RTX5090, LLAMA, **{**wishes, "max_batch_size": batch + 1})


def test_lower_precision_is_offered_where_it_fits() -> None:
    error = refusal(RTX5090, QWEN14, precision="bf16")
    assert error.hint == (
        "`--precision nvfp4` or `--precision fp8` or `--pipeline-parallel-size 2`"
    )
    plan(RTX5090, QWEN14, precision="nvfp4")
    plan(RTX5090, QWEN14, precision="fp8")
    plan(RTX5090, QWEN14, precision="bf16", pipeline_parallel_size=2)


def test_shorter_steps_are_offered_where_they_fit() -> None:
    small = resolve("sm_120", make_gpu("NVIDIA GeForce RTX 5080", total_gib=16, free_gib=13))
    error = refusal(small, LLAMA, max_num_tokens=16_384)
    (num_tokens,) = re.findall(r"`--max-num-tokens (\d+)`", error.hint or "")
    plan(small, LLAMA, max_num_tokens=int(num_tokens))


def test_other_cards_are_offered_only_where_there_are_some() -> None:
    alone = resolve("rtx5090", make_gpu())
    hint_on_peers = refusal(H100, QWEN32, precision="bf16", max_seq_len=40_960).hint
    assert "parallel" not in (refusal(alone, QWEN32).hint or "")
    assert "`--pipeline-parallel-size 2`" in (refusal(TWO_5090, QWEN32).hint or "")
    assert "`--tensor-parallel-size 2`" in (hint_on_peers or "")


def test_what_fits_no_way_asks_for_a_larger_gpu() -> None:
    huge = with_dims(LLAMA_FP8, num_attention_heads=31, num_layers=31)
    huge = replace(huge, weights=replace(huge.weights, num_bytes=200 * GIB))
    assert refusal(RTX5090, huge).hint == "a smaller model, or a GPU with more memory"


def test_two_geforce_cards_share_out_the_layers() -> None:
    made = plan(TWO_5090, QWEN32, pipeline_parallel_size=2)
    assert made.name == "qwen3-32b.fp8.sm120.pp2"
    assert made.parallelism == Parallelism(pipeline_parallel_size=2)
    assert library_of(made).nccl_env == {"NCCL_P2P_DISABLE": "1"}
    assert made.settings["NCCL_P2P_DISABLE"] == "1"
    assert library_of(made).plugins["nccl_plugin"] == "auto"
    assert "no peer access" in reason(made, "nccl_env")
    assert not any("tensor parallel" in warning for warning in made.warnings)


def test_tensor_parallel_on_geforce_is_allowed_and_warned_of() -> None:
    made = plan(TWO_5090, LLAMA, tensor_parallel_size=2)
    assert made.name.endswith(".tp2")
    assert library_of(made).nccl_env == {"NCCL_P2P_DISABLE": "1"}
    assert any("`--pipeline-parallel-size` sends far less" in text for text in made.warnings)
    peers = plan(H100, LLAMA, tensor_parallel_size=2)
    assert library_of(peers).nccl_env == {}
    assert not any("tensor parallel" in warning for warning in peers.warnings)


def test_each_of_two_cards_holds_a_half() -> None:
    alone, halves = plan(H100, LLAMA), plan(H100, LLAMA, tensor_parallel_size=2)
    assert halves.memory.weight_bytes == alone.memory.weight_bytes // 2
    assert halves.memory.num_full_sequences > 2 * alone.memory.num_full_sequences
    assert halves.kv_bytes_per_token == alone.kv_bytes_per_token
    stages = plan(H100, LLAMA, pipeline_parallel_size=2)
    # One stage has the embedding, and the other the LM head.
    assert stages.memory.weight_bytes == alone.memory.weight_bytes // 2


def test_busiest_card_decides_what_fits() -> None:
    uneven = resolve("rtx5090", make_gpu(), make_gpu(index=1, free_gib=16))
    one = plan(uneven, LLAMA)
    two = plan(uneven, LLAMA, pipeline_parallel_size=2)
    assert one.memory.usable_bytes == int(31.2 * GIB * 0.9)
    assert two.memory.usable_bytes == int(16 * GIB * 0.9)


def test_model_too_large_for_the_card_in_16_bits_is_calibrated_on_the_cpu() -> None:
    library = library_of(plan(RTX5090, QWEN14))
    assert (library.calib_device, library.calib_batches) == ("cpu", 64)
    assert library_of(plan(H100, QWEN14)).calib_device == "cuda"


def test_calibration_data_and_smoke_test_are_as_asked() -> None:
    library = library_of(plan(RTX5090, LLAMA, calib_data="texts.jsonl", smoke_test=False))
    assert (library.calib_data, library.has_smoke_test) == ("texts.jsonl", False)


def test_range_of_fp16_is_warned_of() -> None:
    warned = [
        any("less range" in warning for warning in plan(RTX5090, model, precision="fp16").warnings)
        for model in (LLAMA, with_dtype(LLAMA, "F16"))
    ]
    assert warned == [True, False]


def test_build_that_this_machine_cannot_hold_is_refused_only_where_it_would_run() -> None:
    cramped = {"host_memory_bytes": 16 * GIB}
    assert plan(replace(RTX5090, **cramped), LLAMA).build.memory_bytes > 16 * GIB
    with pytest.raises(PlanError, match="the build needs"):
        plan(replace(TWO_5090, **cramped), LLAMA)


def test_every_choice_has_a_reason() -> None:
    made = plan(TWO_5090, LLAMA, pipeline_parallel_size=2, precision="fp8")
    assert all(choice.reason for choice in made.choices)
    assert reason(made, "pipeline_parallel_size") == reason(made, "precision") == AS_ASKED


def test_plan_survives_json() -> None:
    made = plan(RTX5090, LLAMA)
    assert made.roofline is not None
    assert BuildPlan.model_validate_json(made.model_dump_json()) == made


def test_same_card_is_the_same_plan_whatever_is_free_and_wherever_it_is_made() -> None:
    busy = resolve("rtx5090", make_gpu(free_gib=14))
    digests = {plan(device, LLAMA).digest for device in (RTX5090, TWO_5090, busy)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("device", "wishes"),
    [
        (RTX4090, {}),
        (RTX5090, {"precision": "nvfp4"}),
        (RTX5090, {"kv_cache_precision": "bf16"}),
        (RTX5090, {"calib_data": Path("texts")}),
        (RTX5090, {"pipeline_parallel_size": 2}),
        (RTX5090, {"max_num_tokens": 4096}),
    ],
    ids=["device", "precision", "cache", "calibration", "cut", "step"],
)
def test_whatever_changes_the_engine_changes_the_digest(
    device: TargetDevice, wishes: dict[str, Any]
) -> None:
    assert plan(device, LLAMA, **wishes).digest != plan(RTX5090, LLAMA).digest


def test_smoke_test_does_not_change_the_engine() -> None:
    assert plan(RTX5090, LLAMA, smoke_test=False).digest == plan(RTX5090, LLAMA).digest
