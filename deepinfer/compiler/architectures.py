"""Which models TensorRT-LLM compiles, which of them DeepInfer builds, and whose limit the rest is.

One table, which plans, errors and docs/backends.md read. It is that of the release that
`trtllm_release.py` calls checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deepinfer.errors import PlanError
from deepinfer.trtllm_release import CHECKED_VERSION

Status = Literal["supported", "untried", "refused"]
FP8_AND_NVFP4 = frozenset({"FP8", "NVFP4"})


@dataclass(frozen=True)
class Architecture:
    """One key of the library's MODEL_MAP, as config.json names it.

    `quant_refusals` has the reason why a quantisation fails, by its name. `listed` are those that
    NVIDIA's page on quantisation lists for this family; others are planned with a warning.
    """

    name: str
    status: Status
    models: str  # well-known ones, for people
    reason: str = ""  # of a refusal
    listed: frozenset[str] = frozenset()
    quant_refusals: Mapping[str, str] = field(default_factory=dict)
    has_sliding_window: bool = False  # whether the engine looks back as far as the model, or at all


def _refuse_both(reason: str) -> dict[str, str]:
    return {"FP8": reason, "NVFP4": reason}


# What TensorRT-LLM 1.2.1's own source says of each: `models/*/config`, `models/*/model` and
# `quantization/quantize_by_modelopt`. ModelOpt 0.37.0 with transformers 4.57.3 was seen to export
# small random models of all the supported ones in FP8 and NVFP4, but for those refused here.
# `listed` is from `features/quantization`: Llama by its rows LLaMA and LLaMA-v2, as the same page
# runs a Llama 3.1 in FP8, which the row LLaMA 3 leaves out; Granite and Gemma 1 and 2 have no row.
_ROWS = (
    Architecture(
        "LlamaForCausalLM",
        "supported",
        "Llama 2, 3.x, DeepSeek-R1-Distill-Llama, SmolLM2",
        listed=FP8_AND_NVFP4,
    ),
    Architecture(
        "MistralForCausalLM",
        "supported",
        "Mistral 7B, Nemo, Small 2501, Devstral 2505",
        listed=frozenset({"FP8"}),
    ),
    Architecture("MixtralForCausalLM", "supported", "Mixtral 8x7B", listed=FP8_AND_NVFP4),
    Architecture(
        "Qwen2ForCausalLM",
        "supported",
        "Qwen2, Qwen2.5, QwQ, DeepSeek-R1-Distill-Qwen",
        listed=FP8_AND_NVFP4,
    ),
    Architecture(
        "Qwen2MoeForCausalLM",
        "supported",
        "Qwen1.5-MoE, Qwen2-57B-A14B",
        quant_refusals=_refuse_both("ModelOpt 0.37 cannot quantise its attention"),
    ),
    Architecture("Qwen3ForCausalLM", "supported", "Qwen3 0.6B to 32B", listed=FP8_AND_NVFP4),
    Architecture(
        "Qwen3MoeForCausalLM",
        "supported",
        "Qwen3-MoE with `norm_topk_prob: false`",
        listed=FP8_AND_NVFP4,
    ),
    Architecture("Phi3ForCausalLM", "supported", "Phi-3, Phi-3.5, Phi-4, Phi-4-mini"),
    Architecture("GemmaForCausalLM", "supported", "Gemma 1"),
    Architecture("Gemma2ForCausalLM", "supported", "Gemma 2"),
    Architecture(
        "Gemma3ForCausalLM",
        "supported",
        "Gemma 3 270M and 1B",
        listed=frozenset({"FP8"}),
        has_sliding_window=True,
    ),
    Architecture("GraniteForCausalLM", "supported", "Granite 3"),
    Architecture(
        "NemotronForCausalLM",
        "untried",
        "Nemotron-4, Minitron",
        quant_refusals=_refuse_both("ModelOpt 0.37 cannot quantise its attention"),
    ),
    Architecture("Starcoder2ForCausalLM", "untried", "StarCoder2"),
    Architecture(
        "CohereForCausalLM",
        "untried",
        "Command-R, Aya",
        quant_refusals=_refuse_both(
            f"TensorRT-LLM {CHECKED_VERSION} does not tell ModelOpt how to export it"
        ),
    ),
    Architecture(
        "GraniteMoeForCausalLM",
        "refused",
        "Granite 3 1B-A400M, 3B-A800M",
        reason="its checkpoint fuses the experts, and the library expects them one by one",
    ),
    Architecture(
        "InternLM2ForCausalLM",
        "refused",
        "InternLM2, InternLM2.5",
        reason="the library looks for Llama's names of weights, which its checkpoints do not have",
    ),
    Architecture(
        "ExaoneForCausalLM",
        "refused",
        "EXAONE 3.0, 3.5",
        reason="the library recognises it by its folder, and it needs code from the checkpoint",
    ),
    Architecture(
        "DeciLMForCausalLM",
        "refused",
        "Llama-3.1-Nemotron-51B, Llama-3.3-Nemotron-Super-49B",
        reason="every layer has a shape of its own, which the plan does not count",
    ),
    Architecture(
        "DeepseekV2ForCausalLM",
        "refused",
        "DeepSeek-V2-Lite, DeepSeek-Coder-V2-Lite",
        reason="its latent attention has a KV cache of another shape than the plan counts",
    ),
)
ARCHITECTURES = {row.name: row for row in _ROWS}

# Further causal language models of MODEL_MAP: the library compiles them, untested here.
OTHER_COMPILED = frozenset(
    {
        "ArcticForCausalLM",
        "BaiChuanForCausalLM",
        "BaichuanForCausalLM",
        "BloomForCausalLM",
        "ChatGLMForCausalLM",
        "ChatGLMModel",
        "DbrxForCausalLM",
        "DeepseekForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTBigCodeForCausalLM",
        "GPTJForCausalLM",
        "GPTNeoXForCausalLM",
        "Grok1ModelForCausalLM",
        "InternLMForCausalLM",
        "InternLMXComposer2ForCausalLM",
        "LlavaLlamaModel",
        "LlavaNextForConditionalGeneration",
        "MPTForCausalLM",
        "MambaForCausalLM",
        "MllamaForConditionalGeneration",
        "MptForCausalLM",
        "OPTForCausalLM",
        "Phi3SmallForCausalLM",
        "Phi3VForCausalLM",
        "Phi4MMForCausalLM",
        "PhiForCausalLM",
        "PhiMoEForCausalLM",
        "QWenLMHeadModel",
        "Qwen2VLForConditionalGeneration",
        "RWForCausalLM",
        "RecurrentGemmaForCausalLM",
        "SkyworkForCausalLM",
    }
)
# Of NVIDIA's page of supported models at about this release: its PyTorch runtime, which compiles
# nothing, has these; MODEL_MAP does not.
PYTORCH_ONLY = frozenset(
    {
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "Exaone4ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "Glm4MoeForCausalLM",
        "GptOssForCausalLM",
        "Llama4ForConditionalGeneration",
        "MiniMaxM2ForCausalLM",
        "Mistral3ForConditionalGeneration",
        "NemotronHForCausalLM",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3NextForCausalLM",
    }
)


def list_architectures(*statuses: Status) -> list[str]:
    return [row.name for row in _ROWS if row.status in statuses]


def find_architecture(name: str) -> Architecture:
    """The row of a model that can be planned. Raises PlanError, which names whose limit it is."""
    row = ARCHITECTURES.get(name)
    if row is not None and row.status != "refused":
        return row
    hint = "supported: " + ", ".join(list_architectures("supported"))
    if row is not None:
        raise PlanError(f"DeepInfer does not build {name} for GPUs yet: {row.reason}", hint=hint)
    if name in OTHER_COMPILED:
        raise PlanError(
            f"DeepInfer does not build {name} for GPUs yet, though TensorRT-LLM "
            f"{CHECKED_VERSION} would compile it",
            hint=hint,
        )
    runtime = ""
    if name in PYTORCH_ONLY:
        runtime = "; its PyTorch runtime has it, which DeepInfer does not use"
    raise PlanError(
        f"TensorRT-LLM {CHECKED_VERSION} has no compiled engine for {name}{runtime}", hint=hint
    )
