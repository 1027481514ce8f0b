"""Checkpoint to TensorRT engine: calibrate, compile, try a few tokens, write the payload.

The plan has decided everything; TensorRT-LLM 1.2.1 receives every limit explicitly, because the
library has defaults of its own for missing ones and ignores unknown names. The payload on disk is
compared with the plan afterwards.

Of the library's two ways, `LLM(...).save()` is taken and not the one over converted checkpoints and
`build()`: it is the documented interface of this release and needs no script of an example folder,
it reads ModelOpt checkpoints and calibrates by itself, and it starts the processes of several GPUs.
It also loads the engine that it has built. That costs the memory of one sequence's KV cache, and
the smoke test needs it anyway.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import CONFIG_NAME, TOKENIZER_NAME, Checkpoint
from deepinfer.compiler.calibration import (
    calibration_digest,
    read_calibration_texts,
    write_calibration_folder,
)
from deepinfer.compiler.lora import LORA_MODULES
from deepinfer.compiler.plan_types import BuildPlan, TensorRtLlmPlan
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.source_links import link_checkpoint, neutral_folder
from deepinfer.compiler.tokenizer_files import write_tokenizer
from deepinfer.device import read_gpus
from deepinfer.errors import BackendError, BuildError
from deepinfer.manifest import PAYLOAD_DIR, TOKENIZER_DIR, LoraLimits
from deepinfer.trtllm_release import USE_CONTAINER, installed_version, require_release

logger = logging.getLogger(__name__)

WORK_DIR = ".work"  # removed before the engine is sealed
TIMING_CACHE_NAME = "tensorrt.timing.cache"
LIBRARIES = ("tensorrt", "torch", "transformers", "nvidia-modelopt")  # of which some may be absent
CALIBRATION_SEED = 1234  # the library's own default, explicit so that the build is repeatable
SMOKE_TEXT = "The capital of France is"
SMOKE_TOKENS = 8


def read_versions(plan: BuildPlan) -> dict[str, str]:
    """Versions of the library and of what its engines are tied to, without importing any.

    Raises BackendError when the library is not here or of a release without compiled engines, or
    when this machine has not the GPUs that the plan is for.
    """
    release = require_release(allow_untried=plan.allow_untried_release)
    versions = {"tensorrt-llm": release}
    found = {name: installed_version(name) for name in LIBRARIES}
    versions |= {name: version for name, version in found.items() if version is not None}
    gpus = read_gpus()
    needed = plan.parallelism.world_size
    fitting = [gpu for gpu in gpus if gpu.capability == plan.target.capability]
    if len(fitting) < needed:
        here = ", ".join(f"{gpu.name} ({gpu.capability})" for gpu in gpus) or "no GPU at all"
        raise BackendError(
            f"the plan needs {needed} GPU of {plan.target.capability}; this machine has {here}",
            hint="engines are compiled on the device that they are for: build there, or "
            "`--target auto`",
        )
    return versions | {"cuda": fitting[0].cuda_version, "driver": fitting[0].driver_version}


def compile_checkpoint(
    plan: BuildPlan, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> None:
    """Write `payload/` and `tokenizer/` into the empty `folder`. Takes minutes.

    Raises BuildError when the library cannot compile the checkpoint or its smoke test fails.
    """
    settings = plan.tensorrt_llm
    assert settings is not None, "a plan for another backend"
    payload_dir = folder / PAYLOAD_DIR
    write_tokenizer(checkpoint, folder / TOKENIZER_DIR, plan.trust_remote_code)
    # The workers of several GPUs get the environment that MPI finds when it is imported.
    os.environ.update(settings.nccl_env)
    os.environ["HF_HUB_OFFLINE"] = "1"  # all of the checkpoint is here
    os.environ.setdefault("TLLM_LOG_LEVEL", "INFO")
    with progress.phase("load", "TensorRT-LLM"):
        library = Library.load()
    work_dir = folder / WORK_DIR
    work_dir.mkdir()
    with neutral_folder(work_dir / "given") as given_dir:
        source = link_checkpoint(
            checkpoint,
            given_dir / "source",
            trust_remote_code=plan.trust_remote_code,
            needs_pad_token=settings.needs_calibration,
        )
        calibration = None
        if settings.needs_calibration:
            data = Path(settings.calib_data) if settings.calib_data else None
            texts = read_calibration_texts(data)
            texts_dir = write_calibration_folder(texts, given_dir / "calibration")
            calibration = _make_calib_config(library, settings, texts_dir, len(texts))
            logger.info("calibrating on texts with SHA-256 %s", calibration_digest(texts))
        with progress.phase("compile", _describe(plan)):
            llm = _build(library, plan, source, calibration, work_dir)
    try:
        if settings.has_smoke_test:
            with progress.phase("try", f"{SMOKE_TOKENS} tokens"):
                _try_engine(library, llm, plan, checkpoint, folder / TOKENIZER_DIR)
        with progress.phase("write", "engine and its configuration"):
            llm.save(str(payload_dir))
    finally:
        llm.shutdown()
        del llm
        gc.collect()
    shutil.rmtree(work_dir)
    check_payload(plan, payload_dir)


@dataclass(frozen=True)
class Library:
    """The classes of TensorRT-LLM that a build uses."""

    LLM: Any
    BuildConfig: Any
    CalibConfig: Any
    KvCacheConfig: Any
    LoraConfig: Any
    PluginConfig: Any
    QuantAlgo: Any
    QuantConfig: Any
    SamplingParams: Any

    @classmethod
    def load(cls) -> Library:
        """Import the library, which takes half a minute and a GPU. Raises BackendError."""
        try:
            from tensorrt_llm import llmapi
            from tensorrt_llm._tensorrt_engine import LLM
            from tensorrt_llm.lora_helper import LoraConfig
            from tensorrt_llm.plugin import PluginConfig
        except Exception as error:  # a missing driver fails an import in many ways
            reason = " ".join(str(error).split())
            raise BackendError(
                f"TensorRT-LLM cannot be imported: {reason}", hint=USE_CONTAINER
            ) from error
        return cls(
            LLM=LLM,
            BuildConfig=llmapi.BuildConfig,
            CalibConfig=llmapi.CalibConfig,
            KvCacheConfig=llmapi.KvCacheConfig,
            LoraConfig=LoraConfig,
            PluginConfig=PluginConfig,
            QuantAlgo=llmapi.QuantAlgo,
            QuantConfig=llmapi.QuantConfig,
            SamplingParams=llmapi.SamplingParams,
        )


def _make(kind: Any, **values: Any) -> Any:
    """An instance of one of the library's models, which ignore names that they do not have."""
    unknown = values.keys() - kind.model_fields.keys()
    if unknown:
        raise BackendError(
            f"this TensorRT-LLM's {kind.__name__} has no `{min(unknown)}`", hint=USE_CONTAINER
        )
    return kind(**values)


