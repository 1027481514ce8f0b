"""What TensorRT-LLM wrote, read back and held against the plan.

The library clips, raises and ignores settings with no more than a warning, and whoever serves the
engine relies on the manifest. So the payload's own configuration has the last word before the seal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepinfer.compiler.plan import BuildPlan
from deepinfer.errors import BuildError

CONFIG_NAME = "config.json"


def rank_file_names(world_size: int) -> list[str]:
    return [f"rank{rank}.engine" for rank in range(world_size)]


def check_payload(plan: BuildPlan, folder: Path) -> None:
    """Raise BuildError unless `folder` holds every rank and is what the plan says."""
    for name in rank_file_names(plan.parallelism.world_size):
        path = folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise BuildError(f"TensorRT-LLM wrote no `{name}`", hint="is the disk full?")
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    found = _flatten(config)
    for name, expected in _expected(plan).items():
        if found.get(name) != expected:
            raise BuildError(
                f"TensorRT-LLM built `{name}` as {found.get(name)}; the plan says {expected}",
                hint="choose another limit or precision, and please report this",
            )


def _expected(plan: BuildPlan) -> dict[str, Any]:
    settings = plan.tensorrt_llm
    assert settings is not None
    expected: dict[str, Any] = {
        f"build_config.{name}": value for name, value in plan.limits.model_dump().items()
    }
    gathers = bool(plan.settings.get("gather_logits", False))
    expected["build_config.gather_generation_logits"] = gathers
    # Without padding and with a paged context the library has no use for this limit, and says so.
    del expected["build_config.max_input_len"]
    expected |= {
        "pretrained_config.quantization.quant_algo": settings.quant_algo,
        "pretrained_config.quantization.kv_cache_quant_algo": settings.kv_cache_quant_algo,
        "pretrained_config.mapping.tp_size": plan.parallelism.tensor_parallel_size,
        "pretrained_config.mapping.pp_size": plan.parallelism.pipeline_parallel_size,
    }
    if plan.lora is not None:
        expected["build_config.lora_config.max_lora_rank"] = plan.lora.max_rank
    plugins = ("use_paged_context_fmha", "use_fp8_context_fmha", "tokens_per_block")
    expected |= {
        f"build_config.plugin_config.{name}": settings.plugins[name]
        for name in plugins
        if name in settings.plugins
    }
    return expected


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _flatten(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found
