"""Plans for GPUs: what fits a card, how several share an engine, and what the library is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepinfer.checkpoint import Checkpoint, Rope
from deepinfer.compiler import memory
from deepinfer.compiler.options import AS_ASKED
from deepinfer.compiler.plan import check_room
from deepinfer.compiler.plan_types import BuildPlan, TensorRtLlmPlan
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import Parallelism
from tests.compiler.planning import (
    GIB,
    H100,
    LLAMA,
    LLAMA_FP8,
    QWEN,
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
    made = plan(RTX5090, read_config("llama-3.1-8b-instruct"), max_seq_len=4096)
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
    options: dict[str, Any] = {"precision": "bf16", "max_batch_size": 1}
    assert plan(RTX5090, LLAMA, max_seq_len=longest, **options).memory.num_full_sequences == 1
    assert refusal(RTX5090, LLAMA, max_seq_len=longest + 32, **options)


def refusal(device: TargetDevice, checkpoint: Checkpoint, **options: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan(device, checkpoint, **options)
    return caught.value


def test_every_way_out_of_what_does_not_fit_is_one() -> None:
    options: dict[str, Any] = {"max_batch_size": 300, "max_seq_len": 8192, "max_num_tokens": 16_384}
    error = refusal(RTX5090, LLAMA, **options)
    assert "may use 28 GiB of the free memory of the GPU" in error.message
    assert "for 300 sequences of 8,192 tokens that fill 1/4" in error.message
    ways = re.findall(r"`--([a-z-]+) (\w+)`", error.hint or "")
    assert [name for name, _ in ways] == [
        "max-batch-size",
        "max-seq-len",
        "pipeline-parallel-size",
    ]
    for name, value in ways:
        plan(RTX5090, LLAMA, **{**options, name.replace("-", "_"): value})
    batch = int(dict(ways)["max-batch-size"])
    assert refusal(RTX5090, LLAMA, **{**options, "max_batch_size": batch + 1})


def test_lower_precision_is_offered_where_it_fits() -> None:
    error = refusal(RTX5090, QWEN14, precision="bf16")
    assert re.findall(r"`([^`]+)`", error.hint or "") == [
        "--precision nvfp4",
        "--precision fp8",
        "--pipeline-parallel-size 2",
    ]
    plan(RTX5090, QWEN14, precision="nvfp4")
    plan(RTX5090, QWEN14, precision="fp8")
    plan(RTX5090, QWEN14, precision="bf16", pipeline_parallel_size=2)


def test_shorter_steps_are_offered_where_they_fit() -> None:
    small = resolve("sm_120", make_gpu("NVIDIA GeForce RTX 5080", total_gib=16, free_gib=13))
    error = refusal(small, LLAMA, precision="fp8", max_num_tokens=16_384)
    (num_tokens,) = re.findall(r"`--max-num-tokens (\d+)`", error.hint or "")
    plan(small, LLAMA, precision="fp8", max_num_tokens=int(num_tokens))


def test_other_cards_are_offered_only_where_there_are_some() -> None:
    alone = resolve("rtx5090", make_gpu())
    hint_on_peers = refusal(H100, QWEN32, precision="bf16", max_seq_len=40_960).hint
    assert "parallel" not in (refusal(alone, QWEN32, precision="fp8").hint or "")
    hint_on_two = refusal(TWO_5090, QWEN32, precision="fp8").hint
    assert "`--pipeline-parallel-size 2`" in (hint_on_two or "")
    assert "`--tensor-parallel-size 2`" in (hint_on_peers or "")


def test_what_fits_no_way_asks_for_a_larger_gpu() -> None:
    huge = with_dims(LLAMA_FP8, num_attention_heads=31, num_layers=31)
    huge = replace(huge, weights=replace(huge.weights, num_bytes=200 * GIB))
    assert refusal(RTX5090, huge).hint == "a smaller model, or a GPU with more memory"


def test_two_geforce_cards_share_out_the_layers() -> None:
    made = plan(TWO_5090, QWEN32, pipeline_parallel_size=2)
    assert made.name == "qwen3-32b.fp8.sm120.pp2"  # which one card would have in NVFP4
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
    alone = plan(H100, LLAMA, max_seq_len=4096)
    halves = plan(H100, LLAMA, max_seq_len=4096, tensor_parallel_size=2)
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


GB = 10**9


def test_host_that_holds_two_copies_of_nothing_builds_eight_billion_parameters() -> None:
    # Calibrated on the GPU, the weights come back quantised: 6.98B bytes, and 16-bit ends.
    made = plan(resolve_with_host(30 * GB), read_config("qwen3-8b"))
    engine_bytes = 6_945_919_968 + 2 * 2 * 151_936 * 4096
    assert made.build.min_memory_bytes == pytest.approx(engine_bytes, rel=0.01)
    assert made.build.memory_bytes == pytest.approx(4 * GB + 2 * engine_bytes, rel=0.01)
    assert not any("this machine's memory" in warning for warning in made.warnings)
    check_room(made)


def test_host_below_comfort_is_warned_and_below_one_copy_refused() -> None:
    tight = plan(resolve_with_host(12 * GB), read_config("qwen3-8b"))
    assert any("it may swap" in warning for warning in tight.warnings)
    check_room(tight)
    with pytest.raises(PlanError) as caught:
        check_room(plan(resolve_with_host(8 * GB), read_config("qwen3-8b")))
    assert "larger machine" not in (caught.value.hint or "")
    assert "swap" in (caught.value.hint or "")
    assert "`--model nvidia/Qwen3-8B-FP8`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "options", "lowest_bytes"),
    [
        ("qwen3-8b", {"precision": "bf16"}, 8_190_726_144 * 2),
        ("qwen3-32b", {"precision": "nvfp4"}, 32_762_106_880 * 2),
        ("qwen3-14b-nvfp4", {}, 13.21e9 * (0.5 + 1 / 16) + 2 * 2 * 151_936 * 5120),
    ],
    ids=["compiled-from-16-bits", "calibrated-on-the-cpu", "quantised-already"],
)
def test_one_copy_lies_in_host_memory_as_the_checkpoint_has_it(
    name: str, options: dict[str, Any], lowest_bytes: float
) -> None:
    made = plan(RTX5090, read_config(name), **options)
    assert made.build.min_memory_bytes == pytest.approx(lowest_bytes, rel=0.01)


def test_card_that_is_elsewhere_is_planned_whatever_this_machine_has() -> None:
    made = plan(replace(RTX5090, host_memory_bytes=GB, disk_bytes=GB), LLAMA)
    assert not any("are free" in warning for warning in made.warnings)


def resolve_with_host(host_memory_bytes: int) -> TargetDevice:
    return replace(resolve("rtx5090", make_gpu()), host_memory_bytes=host_memory_bytes)


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
    plans = [plan(device, LLAMA) for device in (RTX5090, TWO_5090, busy)]
    assert plans[2].limits.max_seq_len < plans[0].limits.max_seq_len
    assert {made.precision for made in plans} == {"fp8"}
    assert len({made.digest for made in plans}) == 1


@pytest.mark.parametrize(
    ("device", "options"),
    [
        (RTX4090, {}),
        (RTX5090, {"precision": "nvfp4"}),
        (RTX5090, {"kv_cache_precision": "bf16"}),
        (RTX5090, {"calib_data": Path("texts")}),
        (RTX5090, {"pipeline_parallel_size": 2}),
        (RTX5090, {"max_num_tokens": 4096}),
        (RTX5090, {"max_seq_len": 32_768}),
        (RTX5090, {"max_input_len": 20_000}),
    ],
    ids=["device", "precision", "cache", "calibration", "cut", "step", "length", "input"],
)
def test_whatever_changes_the_engine_changes_the_digest(
    device: TargetDevice, options: dict[str, Any]
) -> None:
    assert plan(device, LLAMA, **options).digest != plan(RTX5090, LLAMA).digest


def test_smoke_test_does_not_change_the_engine() -> None:
    assert plan(RTX5090, LLAMA, smoke_test=False).digest == plan(RTX5090, LLAMA).digest


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("qwen3-32b", ("fp8 does not fit", "sequences of 4,096 tokens")),
        ("mistral-small-24b-instruct-2501", ("fp8 leaves room for", "it holds 16")),
    ],
)
def test_nvfp4_is_taken_where_fp8_leaves_too_little_room(
    name: str, reasons: tuple[str, str]
) -> None:
    made = plan(RTX5090, read_config(name))
    assert made.precision == "nvfp4"
    assert all(part in reason(made, "precision") for part in reasons)
    assert any("costs more accuracy than FP8" in warning for warning in made.warnings)
    assert [other.precision for other in made.alternatives] == ["fp8", "bf16"]


def test_fp8_is_kept_where_the_card_has_no_nvfp4() -> None:
    made = plan(RTX4090, QWEN14, max_seq_len=2048)
    assert made.precision == "fp8"
    assert [other.precision for other in made.alternatives] == ["bf16"]


def test_precision_follows_from_the_card_and_not_from_what_is_free_today() -> None:
    busy = resolve("rtx5090", make_gpu(free_gib=20))
    assert plan(busy, QWEN14).precision == plan(RTX5090, QWEN14).precision == "fp8"


def test_more_sequences_than_fp8_holds_are_asked_for_of_nvfp4() -> None:
    options: dict[str, Any] = {"max_batch_size": 80, "max_seq_len": 8192}
    assert plan(RTX5090, QWEN14).precision == "fp8"
    assert plan(RTX5090, QWEN14, **options).precision == "nvfp4"


def test_numbers_of_an_alternative_are_those_of_its_own_plan() -> None:
    (fp8,) = [one for one in plan(RTX5090, QWEN32).alternatives if one.precision == "fp8"]
    assert fp8.memory is None
    assert fp8.obstacle == refusal(RTX5090, QWEN32, precision="fp8").message
    nvfp4 = next(one for one in plan(RTX5090, QWEN14).alternatives if one.precision == "nvfp4")
    own = plan(RTX5090, QWEN14, precision="nvfp4")
    assert (nvfp4.memory, nvfp4.limits, nvfp4.roofline) == (own.memory, own.limits, own.roofline)


def test_named_precision_and_quantised_checkpoint_have_no_alternatives() -> None:
    assert plan(RTX5090, LLAMA, precision="fp8").alternatives == ()
    assert plan(RTX5090, LLAMA_FP8).alternatives == ()


def test_refusal_names_checkpoints_of_modelopt_that_would_fit() -> None:
    hint = refusal(RTX5090, QWEN32, precision="fp8").hint or ""
    assert "`--precision nvfp4`" in hint
    assert "`--model nvidia/Qwen3-32B-NVFP4 --precision nvfp4`" in hint
    assert "FP8" not in hint


def test_checkpoint_of_modelopt_is_named_where_calibration_is_slow() -> None:
    assert "`--model nvidia/Qwen3-32B-NVFP4`" in reason(plan(RTX5090, QWEN32), "calibration")


@pytest.mark.parametrize(
    ("device", "name", "max_seq_len", "why"),
    [
        ("rtx5090", "llama-3.1-8b-instruct", 32_768, "power of two of the model's 131,072"),
        ("h200", "llama-3.1-8b-instruct", 131_072, "all of the model's positions"),
        ("rtx5090", "phi-4", 8192, "power of two of the model's 16,384"),
        ("rtx5090", "qwen3-32b", 4096, "longer leaves no room for 8 full sequences"),
        ("rtx5090", "minitron-4b-base", 4096, "all of the model's positions"),
        ("rtx5090", "mistral-7b-v0.1", 4096, "the model itself has 32,768 positions"),
        ("rtx5090", "gemma-3-1b-it", 32_768, "all of the model's positions"),
    ],
)
def test_default_length_leaves_room_for_eight_full_sequences(
    device: str, name: str, max_seq_len: int, why: str
) -> None:
    made = plan(resolve(device), read_config(name))
    assert made.limits.max_seq_len == max_seq_len
    assert why in reason(made, "max_seq_len")
    assert made.memory.num_full_sequences >= 8 or max_seq_len == 4096


def test_longer_default_does_not_shrink_the_batch() -> None:
    short = plan(RTX5090, LLAMA, precision="fp8", max_seq_len=4096)
    made = plan(RTX5090, LLAMA, precision="fp8")
    assert made.limits.max_seq_len > 4096
    assert made.limits.max_batch_size == short.limits.max_batch_size == 256


def test_length_changes_by_powers_of_two_and_not_with_every_mebibyte() -> None:
    lengths = {
        plan(resolve("rtx5090", make_gpu(free_gib=gib)), LLAMA, precision="fp8").limits.max_seq_len
        for gib in (29.0, 29.5, 30.0, 30.5, 31.0)
    }
    assert lengths <= {16_384, 32_768}


def test_asked_batch_is_kept_when_the_length_is_chosen() -> None:
    made = plan(RTX5090, LLAMA, precision="fp8", max_batch_size=2)
    assert made.limits.max_seq_len == 131_072
    assert made.memory.num_full_sequences >= 2
    many = plan(RTX5090, LLAMA, precision="fp8", max_batch_size=256)
    assert many.limits.max_batch_size == 256


def test_window_is_warned_of_where_the_engine_looks_further() -> None:
    config = read_config("mistral-7b-v0.1")
    assert not any("look back at" in text for text in plan(RTX5090, config).warnings)
    longer = plan(RTX5090, config, max_seq_len=16_384)
    assert any("look back at 4,096 tokens" in text for text in longer.warnings)
    gemma = plan(RTX5090, read_config("gemma-3-1b-it"), max_seq_len=16_384)
    assert not any("look back at" in text for text in gemma.warnings)


def test_yarn_ends_where_the_rope_table_of_the_library_does() -> None:
    rope = Rope("yarn", 1e6, 4.0, 32_768)
    qwen = replace(read_config("qwen3-8b"), rope=rope)
    error = refusal(RTX5090, qwen, max_seq_len=131_072)
    assert "is beyond the model's 40,960 positions (YaRN reaches 131,072" in error.message
    assert "`max_position_embeddings` of config.json" in error.message
    longer = with_dims(qwen, max_position_embeddings=131_072)
    assert plan(RTX5090, longer, max_seq_len=131_072).limits.max_seq_len == 131_072


def test_biases_of_keys_keep_the_cache_in_16_bits_unless_asked_otherwise() -> None:
    made = plan(RTX5090, QWEN)
    assert (made.precision, made.kv_cache_precision) == ("fp8", "bf16")
    assert "its keys have biases" in reason(made, "kv_cache_precision")
    plugins = library_of(made).plugins
    assert plugins["use_paged_context_fmha"] and not plugins["use_fp8_context_fmha"]
    asked = plan(RTX5090, QWEN, kv_cache_precision="fp8")
    assert asked.kv_cache_precision == "fp8"
    assert any("is reported to break its answers" in warning for warning in asked.warnings)
    assert not any("biases" in warning for warning in made.warnings)


def test_limits_that_follow_from_free_memory_are_named_and_make_no_other_plan() -> None:
    made = plan(RTX5090, LLAMA)
    busy = plan(resolve("rtx5090", make_gpu(free_gib=14)), LLAMA)
    assert made.digest == busy.digest
    assert set(made.fitted_limits) == {"max_seq_len", "max_input_len", "max_batch_size"}
    assert plan(RTX5090, LLAMA, max_seq_len=4096).fitted_limits == ("max_batch_size",)


def test_calibration_needs_the_model_and_the_joined_attention_weights_of_all_layers() -> None:
    joined = 32 * 4096 * 128 * (32 + 2 * 8)
    expected = 2 * (8_030_261_248 + joined) + 1_500_000_000
    assert memory.calibration_bytes(LLAMA) == expected
