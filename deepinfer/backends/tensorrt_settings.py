"""What TensorRT-LLM is told, for loading an engine and for each request: pure translations.

Every limit and every sampling default is spelled out: the library's own are not those of the engine
(8,192 batched tokens) or of a request (32 tokens, greedy). The library's classes come as values.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepinfer.backends.tensorrt_errors import describe, grammar_fault
from deepinfer.backends.tensorrt_stream import TokenStream
from deepinfer.checkpoint import CONFIG_NAME, TOKENIZER_CONFIG_NAME
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import EngineError
from deepinfer.generation import GenerationRequest, Grammar, LoraAdapter, SamplingParams
from deepinfer.manifest import EngineFolder, EngineLimits, EngineManifest

if TYPE_CHECKING:
    from deepinfer.backends.tensorrt_llm import Library

logger = logging.getLogger(__name__)

FREE_MEMORY_SHARE = 0.9  # of what the GPU has free once the engine is loaded
CODE_MAP = "auto_map"  # of transformers: which of a folder's Python files to run for which class
CODE_NAMING_FILES = (CONFIG_NAME, TOKENIZER_CONFIG_NAME)
DYNAMIC_BATCH_WINDOW = 128  # iterations, as trtllm-serve sets it
GUIDED_FIELDS = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}
SEED_MASK = (1 << 64) - 1  # the executor's seeds are unsigned


def plan_capacity(manifest: EngineManifest, options: EngineOptions) -> Capacity:
    """Blocks for full batches of full sequences, or as many as the budget in bytes holds.

    The library allots no more than fits the GPU; what it did allot is known once it runs. Raises
    EngineError when a budget does not hold one sequence of the longest length.
    """
    limits = manifest.limits
    tokens_per_block = int(manifest.backend.settings["tokens_per_block"])
    per_sequence = math.ceil(limits.max_seq_len / tokens_per_block)
    num_blocks = limits.max_batch_size * per_sequence
    if options.kv_cache_bytes is not None:
        block_bytes = manifest.kv_bytes_per_token * tokens_per_block
        num_blocks = min(num_blocks, options.kv_cache_bytes // block_bytes)
        if num_blocks < per_sequence:
            raise EngineError(
                f"the KV cache of one sequence of {limits.max_seq_len:,} tokens needs "
                f"{per_sequence * block_bytes / 2**20:,.0f} MiB; "
                f"{options.kv_cache_bytes / 2**20:,.0f} MiB are given",
                hint="raise the KV cache's size, or serve with a lower --max-seq-len",
            )
    return Capacity(limits.max_batch_size, num_blocks, tokens_per_block)


def measured_capacity(
    manifest: EngineManifest, built: BuiltEngine, planned: Capacity, stats: Mapping[str, Any]
) -> Capacity:
    """What the executor allotted, where that is less than planned.

    Raises EngineError when it is too little for one sequence of the longest length, and KeyError,
    TypeError or ValueError when `stats` does not say how much it is.
    """
    cache = stats["kvCacheStats"]
    num_blocks, tokens_per_block = int(cache["maxNumBlocks"]), int(cache["tokensPerBlock"])
    if num_blocks < 1 or tokens_per_block < 1:
        raise ValueError(f"a KV cache of {num_blocks} blocks of {tokens_per_block} tokens")
    capacity = Capacity(
        planned.max_batch_size, min(planned.num_blocks, num_blocks), tokens_per_block
    )
    num_tokens = int(cache["maxNumBlocks"]) * capacity.tokens_per_block
    longest = executor_seq_len(built, num_tokens, capacity.tokens_per_block)
    if longest < manifest.limits.max_seq_len:
        raise EngineError(
            f"the GPU's free memory holds a KV cache of {num_tokens:,} tokens, with which one "
            f"sequence may have {max(0, longest):,}; engine `{manifest.name}` takes "
            f"{manifest.limits.max_seq_len:,}",
            hint="end what else uses the GPU, raise --kv-cache-fraction, or serve with "
            f"`--max-seq-len {longest}`",
        )
    return capacity


def executor_seq_len(built: BuiltEngine, num_tokens: int, tokens_per_block: int) -> int:
    """The longest sequence that the executor itself takes with a KV cache of `num_tokens`.

    Where one of the compiled length does not fit the cache, the executor takes all of its blocks
    but one, and one token (`calculateMaxAttentionWindow`, near 1.2). It cuts longer answers short.
    """
    if num_tokens >= built.max_seq_len:
        return built.max_seq_len
    return num_tokens - tokens_per_block + 1


def load_arguments(
    library: Library,
    engine: EngineFolder,
    built: BuiltEngine,
    options: EngineOptions,
    planned: Capacity,
    tokenizer_dir: Path,
) -> dict[str, Any]:
    """The keywords for loading an engine; nothing that decides its behaviour is left unsaid.

    `tokenizer_dir` is what `write_plain_tokenizer` has filled; it is read while the engine loads.
    """
    manifest = engine.manifest
    settings = manifest.backend.settings
    fraction = options.kv_cache_fraction or FREE_MEMORY_SHARE
    max_tokens = planned.num_tokens
    if executor_seq_len(built, max_tokens, planned.tokens_per_block) < manifest.limits.max_seq_len:
        # Of a lower limit than was compiled. The block is the executor's; nobody is admitted to it.
        max_tokens += planned.tokens_per_block
    arguments = {
        "model": str(engine.payload_dir),
        "tokenizer": str(tokenizer_dir),  # guided decoding needs one; text stays outside
        "trust_remote_code": False,  # whatever was trusted when it was built, serving needs no code
        "tensor_parallel_size": manifest.parallelism.tensor_parallel_size,
        "pipeline_parallel_size": manifest.parallelism.pipeline_parallel_size,
        "kv_cache_config": library.KvCacheConfig(
            max_tokens=max_tokens,
            free_gpu_memory_fraction=fraction,
            enable_block_reuse=bool(settings["block_reuse"]),
        ),
        "scheduler_config": library.SchedulerConfig(
            capacity_scheduler_policy=library.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT,
            context_chunking_policy=library.ContextChunkingPolicy.FIRST_COME_FIRST_SERVED,
            dynamic_batch_config=library.DynamicBatchConfig(
                enable_batch_size_tuning=True,
                enable_max_num_tokens_tuning=False,
                dynamic_batch_moving_average_window=DYNAMIC_BATCH_WINDOW,
            ),
        ),
        "enable_chunked_prefill": bool(settings["chunked_prefill"]),
        "gather_generation_logits": gathers_logits(manifest),
        "guided_decoding_backend": "xgrammar",
        **built.limits.model_dump(),
    }
    if manifest.lora is not None:
        arguments["enable_lora"] = True
        # Told again, with how many are held: what the engine's own says of that is not compiled.
        arguments["lora_config"] = library.LoraConfig(
            max_lora_rank=manifest.lora.max_rank,
            lora_target_modules=list(built.lora_modules),
            max_loras=manifest.lora.max_loras,
            max_cpu_loras=manifest.lora.max_loras,
        )
    return arguments


def process_environment(manifest: EngineManifest) -> dict[str, str]:
    """Variables of the engine process, to be set before the library is imported.

    It reads some while it is imported, and the processes that MPI starts for it have the
    environment of that moment.
    """
    settings = manifest.backend.settings
    nccl = {name: str(value) for name, value in settings.items() if name.startswith("NCCL_")}
    # Whatever serving needs lies in the engine; and for an engine's folder the library asks the Hub
    # for a model called `None`.
    return nccl | {"HF_HUB_OFFLINE": "1"}


def write_plain_tokenizer(engine: EngineFolder, folder: Path) -> None:
    """Fill `folder` with what the library may load of `tokenizer/`: links, and no code.

    The library compiles grammars for the tokenizer's vocabulary, and needs `tokenizer.json` for
    that. An engine's folder comes from anywhere, and transformers runs the code that it names.
    Raises EngineError when it is damaged.
    """
    configs: dict[str, dict[str, Any]] = {}
    for file in engine.tokenizer_dir.iterdir():
        if file.name in CODE_NAMING_FILES:
            configs[file.name] = _read_json(file)
        elif file.is_file() and file.suffix != ".py":
            (folder / file.name).symlink_to(file.resolve())
    code = {name: config.pop(CODE_MAP, None) or {} for name, config in configs.items()}
    tokenizer = configs.get(TOKENIZER_CONFIG_NAME, {})
    has_class = "tokenizer_class" in tokenizer
    if "AutoTokenizer" in code.get(TOKENIZER_CONFIG_NAME, {}) or (
        any(code.values()) and not has_class
    ):
        # The class that belongs to it is code; this one does what tokenizer.json says.
        configs[TOKENIZER_CONFIG_NAME] = tokenizer | {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, config in configs.items():
        (folder / name).write_text(json.dumps(config), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise EngineError(
            f"`{path}` cannot be read: {describe(error)}",
            hint="rebuild the engine with `deepinfer build --force`",
        ) from error


def gathers_logits(manifest: EngineManifest) -> bool:
    """Whether the engine gives out its logits, from which alternatives are told."""
    return bool(manifest.backend.settings.get("gather_logits", False))


@dataclass(frozen=True)
class BuiltEngine:
    """What the payload's own configuration says, in so far as the executor must be told it."""

    limits: EngineLimits  # of which the server may allow less than was compiled
    max_seq_len: int  # that was compiled
    padded_vocab_size: int  # the width of the logits
    lora_modules: tuple[str, ...]  # that adapters may change, by the library's names