def _make_calib_config(
    library: Library, settings: TensorRtLlmPlan, folder: Path, num_texts: int
) -> Any:
    return _make(
        library.CalibConfig,
        device=settings.calib_device,
        calib_dataset=str(folder),
        calib_batches=min(settings.calib_batches, num_texts),
        calib_batch_size=1,
        calib_max_seq_length=settings.calib_max_seq_length,
        random_seed=CALIBRATION_SEED,
        tokenizer_max_seq_length=settings.calib_max_seq_length,
    )


def _describe(plan: BuildPlan) -> str:
    ranks = plan.parallelism.world_size
    return f"{plan.precision} for {plan.target.name}" + (f", {ranks} ranks" if ranks > 1 else "")


def _build(
    library: Library, plan: BuildPlan, source: Path, calibration: Any, work_dir: Path
) -> Any:
    """An LLM whose engine is compiled, in `work_dir`, and loaded."""
    settings = plan.tensorrt_llm
    assert settings is not None
    limits = plan.limits.model_dump()
    optional = {"calib_config": calibration} if calibration is not None else {}
    if plan.lora is not None:
        optional["enable_lora"] = True
        optional["lora_config"] = _make_lora_config(library, plan.lora)
    # The limits are given twice: to the engine that is built, and to the executor that then loads
    # it, whose own default for max_num_tokens would otherwise be taken against this engine.
    llm = library.LLM(
        model=str(source),
        dtype=settings.dtype,
        trust_remote_code=plan.trust_remote_code,
        tensor_parallel_size=plan.parallelism.tensor_parallel_size,
        pipeline_parallel_size=plan.parallelism.pipeline_parallel_size,
        build_config=_make_build_config(library, plan, settings, work_dir),
        quant_config=_make_quant_config(library, settings),
        kv_cache_config=_make_small_kv_cache(library, plan),
        enable_chunked_prefill=bool(plan.settings["chunked_prefill"]),
        workspace=str(work_dir),  # by default /tmp, which a killed build would leave full
        **limits,
        **optional,
    )
    for step, seconds in llm.llm_build_stats.build_steps_info:
        logger.info("%s: %.1f s", step, seconds)
    return llm


