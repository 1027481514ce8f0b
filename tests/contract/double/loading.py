"""From an engine folder and the arguments to a running executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.contract.double.build import kv_bytes_per_token
from tests.contract.double.configs import BatchingType, BuildConfig, PeftCacheConfig
from tests.contract.double.executor import Executor
from tests.contract.double.executor_config import EngineFacts, ExecutorConfig
from tests.contract.double.machine import read_machine
from tests.contract.double.plan import read_config, read_plan
from tests.contract.double.record import assumed, message

XGRAMMAR = "xgrammar"
CHECKED_LIMITS = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width")


def executor_config(args: Any, tokenizer: Any) -> ExecutorConfig:
    """What the executor is given: the arguments where they are set, else what was built."""
    built = args.build_config
    engine = read_config(Path(args.model))["build_config"]
    return ExecutorConfig(
        max_batch_size=args.max_batch_size or built.max_batch_size,
        max_num_tokens=args.max_num_tokens or built.max_num_tokens,
        max_seq_len=args.max_seq_len or built.max_seq_len or engine["max_seq_len"],
        max_beam_width=args.max_beam_width,
        kv_cache_config=args.kv_cache_config,
        scheduler_config=args.scheduler_config,
        batching_type=args.batching_type or BatchingType.INFLIGHT,
        enable_chunked_context=args.enable_chunked_prefill,
        guided_decoding_config=_guided_config(args.guided_decoding_backend, tokenizer),
        gather_generation_logits=args.gather_generation_logits,
        normalize_log_probs=args.normalize_log_probs,
        extended_runtime_perf_knob_config=args.extended_runtime_perf_knob_config,
        peft_cache_config=args.peft_cache_config or _peft_cache(args),
        fail_fast_on_attention_window_too_large=args.fail_fast_on_attention_window_too_large,
    )


def load_engine(
    folder: Path, config: ExecutorConfig, tensorrt_version: str, *, is_in_process: bool
) -> Executor:
    """Deserialise every rank, size the KV cache and start. Raises RuntimeError."""
    content = read_config(folder)
    pretrained, built = content["pretrained_config"], content["build_config"]
    free_bytes = 0
    for rank in range(pretrained["mapping"]["world_size"]):
        header = read_plan(folder / f"rank{rank}.engine", tensorrt_version)
        free_bytes = read_machine().cards[rank].free_bytes - header.weight_bytes
    tokens_per_block = built["plugin_config"]["tokens_per_block"]
    num_tokens = _kv_tokens(config.kv_cache_config, kv_bytes_per_token(pretrained), free_bytes)
    if num_tokens < tokens_per_block:
        raise RuntimeError(message("out_of_memory"))
    config.max_seq_len = min(
        config.max_seq_len, _longest_sequence(built["max_seq_len"], num_tokens, tokens_per_block)
    )
    facts = EngineFacts(
        limits={name: built[name] for name in CHECKED_LIMITS},
        vocab_size=_padded(pretrained["vocab_size"], pretrained["mapping"]["tp_size"]),
        tokens_per_block=tokens_per_block,
        num_blocks=-(-num_tokens // tokens_per_block),
        takes_adapters=built["plugin_config"]["lora_plugin"] is not None,
    )
    return Executor(config, facts, is_in_process)


def _peft_cache(args: Any) -> Any:
    """Room for as many adapters as LoraConfig says: LLM's where given, else the engine's."""
    content = read_config(Path(args.model))
    built = BuildConfig(**content["build_config"])
    if built.plugin_config.lora_plugin is None:
        return None
    config = args.lora_config or built.lora_config
    num_layers = content["pretrained_config"]["num_hidden_layers"]
    size = config.max_lora_rank * num_layers * len(config.lora_target_modules)
    counts = {
        "num_device_module_layer": config.max_loras,
        "num_host_module_layer": config.max_cpu_loras,
    }
    return PeftCacheConfig(**{name: size * n for name, n in counts.items() if n is not None})


def _guided_config(backend: str | None, tokenizer: Any) -> str | None:
    if backend is None:
        return None
    if backend != XGRAMMAR:
        raise ValueError(message("guided_backend", backend=backend))
    if tokenizer is None and assumed("guided_decoding_needs_tokenizer"):
        raise ValueError(message("guided_tokenizer", kind=type(tokenizer)))
    return backend


def _kv_tokens(config: Any, bytes_per_token: float, free_bytes: int) -> int:
    """The smallest of the limits that are set; the fraction is of what the weights leave free."""
    fraction = config.free_gpu_memory_fraction
    limits = [int(free_bytes * (0.9 if fraction is None else fraction) / bytes_per_token)]
    if config.max_gpu_total_bytes:
        limits.append(int(config.max_gpu_total_bytes / bytes_per_token))
    if config.max_tokens is not None:
        limits.append(config.max_tokens)
    return min(limits)


def _longest_sequence(built: int, num_tokens: int, tokens_per_block: int) -> int:
    """The executor's own limit: less than was built where the KV cache holds no such sequence.

    As `KVCacheManager::calculateMaxAttentionWindow` counts for one token of output (near 1.2).
    """
    num_blocks = -(-num_tokens // tokens_per_block)
    if num_blocks * tokens_per_block >= built or not assumed("small_cache_lowers_max_seq_len"):
        return built
    return 1 + (num_blocks - 1) * tokens_per_block


def _padded(vocab_size: int, tp_size: int) -> int:
    return int(-(-vocab_size // tp_size) * tp_size)