def read_built_engine(engine: EngineFolder) -> BuiltEngine:
    """Read `payload/config.json`. Raises EngineError when it is damaged."""
    manifest = engine.manifest
    path = engine.payload_dir / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        built = config["build_config"]
        limits = EngineLimits(**{name: built[name] for name in EngineLimits.model_fields})
        vocab_size = int(config["pretrained_config"]["vocab_size"])
        lora = (built.get("lora_config") or {}).get("lora_target_modules") or ()
        names_code = CODE_MAP in config
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        RecursionError,
    ) as error:
        raise EngineError(
            f"`{path}` does not say how the engine was built: {describe(error)}",
            hint="rebuild the engine with `deepinfer build --force`",
        ) from error
    if names_code:  # which no build writes, and the library would run whatever it is told
        raise EngineError(
            f"`{path}` names Python code to run (`{CODE_MAP}`); an engine has none",
            hint="do not serve this folder; build the engine yourself",
        )
    ranks = manifest.parallelism.tensor_parallel_size
    served = {
        # The library counts no padding, so it keeps no limit of its own on the prompt's length.
        "max_input_len": manifest.limits.max_input_len,
        # The compiled one stays, but the library's own check of a request goes by this.
        "max_seq_len": min(limits.max_seq_len, manifest.limits.max_seq_len),
    }
    return BuiltEngine(
        limits.model_copy(update=served),
        limits.max_seq_len,
        math.ceil(vocab_size / ranks) * ranks,  # each rank has as many rows of the LM head
        tuple(map(str, lora)),
    )


