"""Checkpoints that NVIDIA has quantised with ModelOpt and published: they need no calibration.

Named in the way out of a plan that fails. Each was seen named as a repository of the Hugging Face
hub, with the model that it was made from, in public model cards and deployment guides of 2025 and
2026; none was downloaded here.
"""

from __future__ import annotations

PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        "fp8": "nvidia/Llama-3.1-8B-Instruct-FP8",
        "nvfp4": "nvidia/Llama-3.1-8B-Instruct-NVFP4",
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        "fp8": "nvidia/Llama-3.3-70B-Instruct-FP8",
        "nvfp4": "nvidia/Llama-3.3-70B-Instruct-NVFP4",
    },
    "Qwen/Qwen3-8B": {"fp8": "nvidia/Qwen3-8B-FP8", "nvfp4": "nvidia/Qwen3-8B-NVFP4"},
    "Qwen/Qwen3-14B": {"fp8": "nvidia/Qwen3-14B-FP8", "nvfp4": "nvidia/Qwen3-14B-NVFP4"},
    "Qwen/Qwen3-32B": {"fp8": "nvidia/Qwen3-32B-FP8", "nvfp4": "nvidia/Qwen3-32B-NVFP4"},
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {"fp8": "nvidia/Mixtral-8x7B-Instruct-v0.1-FP8"},
    "microsoft/Phi-4-reasoning-plus": {"nvfp4": "nvidia/Phi-4-reasoning-plus-NVFP4"},
}


def find_published(model_id: str, precision: str) -> str | None:
    """The hub id of `model_id` in `precision`; a folder is known by its name alone."""
    name = _base_name(model_id)
    for base, checkpoints in PUBLISHED.items():
        if _base_name(base) == name:
            return checkpoints.get(precision)
    return None


def _base_name(model_id: str) -> str:
    return model_id.rstrip("/").rsplit("/")[-1].lower()
