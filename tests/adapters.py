"""LoRA adapters as `peft` saves them, of zeros: enough for everything that does not compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import save_file

from deepinfer.manifest import LoraLimits

MODULE_SHAPES = {"q_proj": (64, 64), "v_proj": (32, 64)}
LIMITS = LoraLimits(max_rank=8, max_loras=2, num_layers=2, module_shapes=MODULE_SHAPES)


def write_adapter(
    folder: Path, *, rank: int = 4, num_layers: int = 2, width: int = 64, **config: Any
) -> Path:
    """An adapter that fits LIMITS unless told otherwise."""
    folder.mkdir(parents=True)
    tensors = {}
    for layer in range(num_layers):
        for name, (outputs, _) in MODULE_SHAPES.items():
            module = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{module}.lora_A.weight"] = numpy.zeros((rank, width), numpy.float32)
            tensors[f"{module}.lora_B.weight"] = numpy.zeros((outputs, rank), numpy.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
