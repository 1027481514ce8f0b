"""Building: what `BuildConfig` and the checkpoint come to in the engine that is written."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract.double.configs import QuantAlgo, SpeculativeDecodingMode
from tests.contract.double.log import logger
from tests.contract.double.machine import get_sm_version
from tests.contract.double.plan import PlanHeader, write_plan
from tests.contract.double.record import message, recorded

FACTORLESS_ROPE_TYPES = {"su", "longrope", "llama3"}
GROUPWISE = {"W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ", "W8A16_GPTQ"}
WEIGHT_ONLY = {"W8A16", "W4A16"}
BYTES_OF = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1, "fp4": 0.5}
WEIGHT_BITS = {"W8A16": 8, "W4A16": 4, "FP8": 8, "NVFP4": 4, "W4A16_AWQ": 4, "W4A8_AWQ": 4}


@dataclass(frozen=True)
class Parallel:
    tp_size: int
    pp_size: int
    cp_size: int

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size * self.cp_size


@dataclass(frozen=True)
class BuildInput:
    """Everything that an engine is made of."""

    hf_config: dict[str, Any]
    dtype: str
    quant_config: Any
    build_config: Any
    parallel: Parallel
    weight_bytes: int
    calibration_texts: int
    convert_options: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.hf_config["architectures"][0])


def build(given: BuildInput, folder: Path, version: str, tensorrt_version: str) -> None:
    """Write `config.json`, one engine a rank and the timing cache. Changes nothing in `given`."""
    sm = get_sm_version()
    config = copy.deepcopy(given.build_config)
    config.update_kv_cache_type(given.architecture)
    config.plugin_config.dtype = given.dtype
    config.plugin_config.validate_for(sm)
    if config.plugin_config.lora_plugin is not None and not config.lora_config.lora_target_modules:
        raise ValueError(message("lora_target_modules"))
    _check_algorithms(given.quant_config, sm)
    _set_lengths(config, given.hf_config)
    _make_room_for_drafts(config)
    _set_fusions(config.plugin_config, given)
    _set_precision(config, given.quant_config, sm)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, given, config, version)
    for rank in range(given.parallel.world_size):
        header = PlanHeader(
            tensorrt=tensorrt_version,
            sm=sm,
            rank=rank,
            world_size=given.parallel.world_size,
            weight_bytes=_rank_weight_bytes(given),
            calibration_texts=given.calibration_texts,
        )
        write_plan(folder / f"rank{rank}.engine", header)
        if config.plugin_config.manage_weights:
            (folder / f"rank{rank}_managed_weights.safetensors").write_bytes(b"\0" * 8)
    if config.output_timing_cache:
        Path(config.output_timing_cache).write_bytes(b"timing cache of the double")


def _check_algorithms(quant_config: Any, sm: int) -> None:
    gates = recorded("quantization")["sm_gates"]
    for algorithm in (quant_config.quant_algo, quant_config.kv_cache_quant_algo):
        is_gated = gates["refused_from"] <= sm < gates["refused_below"]
        if algorithm in gates["algorithms"] and is_gated:
            raise NotImplementedError(message("sm_refuses", algorithm=algorithm, sm=sm))
    if quant_config.quant_algo == QuantAlgo.NVFP4 and sm < gates["nvfp4_from"]:
        raise RuntimeError(message("fp4_needs_blackwell"))


def _set_lengths(config: Any, hf_config: dict[str, Any]) -> None:
    positions = int(hf_config["max_position_embeddings"] * _rotary_factor(hf_config))
    if config.max_seq_len is None:
        config.max_seq_len = positions
    elif config.max_seq_len > positions:
        logger.warning(
            message("seq_len_above_positions", value=config.max_seq_len, limit=positions)
        )
    if config.max_input_len > config.max_seq_len:
        logger.warning(
            message("input_len_clipped", value=config.max_input_len, limit=config.max_seq_len)
        )
        config.max_input_len = config.max_seq_len


def _make_room_for_drafts(config: Any) -> None:
    if config.speculative_decoding_mode == SpeculativeDecodingMode.NONE:
        return
    config.max_seq_len += config.max_draft_len
    config.max_num_tokens = max(
        config.max_num_tokens, config.max_batch_size * (config.max_draft_len + 1)
    )


def _rotary_factor(hf_config: dict[str, Any]) -> float:
    scaling = hf_config.get("rope_scaling") or hf_config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return 1.0 if kind in FACTORLESS_ROPE_TYPES else float(scaling.get("factor") or 1.0)


def _set_fusions(plugins: Any, given: BuildInput) -> None:
    architectures = recorded("quantization")["reduce_fusion_architectures"]
    if given.parallel.tp_size == 1 or given.architecture not in architectures:
        plugins.reduce_fusion = False
    if not plugins.reduce_fusion:
        plugins.user_buffer = False
    is_llama_fp4 = given.architecture == "LlamaForCausalLM" and (
        given.quant_config.quant_algo == QuantAlgo.NVFP4
    )
    if not is_llama_fp4 or plugins.reduce_fusion:
        plugins.norm_quant_fusion = False


def _set_precision(config: Any, quant_config: Any, sm: int) -> None:
    algorithm, kv_algorithm = quant_config.quant_algo, quant_config.kv_cache_quant_algo
    plugins = config.plugin_config
    if QuantAlgo.FP8 in (algorithm, kv_algorithm):
        config.strongly_typed = True
    if algorithm == QuantAlgo.NVFP4:
        plugins.gemm_plugin = "nvfp4"
    if algorithm in GROUPWISE:
        plugins.weight_only_groupwise_quant_matmul_plugin = plugins.dtype
    elif algorithm in WEIGHT_ONLY:
        plugins.weight_only_quant_matmul_plugin = plugins.dtype
    elif algorithm == QuantAlgo.FP8_PER_CHANNEL_PER_TOKEN:
        plugins.fp8_rowwise_gemm_plugin = plugins.dtype
        plugins.rmsnorm_quantization_plugin = plugins.dtype
    _set_attention(plugins, algorithm, kv_algorithm, sm)


def _set_attention(plugins: Any, algorithm: Any, kv_algorithm: Any, sm: int) -> None:
    """Which attention kernels remain, after the rules that switch each other off."""
    rules = recorded("quantization")
    is_fp8_able = algorithm in rules["fp8_context_fmha_algorithms"]
    has_fp8_kv = kv_algorithm == QuantAlgo.FP8
    if has_fp8_kv and not is_fp8_able or kv_algorithm == QuantAlgo.INT8:
        if plugins.use_paged_context_fmha:
            logger.warning(message("paged_fmha_disabled", precision=kv_algorithm))
        plugins.use_paged_context_fmha = False
    is_possible = (
        is_fp8_able
        and sm >= rules["sm_gates"]["fp8_context_fmha_from"]
        and plugins.context_fmha
        and (has_fp8_kv or not plugins.use_paged_context_fmha)
    )
    if plugins.use_fp8_context_fmha and not is_possible and is_fp8_able:
        logger.warning(message("fp8_fmha_disabled"))
    is_forced = has_fp8_kv and plugins.use_paged_context_fmha
    plugins.use_fp8_context_fmha = is_possible and (plugins.use_fp8_context_fmha or is_forced)


def _write_config(folder: Path, given: BuildInput, config: Any, version: str) -> None:
    built = config.model_dump(mode="json")
    for name in recorded("build_config")["keys_not_written"]:
        del built[name]
    content = {
        "version": version,
        "pretrained_config": pretrained_config(given),
        "build_config": built,
    }
    (folder / "config.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


def pretrained_config(given: BuildInput) -> dict[str, Any]:
    hf_config = given.hf_config
    heads = hf_config["num_attention_heads"]
    return {
        "architecture": given.architecture,
        "dtype": given.dtype,
        "logits_dtype": "float32",
        "vocab_size": hf_config["vocab_size"],
        "hidden_size": hf_config["hidden_size"],
        "num_hidden_layers": hf_config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": hf_config.get("num_key_value_heads") or heads,
        "head_size": hf_config.get("head_dim") or hf_config["hidden_size"] // heads,
        "hidden_act": hf_config.get("hidden_act"),
        "intermediate_size": hf_config.get("intermediate_size"),
        "norm_epsilon": hf_config.get("rms_norm_eps", 1e-5),
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": hf_config["max_position_embeddings"],
        "rotary_scaling": hf_config.get("rope_scaling"),
        "qk_layernorm": False,
        "runtime_defaults": None,
        **given.convert_options,
        "mapping": _mapping(given.parallel),
        "quantization": dataclasses.asdict(given.quant_config),
    }


def _mapping(parallel: Parallel) -> dict[str, int]:
    return {
        "world_size": parallel.world_size,
        "gpus_per_node": 8,
        "cp_size": parallel.cp_size,
        "tp_size": parallel.tp_size,
        "pp_size": parallel.pp_size,
        "moe_tp_size": parallel.tp_size,
        "moe_cluster_size": 1,
        "moe_ep_size": 1,
    }


def _rank_weight_bytes(given: BuildInput) -> int:
    """Sixteen bits a weight on disk, fewer in the engine of a quantised model."""
    bits = WEIGHT_BITS.get(given.quant_config.quant_algo or "", 16)
    return given.weight_bytes * bits // 16 // given.parallel.world_size


def kv_bytes_per_token(pretrained: dict[str, Any]) -> float:
    """On one rank."""
    kind = (pretrained["quantization"]["kv_cache_quant_algo"] or pretrained["dtype"]).lower()
    width = BYTES_OF.get(kind, 0.5)  # NVFP4 is what remains
    values = 2 * pretrained["num_hidden_layers"] * pretrained["num_key_value_heads"]
    ranks = pretrained["mapping"]["tp_size"] * pretrained["mapping"]["pp_size"]
    return float(values * pretrained["head_size"] * width / ranks)