def _make_build_config(
    library: Library, plan: BuildPlan, settings: TensorRtLlmPlan, work_dir: Path
) -> Any:
    cache = timing_cache_path()
    if not _is_writable(cache):
        logger.info("TensorRT's timings are not kept: `%s` cannot be written", cache)
        cache = work_dir / TIMING_CACHE_NAME
    # For the engine that is compiled, and again for the executor that then loads it.
    lora = {"lora_config": _make_lora_config(library, plan.lora)} if plan.lora else {}
    return _make(
        library.BuildConfig,
        **plan.limits.model_dump(),
        opt_batch_size=min(plan.limits.max_batch_size, 8),
        gather_context_logits=False,
        gather_generation_logits=bool(plan.settings.get("gather_logits", False)),
        strongly_typed=True,
        # Without a path the library leaves its timing cache in the working directory.
        input_timing_cache=str(cache) if cache.is_file() else None,
        output_timing_cache=str(cache),
        plugin_config=_make(library.PluginConfig, **settings.plugins),
        **lora,
    )


def _make_lora_config(library: Library, limits: LoraLimits) -> Any:
    return _make(
        library.LoraConfig,
        max_lora_rank=limits.max_rank,
        lora_target_modules=[LORA_MODULES[name] for name in limits.module_shapes],
        max_loras=limits.max_loras,
        max_cpu_loras=limits.max_loras,
    )


def timing_cache_path() -> Path:
    """Where TensorRT keeps how fast each kernel was, so that the next build is shorter."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "deepinfer" / TIMING_CACHE_NAME


def _is_writable(file: Path) -> bool:
    """Whether the file can be written, once its folder is made."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(file if file.exists() else file.parent, os.W_OK)


def _make_quant_config(library: Library, settings: TensorRtLlmPlan) -> Any:
    algorithms = library.QuantAlgo
    values = {}
    # A ModelOpt checkpoint names its own algorithm; naming one beside it is a conflict.
    if settings.quant_algo is not None and not settings.is_prequantized:
        values["quant_algo"] = algorithms[settings.quant_algo]
    if settings.kv_cache_quant_algo is not None:
        values["kv_cache_quant_algo"] = algorithms[settings.kv_cache_quant_algo]
    return library.QuantConfig(**values)


def _make_small_kv_cache(library: Library, plan: BuildPlan) -> Any:
    """Room for one sequence: the library refuses to load an engine with less."""
    block = int(plan.settings["tokens_per_block"])
    num_blocks = math.ceil(plan.limits.max_seq_len / block) + 1
    return _make(library.KvCacheConfig, max_tokens=num_blocks * block, enable_block_reuse=False)


def _try_engine(
    library: Library, llm: Any, plan: BuildPlan, checkpoint: Checkpoint, tokenizer_dir: Path
) -> None:
    """Generate a few greedy tokens. Raises BuildError when they cannot be a model's answer."""
    sampling = library.SamplingParams(
        end_id=_end_id(checkpoint),
        pad_id=_end_id(checkpoint),
        max_tokens=min(SMOKE_TOKENS, plan.limits.max_seq_len - 1),
        ignore_eos=True,
        detokenize=False,
        _return_log_probs=True,
    )
    room = min(plan.limits.max_input_len, plan.limits.max_seq_len - SMOKE_TOKENS)
    prompt = _smoke_prompt(tokenizer_dir)[: max(1, room)]
    answer = llm.generate(prompt, sampling_params=sampling, use_tqdm=False).outputs[0]
    check_smoke_answer(answer.token_ids, answer.logprobs, checkpoint.dims.vocab_size)


def check_smoke_answer(token_ids: list[int], log_probs: list[float], vocab_size: int) -> None:
    """Raise BuildError unless there are tokens, all in the vocabulary and of finite likelihood."""
    hint = "choose another `--precision`, or skip this check with `--no-smoke-test`"
    if not token_ids:
        raise BuildError("the compiled engine generates nothing", hint=hint)
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise BuildError(
                f"the compiled engine generates token {token_id}, which is outside the vocabulary "
                f"of {vocab_size:,}",
                hint=hint,
            )
    if not all(math.isfinite(value) for value in log_probs):
        raise BuildError("the compiled engine computes values that are not finite", hint=hint)


def _smoke_prompt(tokenizer_dir: Path) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER_NAME))
    ids: list[int] = tokenizer.encode(SMOKE_TEXT).ids
    return ids


def _end_id(checkpoint: Checkpoint) -> int:
    # The library insists on one even where nothing ends on it.
    return checkpoint.eos_token_ids[0] if checkpoint.eos_token_ids else 0


def rank_file_names(world_size: int) -> list[str]:
    return [f"rank{rank}.engine" for rank in range(world_size)]


def check_payload(plan: BuildPlan, folder: Path) -> None:
    """Raise BuildError unless `folder` holds every rank and is as planned."""
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
    # Without padding and with a paged context the library ignores this limit, with a warning.
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