def adapter_arguments(library: Library, adapter: LoraAdapter | None) -> dict[str, Any]:
    """The keyword that has a request answered with an adapter; none without one."""
    if adapter is None:
        return {}
    request = library.LoRARequest(
        lora_name=adapter.name, lora_int_id=adapter.id, lora_path=adapter.path
    )
    return {"lora_request": request}


def make_stream(request: GenerationRequest, manifest: EngineManifest) -> TokenStream:
    sampling = request.sampling
    eos_token_ids = () if sampling.ignore_eos else manifest.tokens.eos_token_ids
    end_id = eos_token_ids[0] if eos_token_ids else None
    stops = frozenset(sampling.stop_token_ids) | frozenset(eos_token_ids[1:])
    return TokenStream(request, end_id, stops if sampling.min_tokens else frozenset())


def sampling_arguments(
    stream: TokenStream, manifest: EngineManifest, padded_vocab_size: int
) -> dict[str, Any]:
    """The keywords of the library's SamplingParams for one request, its grammar apart.

    `padded_vocab_size` is the width of the engine's logits, which may be more than the vocabulary.
    """
    sampling = stream.request.sampling
    eos_token_ids = manifest.tokens.eos_token_ids
    pad_id = manifest.tokens.pad_token_id
    arguments: dict[str, Any] = {
        # Set here, so that the library needs no tokenizer; it would know one EOS id at most.
        "end_id": -1 if stream.end_id is None else stream.end_id,
        "pad_id": pad_id if pad_id is not None else max(0, *eos_token_ids[:1], 0),
        "max_tokens": sampling.max_tokens,
        "n": 1,
        "ignore_eos": sampling.ignore_eos,
        "detokenize": False,
        "add_special_tokens": False,
        "include_stop_str_in_output": True,  # the token that ended an answer is a token of it
        **_drawing_arguments(sampling),
        **_penalty_arguments(sampling),
    }
    if sampling.num_log_probs:
        arguments["logprobs"] = sampling.num_log_probs
    elif sampling.num_log_probs is not None:
        # The executor's own, of the chosen tokens; `logprobs` would bring all logits to Python.
        arguments["_return_log_probs"] = True
    if sampling.logit_bias:
        arguments["embedding_bias"] = bias_vector(sampling.logit_bias, padded_vocab_size)
    if sampling.min_tokens:
        arguments["min_tokens"] = sampling.min_tokens
    else:
        stops = {*sampling.stop_token_ids}
        if not sampling.ignore_eos:
            stops.update(eos_token_ids[1:])
        if stops:
            arguments["stop_token_ids"] = sorted(stops)
    return arguments


