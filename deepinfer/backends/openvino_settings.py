"""What OpenVINO GenAI is told, for loading an engine and for each request: pure translations.

Every sampling default is spelled out, since the library's own are not those of a request. What
speculative decoding changes in them is said by `openvino_speculation.py`.
"""

from __future__ import annotations

from typing import Any

from deepinfer.backends.openvino_library import Library
from deepinfer.backends.openvino_speculation import Speculation
from deepinfer.backends.openvino_trial import grammar_config
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.generation import SamplingParams
from deepinfer.manifest import EngineManifest

SEED_BITS = 32  # the library's generator is seeded by the low 32 bits only


def scheduler_config(
    library: Library, manifest: EngineManifest, capacity: Capacity, speculation: Speculation
) -> Any:
    config = library.genai.SchedulerConfig()
    config.max_num_seqs = capacity.max_batch_size
    config.max_num_batched_tokens = speculation.batched_tokens(manifest.limits)
    config.num_kv_blocks = capacity.num_blocks
    config.dynamic_split_fuse = speculation.splits_prompts
    config.enable_prefix_caching = allows_prefix_cache(manifest, speculation)
    return config


def allows_prefix_cache(manifest: EngineManifest, speculation: Speculation) -> bool:
    """Whether blocks of earlier prompts may be used again without changing anybody's answers.

    When a prompt is in the cache up to its end, the library computes its last token anew, and
    writes it into the cached block. With 8-bit keys that are scaled by channel it thereby rounds
    all keys of the block once more, each time: 16 equal requests got 13 different sets of
    log probabilities.
    Scales by token leave the other keys alone. Engines that do not say how their keys are scaled
    were built when it was by channel.
    """
    settings = manifest.backend.settings
    rewrites_keys = (
        settings["kv_cache_precision"] == "u8"
        and settings.get("key_cache_quant_mode") != "BY_TOKEN"
    )
    return speculation.allows_prefix_cache and not rewrites_keys


def speculation_properties(
    library: Library, speculation: Speculation, scheduler: Any, options: EngineOptions
) -> dict[str, Any]:
    """What the pipeline is told of guesses when it is made. A draft is scheduled as its engine."""
    if not speculation.num_guesses:
        return {}
    if speculation.draft is None:
        return {"prompt_lookup": True}
    draft = library.genai.draft_model(
        speculation.draft.payload_dir,
        "CPU",
        scheduler_config=scheduler,
        **device_properties(speculation.draft.manifest, options),
    )
    return {"draft_model": draft}


def device_properties(manifest: EngineManifest, options: EngineOptions) -> dict[str, Any]:
    settings = manifest.backend.settings
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": settings["inference_precision"],
        "KV_CACHE_PRECISION": settings["kv_cache_precision"],
    }
    names = ("key_cache_quant_mode", "dynamic_quantization_group_size", "enable_cpu_pinning")
    for name in names:
        if name in settings:
            properties[name.upper()] = settings[name]
    if options.num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    return properties


def generation_config(
    library: Library, sampling: SamplingParams, eos_token_ids: tuple[int, ...]
) -> Any:
    config = library.genai.GenerationConfig()
    config.max_new_tokens = sampling.max_tokens
    config.logprobs = int(sampling.num_log_probs is not None)
    config.min_new_tokens = sampling.min_tokens
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.do_sample = not sampling.is_greedy
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = sampling.min_p
        if sampling.top_k is not None:
            config.top_k = sampling.top_k
        config.rng_seed = _fold_seed(sampling.seed)
    _set_stops(config, sampling, eos_token_ids)
    if sampling.grammar is not None:
        config.structured_output_config = grammar_config(library.genai, sampling.grammar)
    return config


def _set_stops(config: Any, sampling: SamplingParams, eos_token_ids: tuple[int, ...]) -> None:
    # The library's own ignore_eos would also switch stop_token_ids off, so EOS is left out instead.
    stops = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stops.update(eos_token_ids)
    if stops:
        config.set_eos_token_id(min(stops))
        config.stop_token_ids = stops
    else:
        config.ignore_eos = True


def _fold_seed(seed: int) -> int:
    """Spread a 64-bit seed over the bits that the library looks at."""
    mask = (1 << SEED_BITS) - 1
    return (seed ^ (seed >> SEED_BITS)) & mask
