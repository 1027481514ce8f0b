"""The planner's table: a device, a checkpoint and options in, a plan or an error out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from deepinfer.checkpoint import Checkpoint, Rope
from deepinfer.compiler import plan_cpu
from deepinfer.compiler.options import AS_ASKED, BuildOptions
from deepinfer.compiler.plan import check_room, make_plan
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.targets import TargetDevice
from deepinfer.errors import PlanError
from deepinfer.manifest import Origin
from tests.compiler.planning import (
    BF16_SERVER,
    GIB,
    LAPTOP,
    LLAMA,
    QWEN,
    make_weights,
    plan,
    reason,
    with_dims,
    with_dtype,
)

PLANS: dict[str, tuple[TargetDevice, Checkpoint, dict[str, Any], dict[str, Any]]] = {
    "exact": (
        BF16_SERVER,
        QWEN,
        {"precision": "fp32"},
        {
            "precision": "fp32",
            "kv_cache_precision": "fp32",
            "settings": {
                "inference_precision": "f32",
                "kv_cache_precision": "f32",
                "dynamic_quantization_group_size": 0,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "exact-weights-with-a-small-cache": (
        LAPTOP,
        QWEN,
        {"precision": "fp32", "kv_cache_precision": "int8"},
        {"kv_cache_precision": "int8", "kv_bytes_per_token": 7296},
    ),
    "bf16-with-bf16-instructions": (
        BF16_SERVER,
        QWEN,
        {"precision": "bf16"},
        {
            "kv_cache_precision": "fp16",
            "settings": {
                "inference_precision": "bf16",
                "kv_cache_precision": "f16",
                "dynamic_quantization_group_size": 0,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "bf16-without-bf16-instructions": (
        LAPTOP,
        QWEN,
        {"precision": "bf16"},
        {
            "settings": {
                "inference_precision": "f32",
                "kv_cache_precision": "f16",
                "dynamic_quantization_group_size": 0,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            }
        },
    ),
    "fp16-is-computed-in-fp32": (
        BF16_SERVER,
        QWEN,
        {"precision": "fp16"},
        {
            "export_precision": "fp16",
            "settings": {
                "inference_precision": "f32",
                "kv_cache_precision": "f16",
                "dynamic_quantization_group_size": 0,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "int8": (
        BF16_SERVER,
        QWEN,
        {"precision": "int8"},
        {
            "export_precision": "bf16",
            "group_size": None,
            "settings": {
                "inference_precision": "bf16",
                "kv_cache_precision": "f16",
                "dynamic_quantization_group_size": 128,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "fp32-cache-is-computed-in-fp32": (
        BF16_SERVER,
        QWEN,
        {"precision": "int8", "kv_cache_precision": "fp32"},
        {
            "settings": {
                "inference_precision": "f32",
                "kv_cache_precision": "f32",
                "dynamic_quantization_group_size": 128,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "int4-group-size-from-the-model": (LAPTOP, QWEN, {"precision": "int4"}, {"group_size": 128}),
    "int4-smaller-group-size": (
        LAPTOP,
        with_dims(QWEN, intermediate_size=4800),
        {"precision": "int4"},
        {
            "group_size": 64,
            "settings": {
                "inference_precision": "f32",
                "kv_cache_precision": "f16",
                "dynamic_quantization_group_size": 64,
                "enable_cpu_pinning": False,
                "cached_tokens_per_sequence": 4096,
            },
        },
    ),
    "int4-group-size-as-asked": (
        LAPTOP,
        QWEN,
        {"precision": "int4", "group_size": 32},
        {"group_size": 32},
    ),
    "bf16-cache": (
        BF16_SERVER,
        QWEN,
        {"kv_cache_precision": "bf16"},
        {"kv_cache_precision": "bf16", "kv_bytes_per_token": 12_288},
    ),
    "name-from-the-hub-id": (
        LAPTOP,
        QWEN,
        {"precision": "int8"},
        {"name": "qwen2.5-0.5b-instruct.int8.cpu"},
    ),
    "name-from-a-folder": (
        LAPTOP,
        replace(QWEN, id="/home/me/My Model/"),
        {"precision": "int8"},
        {"name": "my-model.int8.cpu"},
    ),
    "name-as-asked": (LAPTOP, QWEN, {"name": "mine"}, {"name": "mine"}),
    "experts-are-cut-by-their-own-size": (
        LAPTOP,
        with_dims(
            replace(QWEN, architecture="Qwen3MoeForCausalLM"),
            num_experts=8,
            expert_intermediate_size=768,
            intermediate_size=4801,
        ),
        {"precision": "int4"},
        {"group_size": 128},
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan(name: str) -> None:
    device, checkpoint, options, expected = PLANS[name]
    made = plan(device, checkpoint, **options)
    assert {key: getattr(made, key) for key in expected} == expected


def origin(checkpoint: Checkpoint) -> Origin:
    return Origin.of(checkpoint.id, checkpoint.source, None)


ALICE = replace(QWEN, id="alice/chat", source="alice/chat")
BOB = replace(QWEN, id="bob/chat", source="bob/chat")
FOLDERS = [replace(QWEN, id="chat", source=f"/models/{name}/chat") for name in ("alice", "bob")]


def name_of(checkpoint: Checkpoint, built: dict[str, Origin]) -> str:
    options = BuildOptions(model=checkpoint.source, precision="int8")
    return make_plan(LAPTOP, checkpoint, options, built=built).name


@pytest.mark.parametrize(
    ("first", "second", "other_name"),
    [
        (ALICE, BOB, r"bob-chat\.int8\.cpu"),
        (*FOLDERS, r"chat-[0-9a-f]{8}\.int8\.cpu"),
        (ALICE, FOLDERS[1], r"chat-[0-9a-f]{8}\.int8\.cpu"),
    ],
    ids=["organisations", "folders", "folder-after-hub"],
)
def test_models_with_the_same_last_name_get_engines_of_their_own(
    first: Checkpoint, second: Checkpoint, other_name: str
) -> None:
    assert name_of(first, {}) == "chat.int8.cpu"
    built = {"chat.int8.cpu": origin(first)}
    name = name_of(second, built)
    assert re.fullmatch(other_name, name)
    # Each finds its own again, with the other there and without it.
    built[name] = origin(second)
    assert (name_of(first, built), name_of(second, built)) == ("chat.int8.cpu", name)
    del built["chat.int8.cpu"]
    assert name_of(second, built) == name
    # Another revision is the same model.
    assert name_of(replace(second, revision="1" * 40), built) == name


def test_organisations_may_be_of_the_same_name_too() -> None:
    third = replace(QWEN, id="bob-chat", source="bob-chat")
    built = {"chat.int8.cpu": origin(ALICE), "bob-chat.int8.cpu": origin(third)}
    assert re.fullmatch(r"chat-[0-9a-f]{8}\.int8\.cpu", name_of(BOB, built))


def test_names_without_ascii_letters_differ() -> None:
    models = [replace(QWEN, id=name, source=f"/{name}") for name in ("模型", "Модель", "...")]
    names = [name_of(model, {}) for model in models]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"model-[0-9a-f]{8}\.int8\.cpu", name) for name in names)
    # An engine that exists keeps the name that it was built under.
    assert name_of(models[0], {"model.int8.cpu": origin(models[0])}) == "model.int8.cpu"


def test_name_as_asked_stays_whatever_is_there() -> None:
    options = BuildOptions(model="bob/chat", name="mine")
    assert make_plan(LAPTOP, BOB, options, built={"mine": origin(ALICE)}).name == "mine"


LIMITS: dict[str, tuple[Checkpoint, dict[str, int], tuple[int, int, int, int]]] = {
    # max_seq_len, max_input_len, max_batch_size, max_num_tokens
    "defaults": (QWEN, {}, (32_768, 32_767, 64, 256)),
    "short-model": (with_dims(QWEN, max_position_embeddings=1024), {}, (1024, 1023, 64, 256)),
    "all-positions": (QWEN, {"max_seq_len": 32_768}, (32_768, 32_767, 32, 256)),
    "long-input-makes-long-sequences": (
        QWEN,
        {"max_input_len": 10_000},
        (32_768, 10_000, 64, 256),
    ),
    "long-input-up-to-the-positions": (
        QWEN,
        {"max_input_len": 32_000},
        (32_768, 32_000, 32, 256),
    ),
    "one-at-a-time": (QWEN, {"max_batch_size": 1, "max_seq_len": 64}, (64, 63, 1, 64)),
    "large-batch": (QWEN, {"max_batch_size": 300, "max_seq_len": 512}, (512, 511, 300, 300)),
    "short-steps": (QWEN, {"max_num_tokens": 64}, (32_768, 32_767, 64, 64)),
    "long-steps": (QWEN, {"max_num_tokens": 2048}, (32_768, 32_767, 64, 2048)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    checkpoint, options, expected = LIMITS[name]
    limits = plan(LAPTOP, checkpoint, precision="int8", **options).limits
    assert expected == (
        limits.max_seq_len,
        limits.max_input_len,
        limits.max_batch_size,
        limits.max_num_tokens,
    )


def test_batch_shrinks_to_what_memory_holds() -> None:
    made = plan(replace(LAPTOP, memory_bytes=19 * GIB), LLAMA, precision="int8")
    assert made.limits.max_batch_size == 4
    assert made.memory.total_bytes <= made.memory.usable_bytes
    assert "memory holds" in reason(made, "max_batch_size")


ERRORS: dict[str, tuple[TargetDevice, Checkpoint, dict[str, Any], str, str]] = {
    "fp8": (LAPTOP, QWEN, {"precision": "fp8"}, "needs GPU tensor cores", "`--precision int8`"),
    "nvfp4": (LAPTOP, QWEN, {"precision": "nvfp4"}, "needs GPU tensor cores", "int4"),
    "fp8-cache": (LAPTOP, QWEN, {"kv_cache_precision": "fp8"}, "GPU tensor cores", "int8"),
    "bf16-cache-without-bf16": (
        LAPTOP,
        QWEN,
        {"kv_cache_precision": "bf16"},
        "needs a CPU with bf16 instructions; Some CPU has none",
        "`--kv-cache-precision int8`",
    ),
    "bf16-cache-of-weights-computed-in-fp32": (
        BF16_SERVER,
        QWEN,
        {"precision": "fp16", "kv_cache_precision": "bf16"},
        "goes with arithmetic in bf16; fp16 weights are computed in fp32",
        "`--kv-cache-precision int8`, or fp16 or fp32",
    ),
    "tensorrt": (
        LAPTOP,
        QWEN,
        {"backend": "tensorrt-llm"},
        "compiles for GPUs; the target is a CPU, Some CPU",
        "`--backend openvino`, or a GPU such as `--target rtx5090`",
    ),
    "tensor-parallel": (
        LAPTOP,
        QWEN,
        {"tensor_parallel_size": 2},
        "`--tensor-parallel-size 2` belongs to builds for GPUs",
        "omit it",
    ),
    "pipeline-parallel": (
        LAPTOP,
        QWEN,
        {"pipeline_parallel_size": 2},
        "`--pipeline-parallel-size 2` belongs to builds for GPUs",
        "omit it",
    ),
    "calibration": (LAPTOP, QWEN, {"calib_data": "texts"}, "`--calib-data` belongs", "omit it"),
    "smoke-test": (LAPTOP, QWEN, {"smoke_test": False}, "`--no-smoke-test` belongs", "omit it"),
    "architecture": (
        LAPTOP,
        replace(QWEN, architecture="T5ForConditionalGeneration"),
        {},
        "T5ForConditionalGeneration is not supported by the CPU backend",
        "LlamaForCausalLM, MistralForCausalLM",
    ),
    "gemma": (
        LAPTOP,
        replace(QWEN, architecture="Gemma2ForCausalLM"),
        {},
        "exports it with transformers up to 5.0 only",
        "supported: LlamaForCausalLM",
    ),
    "quantised": (
        LAPTOP,
        replace(QWEN, quant_method="awq"),
        {},
        "is quantised already (awq)",
        "give the checkpoint that it was made from",
    ),
    "fp8-weights": (LAPTOP, with_dtype(QWEN, "F8_E4M3"), {}, "are F8_E4M3", ""),
    "group-size-does-not-divide": (
        LAPTOP,
        QWEN,
        {"precision": "int4", "group_size": 96},
        "group size 96 does not divide the hidden size 896",
        "128, 64, 32",
    ),
    "no-group-size-divides": (
        LAPTOP,
        with_dims(QWEN, intermediate_size=4872),
        {"precision": "int4"},
        "int4 needs a group size of 32 or more that divides every row",
        "`--precision int8`",
    ),
    "group-size-without-int4": (
        LAPTOP,
        QWEN,
        {"precision": "int8", "group_size": 64},
        "`--group-size` belongs to int4; this build is int8",
        "`--precision int4`",
    ),
    "sequence-beyond-positions": (
        LAPTOP,
        QWEN,
        {"max_seq_len": 40_000},
        "`--max-seq-len 40000` is beyond the model's 32,768 positions",
        "`--max-seq-len 32768`",
    ),
    "sequence-beyond-rope": (
        LAPTOP,
        replace(QWEN, is_length_limited_by_rope=True),
        {"max_seq_len": 40_000},
        "(its RoPE changes for longer sequences",
        "`--max-seq-len 32768`",
    ),
    "input-fills-the-positions": (
        LAPTOP,
        QWEN,
        {"max_input_len": 32_768},
        "leaves no room for an answer in the model's 32,768 positions",
        "`--max-input-len 32767`",
    ),
    "input-fills-the-sequence": (
        LAPTOP,
        QWEN,
        {"max_input_len": 512, "max_seq_len": 512},
        "leaves no room for an answer in max_seq_len 512",
        "`--max-input-len 511`",
    ),
    "step-shorter-than-the-batch": (
        LAPTOP,
        QWEN,
        {"max_num_tokens": 16, "max_batch_size": 32},
        "is below max_batch_size 32",
        "`--max-batch-size 16`, or `--max-num-tokens 32`",
    ),
    "step-longer-than-everything": (
        LAPTOP,
        QWEN,
        {"max_num_tokens": 4096, "max_batch_size": 2, "max_seq_len": 1024},
        "more than 2 sequences of 1,024 tokens have",
        "`--max-num-tokens 2048`",
    ),
    "name": (LAPTOP, QWEN, {"name": "../up"}, "cannot be the name of an engine", "letters, digits"),
    "hidden-name": (LAPTOP, QWEN, {"name": ".hidden"}, "cannot be the name", "beginning with"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_impossible_options_are_refused(name: str) -> None:
    device, checkpoint, options, message, hint = ERRORS[name]
    with pytest.raises(PlanError) as caught:
        plan(device, checkpoint, **options)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not caught.value.message.endswith(".")


ROOM: dict[str, tuple[dict[str, int], str, str]] = {
    "memory": ({"host_memory_bytes": GIB // 2}, "of this machine's memory", "on a larger machine"),
    "disk": ({"disk_bytes": GIB}, "of disk; 1.0 GiB are free", "`--output`"),
}


@pytest.mark.parametrize("name", ROOM)
def test_build_that_has_no_room_here_is_refused_and_planned_all_the_same(name: str) -> None:
    changes, message, hint = ROOM[name]
    made = plan(replace(LAPTOP, **changes), QWEN)
    assert any("are free" in warning for warning in made.warnings)
    with pytest.raises(PlanError) as caught:
        check_room(made)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")
    check_room(plan(LAPTOP, QWEN))


def test_what_does_not_fit_says_which_limit_to_lower_and_that_number_fits() -> None:
    with pytest.raises(PlanError) as caught:
        plan(LAPTOP, QWEN, precision="int8", max_batch_size=2000)
    assert "may use 14 GiB of this machine's free memory: weights" in caught.value.message
    hint = caught.value.hint or ""
    batch, length = (int(part.rsplit(" ")[-1].strip("`")) for part in hint.split(" or "))
    for options in ({"max_batch_size": batch}, {"max_batch_size": 2000, "max_seq_len": length}):
        plan(LAPTOP, QWEN, precision="int8", **options)
    with pytest.raises(PlanError):
        plan(LAPTOP, QWEN, precision="int8", max_batch_size=batch + 1)


def test_one_sequence_that_does_not_fit_is_made_shorter() -> None:
    with pytest.raises(PlanError) as caught:
        plan(replace(LAPTOP, memory_bytes=19 * GIB), LLAMA, precision="int8", max_seq_len=100_000)
    assert "for 1 sequence of 100,000 tokens" in caught.value.message
    assert (caught.value.hint or "").startswith("`--max-seq-len ")


def test_weights_that_do_not_fit_ask_for_another_precision_or_machine() -> None:
    with pytest.raises(PlanError) as caught:
        plan(replace(LAPTOP, memory_bytes=8 * GIB), LLAMA, precision="bf16")
    assert caught.value.hint == "a lower `--precision`, or a machine with more free memory"


def test_auto_takes_the_lowest_precision_under_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"int4": 0.034, "int8": 0.002, "bf16": 0.0001, "fp16": 0.0, "fp32": 0.0}
    monkeypatch.setattr(plan_cpu, "PERPLEXITY_COST", costs)
    made = plan(LAPTOP, QWEN)
    assert made.precision == "int8"
    assert "less than 1% perplexity" in reason(made, "precision")
    assert "int4 3.40%, int8 0.20%" in reason(made, "precision")


def test_auto_never_raises_the_precision_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"int4": 0.034, "int8": 0.02, "bf16": 0.0001, "fp16": 0.0, "fp32": 0.0}
    monkeypatch.setattr(plan_cpu, "PERPLEXITY_COST", costs)
    assert plan(LAPTOP, QWEN).precision == "bf16"
    assert plan(LAPTOP, with_dtype(QWEN, "F16")).precision == "fp16"
    assert plan(LAPTOP, with_dtype(QWEN, "F32")).precision == "bf16"


def test_auto_passes_over_int4_where_no_group_size_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"int4": 0.001, "int8": 0.001, "bf16": 0.0, "fp16": 0.0, "fp32": 0.0}
    monkeypatch.setattr(plan_cpu, "PERPLEXITY_COST", costs)
    assert plan(LAPTOP, QWEN).precision == "int4"
    assert plan(LAPTOP, with_dims(QWEN, intermediate_size=4872)).precision == "int8"


def test_small_cache_is_not_chosen_when_it_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cpu, "KV_PERPLEXITY_COST", {"int8": 0.02, "fp16": 0.0, "fp32": 0.0})
    made = plan(LAPTOP, LLAMA, precision="int4")
    assert made.kv_cache_precision == "fp16"
    assert made.settings["kv_cache_precision"] == "f16"


def test_keys_of_an_8_bit_cache_are_scaled_by_token_unless_they_have_biases() -> None:
    unbiased = plan(LAPTOP, LLAMA, precision="int4")
    assert unbiased.settings["kv_cache_precision"] == "u8"
    assert unbiased.settings["key_cache_quant_mode"] == "BY_TOKEN"
    assert plan(LAPTOP, QWEN, precision="int8").settings["kv_cache_precision"] == "f16"
    as_asked = plan(LAPTOP, QWEN, precision="int8", kv_cache_precision="int8")
    assert as_asked.settings["key_cache_quant_mode"] == "BY_CHANNEL"
    assert any("without the prefix cache" in warning for warning in as_asked.warnings)


# First messages of agents in tokens, the longest being Claude Code's.
LONGEST_FIRST_MESSAGE = 20_419


def test_model_of_32k_positions_has_them_all_on_a_machine_of_24_gib() -> None:
    # Llama 3 with 3.2B parameters, and the whole of its memory free.
    llama = replace(LLAMA, weights=make_weights(3_212_749_824, 394_002_432), is_tied=True)
    dims = {"hidden_size": 3072, "num_layers": 28, "num_attention_heads": 24}
    llama = with_dims(llama, **dims, max_position_embeddings=32_768)
    made = plan(replace(LAPTOP, memory_bytes=24 * GIB), llama)
    assert made.limits.max_seq_len == 32_768 > LONGEST_FIRST_MESSAGE
    assert made.memory.num_full_sequences >= 4
    short = plan(replace(LAPTOP, memory_bytes=24 * GIB), llama, max_seq_len=4096)
    assert made.limits.max_batch_size == short.limits.max_batch_size
    # As many sequences share a cache that is no larger than before, but for four long ones.
    four = 4 * 32_768 * made.kv_bytes_per_token
    assert made.memory.kv_cache_bytes == max(four, short.memory.kv_cache_bytes)
    assert made.memory.total_bytes <= made.memory.usable_bytes


def test_length_that_leaves_no_room_for_four_sequences_is_not_chosen() -> None:
    made = plan(replace(LAPTOP, memory_bytes=14 * GIB), LLAMA, precision="int4")
    longer = plan(replace(LAPTOP, memory_bytes=24 * GIB), LLAMA, precision="int4")
    assert 4096 <= made.limits.max_seq_len < longer.limits.max_seq_len < 131_072
    assert min(made.memory.num_full_sequences, longer.memory.num_full_sequences) >= 4
    assert made.digest == longer.digest  # free memory is no part of a plan


def test_every_choice_has_a_reason_and_options_are_told_apart() -> None:
    made = plan(LAPTOP, QWEN, precision="int4", max_batch_size=8)
    assert all(choice.reason for choice in made.choices)
    assert reason(made, "precision") == reason(made, "max_batch_size") == AS_ASKED
    automatic = {choice.name for choice in made.automatic_choices}
    assert "group_size" in automatic and "precision" not in automatic


def test_missing_end_token_and_chat_template_are_warned_of() -> None:
    made = plan(LAPTOP, replace(QWEN, eos_token_ids=(), has_chat_template=False))
    assert [warning.split(":")[0] for warning in made.warnings] == [
        "the checkpoint names no EOS token",
        "the checkpoint has no chat template",
    ]


def test_same_options_are_the_same_plan_whatever_is_free_today() -> None:
    options = {"precision": "int8", "max_seq_len": 2048}
    roomy = plan(replace(LAPTOP, memory_bytes=64 * GIB), LLAMA, **options)
    busy = plan(replace(LAPTOP, memory_bytes=20 * GIB, disk_bytes=400 * GIB), LLAMA, **options)
    assert roomy.limits.max_batch_size != busy.limits.max_batch_size
    assert roomy.digest == busy.digest


@pytest.mark.parametrize(
    ("device", "checkpoint", "options"),
    [
        (LAPTOP, QWEN, {"precision": "int4"}),
        (LAPTOP, QWEN, {"kv_cache_precision": "int8"}),
        (LAPTOP, QWEN, {"max_seq_len": 1024}),
        (LAPTOP, QWEN, {"max_batch_size": 64}),
        (LAPTOP, QWEN, {"max_num_tokens": 512}),
        (LAPTOP, QWEN, {"trust_remote_code": True}),
        (BF16_SERVER, QWEN, {}),
        (LAPTOP, replace(QWEN, revision="1" * 40), {}),
        (LAPTOP, replace(QWEN, id="other/model"), {}),
    ],
    ids=["precision", "cache", "length", "batch", "step", "code", "device", "revision", "model"],
)
def test_whatever_changes_the_engine_changes_the_digest(
    device: TargetDevice, checkpoint: Checkpoint, options: dict[str, Any]
) -> None:
    options = {"precision": "int8", **options}
    assert plan(device, checkpoint, **options).digest != plan(LAPTOP, QWEN, precision="int8").digest


def test_yarn_reaches_further_on_a_cpu_than_the_positions_in_the_configuration() -> None:
    yarn = replace(QWEN, rope=Rope("yarn", 1e6, 4.0, 32_768))
    assert plan(LAPTOP, yarn, max_seq_len=131_072).limits.max_seq_len == 131_072
    with pytest.raises(PlanError, match="beyond the model's 131,072 positions"):
        plan(LAPTOP, yarn, max_seq_len=131_073)


def test_plan_survives_json() -> None:
    made = plan(LAPTOP, QWEN, precision="int4")
    assert BuildPlan.model_validate_json(made.model_dump_json()) == made