def bias_vector(logit_bias: Mapping[int, float], padded_vocab_size: int) -> list[float]:
    """One number a logit: [padded_vocab_size]."""
    bias = [0.0] * padded_vocab_size
    for token_id, value in logit_bias.items():
        bias[token_id] = value
    return bias


def grammar_arguments(grammar: Grammar) -> dict[str, Any]:
    """The keyword of the library's GuidedDecodingParams for a grammar."""
    if grammar.ebnf:  # the library's own form of JSON allows any amount of white space
        return {"grammar": grammar.ebnf}
    if grammar.kind == "json":
        return {"json_object": True}
    return {GUIDED_FIELDS[grammar.kind]: grammar.text}


def find_grammar_fault(parser: Any, grammar: Grammar) -> str | None:
    """What xgrammar's own parser says is wrong with a grammar; None where it takes it.

    `parser` is its class `Grammar`. What the executor cannot parse ends all that runs beside it, so
    it is not sent there.
    """
    kind, text = ("ebnf", grammar.ebnf) if grammar.ebnf else (grammar.kind, grammar.text)
    parse = getattr(parser, f"from_{kind}", None)
    if kind == "json" or parse is None:
        return None
    try:
        parse(text)
    except RuntimeError as error:
        return grammar_fault(error)
    except Exception as error:  # it is called in another way in that release
        logger.debug("xgrammar does not say whether a grammar is right: %s", describe(error))
    return None


def _drawing_arguments(sampling: SamplingParams) -> dict[str, Any]:
    if sampling.is_greedy:
        return {"top_k": 1}
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,  # 0 considers every token; the library rejects -1
        "min_p": sampling.min_p or None,
        "seed": sampling.seed & SEED_MASK,
    }


def _penalty_arguments(sampling: SamplingParams) -> dict[str, Any]:
    """Penalties that change nothing are left out: the executor has a slower path with any."""
    return {
        "repetition_penalty": _unless(sampling.repetition_penalty, 1.0),
        "presence_penalty": _unless(sampling.presence_penalty, 0.0),
        "frequency_penalty": _unless(sampling.frequency_penalty, 0.0),
    }


def _unless(value: float, neutral: float) -> float | None:
    return None if value == neutral else value
