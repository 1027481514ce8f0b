"""OpenVINO GenAI's continuous batching on the CPU, behind the protocol of `base.py`.

The library schedules, batches, pages its KV cache and samples. What it leaves to its caller is done
here: ids are validated by the host, capacity is counted by the host (a prompt larger than the cache
would take every other running request down with it), and handles are drained before they are let
go, because reading an empty one blocks for ever with the interpreter's lock held.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deepinfer.backends.base import BackendFault, ReportPhase
from deepinfer.backends.openvino_grammars import GrammarGate
from deepinfer.backends.openvino_lookup import PromptLookup
from deepinfer.backends.openvino_scoring import Scorer
from deepinfer.backends.openvino_trial import grammar_config
from deepinfer.device import read_machine
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import BackendError, EngineError, InternalError, UnsupportedParameter
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenChunk,
    TokenLogProbs,
)
from deepinfer.manifest import EngineFolder, EngineManifest

logger = logging.getLogger(__name__)

TOKENS_PER_BLOCK = 32  # the CPU plugin's paged attention has no other block size
FREE_MEMORY_SHARE = (
    0.6  # of what is free when an engine loads; the rest is for activations and others
)
SEED_BITS = 32  # the library's generator is seeded by the low 32 bits only
WARM_UP_TOKENS = 32
TOKENIZER_NAME = "openvino_tokenizer.xml"  # which the library reads a grammar's tokens from
TRIAL_WAIT_S = 0.005  # for the trial of a grammar, in a step that has nothing else to do


@dataclass
class OpenVinoBackend:
    capacity: Capacity
    eos_token_ids: tuple[int, ...]
    _pipeline: Any
    _library: _Library
    _scorer: Scorer
    _lookup: PromptLookup
    _gate: GrammarGate | None  # None where the engine has no tokenizer of the library's own
    _handles: dict[str, Any] = field(default_factory=dict)
    _with_log_probs: set[str] = field(default_factory=set)  # the library gives zeros to the others
    _sequence_ids: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def load(
        cls, engine: EngineFolder, options: EngineOptions, report: ReportPhase
    ) -> OpenVinoBackend:
        report("importing OpenVINO", 5)
        library = _Library.load()
        report("loading weights", 15)
        manifest = engine.manifest
        capacity = _plan_capacity(manifest, options)
        lookup = PromptLookup(options.prompt_lookup)
        try:
            pipeline = library.genai.ContinuousBatchingPipeline(
                engine.payload_dir,
                _scheduler_config(library, manifest, capacity, lookup),
                "CPU",
                _device_properties(manifest, options) | lookup.properties,
            )
        except Exception as error:
            raise BackendError(
                f"OpenVINO cannot load engine `{manifest.name}`: {_first_line(error)}",
                hint=f"check it with `deepinfer engines verify {manifest.name}`",
            ) from error
        scorer = Scorer(
            engine.payload_dir, _device_properties(manifest, options), library.core, library.numpy
        )
        has_tokenizer = (engine.payload_dir / TOKENIZER_NAME).exists()
        gate = GrammarGate(engine.payload_dir, manifest.tokens.vocab_size)
        backend = cls(
            capacity,
            manifest.tokens.eos_token_ids,
            pipeline,
            library,
            scorer,
            lookup,
            gate if has_tokenizer else None,
        )
        report("warming up", 80)
        backend._warm_up(manifest)
        return backend

    @property
    def num_used_blocks(self) -> int:
        # The library counts when it schedules, so its figure is of the last step that ran anything.
        if not self._handles:
            return 0
        share = float(self._pipeline.get_metrics().cache_usage) / 100
        return round(share * self.capacity.num_blocks)

    def check(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        self._lookup.check(sampling)
        if request.adapter is not None:
            raise UnsupportedParameter(
                "OpenVINO's executor takes no adapters by request; `deepinfer build --lora` merges "
                "one into an engine",
                param="model",
            )
        if sampling.logit_bias:
            raise UnsupportedParameter(
                "OpenVINO's executor takes no logit bias; engines of TensorRT-LLM do",
                param="logit_bias",
            )
        if sampling.grammar is not None and self._gate is None:
            raise UnsupportedParameter(
                f"`{sampling.grammar.param}` needs a tokenizer that OpenVINO can read, which this "
                "engine was built without",
                param=sampling.grammar.param,
            )

    def add(self, request: GenerationRequest) -> None:
        if self._gate is not None and request.sampling.grammar is not None:
            self._gate.hold(request)
        else:
            self._start(request)

    def _start(self, request: GenerationRequest) -> None:
        prompt = self._library.token_tensor(request.prompt_token_ids)
        config = _generation_config(self._library, request.sampling, self.eos_token_ids)
        self._lookup.configure(config)
        try:
            handle = self._pipeline.add_request(next(self._sequence_ids), prompt, config)
        except Exception as error:
            raise InternalError(
                f"the engine could not take the request: {_first_line(error)}"
            ) from error
        self._handles[request.request_id] = handle
        if self._scorer.is_needed(request):
            self._scorer.open(request)
        elif request.sampling.num_log_probs is not None:
            self._with_log_probs.add(request.request_id)

    def cancel(self, request_id: str) -> None:
        if self._gate is not None:
            self._gate.drop(request_id)
        handle = self._handles.pop(request_id, None)
        self._with_log_probs.discard(request_id)
        self._scorer.close(request_id)
        if handle is not None:
            handle.cancel()

    def step(self) -> list[TokenChunk]:
        refusals = list(self._pass_gate())
        try:
            # A cancelled request still counts as unfinished until a step has freed its blocks.
            if self._pipeline.has_non_finished_requests():
                self._pipeline.step()
        except Exception as error:
            return refusals + self._recover(error)
        chunks = [self._read(request_id, handle) for request_id, handle in self._handles.items()]
        for chunk in chunks:
            if chunk is not None and chunk.finish_reason is not None:
                del self._handles[chunk.request_id]
                self._with_log_probs.discard(chunk.request_id)
        return refusals + self._scorer.pass_on(chunk for chunk in chunks if chunk is not None)

    def _recover(self, error: Exception) -> list[TokenChunk]:
        """Let go of every request, after which the library can step again; they may come back.

        An exception leaves the pipeline in the middle of its scheduling. Raises BackendFault when
        it does not get out of there.
        """
        what = f"OpenVINO failed in a step: {_first_line(error)}"
        lost = list(self._handles)
        for request_id in lost:
            self.cancel(request_id)
        try:
            self._pipeline.step()
        except Exception:
            raise BackendFault(what) from error
        logger.error("%s; its %d requests are taken again", what, len(lost))
        return [TokenChunk(name, finish_reason=FinishReason.INTERRUPTED) for name in lost]

    def _pass_gate(self) -> Iterator[TokenChunk]:
        """Start the requests whose grammar compiles; the others end with what is wrong with it."""
        if self._gate is None:
            return
        for request, fault in self._gate.release(0 if self._handles else TRIAL_WAIT_S):
            grammar = request.sampling.grammar
            if fault is None or grammar is None:
                self._start(request)
                continue
            yield TokenChunk(
                request_id=request.request_id,
                finish_reason=FinishReason.ERROR,
                message=f"`{grammar.param}` is refused: {fault}",
                refused_param=grammar.param,
            )

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._handles.clear()
        self._pipeline = None

    def _read(self, request_id: str, handle: Any) -> TokenChunk | None:
        token_ids: list[int] = []
        log_probs: list[float] = []
        finish = None
        while handle.can_read():
            for output in handle.read().values():
                token_ids.extend(output.generated_ids)
                log_probs.extend(output.generated_log_probs)
                finish = self._library.finish_reasons[output.finish_reason]
        if finish is None and handle.get_status() == self._library.ignored:
            return TokenChunk(
                request_id=request_id,
                token_ids=tuple(token_ids),
                finish_reason=FinishReason.ERROR,
                message="the engine ran out of KV cache for this request",
            )
        if not token_ids and finish is None:
            return None
        return TokenChunk(
            request_id=request_id,
            token_ids=tuple(token_ids),
            finish_reason=finish,
            log_probs=tuple(TokenLogProbs(value) for value in log_probs)
            if request_id in self._with_log_probs
            else (),
        )

    def _warm_up(self, manifest: EngineManifest) -> None:
        """Run one short request: the first step repacks the weights; no user should wait for it."""
        prompt_len = max(1, min(WARM_UP_TOKENS, manifest.limits.max_seq_len - 2))
        self.add(
            GenerationRequest(
                request_id="warm-up",
                prompt_token_ids=(0,) * prompt_len,
                sampling=SamplingParams(max_tokens=2, temperature=0, ignore_eos=True),
            )
        )
        while self._handles:
            self.step()


@dataclass(frozen=True)
class _Library:
    """The imported modules and the constants of theirs that every step compares with."""

    genai: Any
    core: Any
    numpy: Any
    finish_reasons: dict[Any, FinishReason | None]
    ignored: Any

    @classmethod
    def load(cls) -> _Library:
        try:
            import numpy
            import openvino
            import openvino_genai
        except ImportError as error:
            raise BackendError(
                f"this engine needs OpenVINO GenAI, which is not installed: {error}",
                hint="pip install 'deepinfer[openvino]'",
            ) from error
        # The names live in the extension module; the package re-exports only some of them.
        native = openvino_genai.py_openvino_genai
        reasons = native.GenerationFinishReason
        return cls(
            genai=openvino_genai,
            core=openvino,
            numpy=numpy,
            finish_reasons={
                reasons.NONE: None,
                reasons.STOP: FinishReason.STOP,
                reasons.LENGTH: FinishReason.LENGTH,
            },
            ignored=native.GenerationStatus.IGNORED,
        )

    def token_tensor(self, token_ids: tuple[int, ...]) -> Any:
        array = self.numpy.array([token_ids], dtype=self.numpy.int64)  # [1, prompt_len]
        return self.core.Tensor(array)


def _plan_capacity(manifest: EngineManifest, options: EngineOptions) -> Capacity:
    """Blocks for full batches of full sequences, or as many as memory allows.

    Raises EngineError when not even one sequence of the longest length would fit.
    """
    limits = manifest.limits
    block_bytes = manifest.kv_bytes_per_token * TOKENS_PER_BLOCK
    budget = options.kv_cache_bytes
    if budget is None:
        share = options.kv_cache_fraction or FREE_MEMORY_SHARE
        budget = int(read_machine().available_memory_bytes * share)
    per_sequence = -(-(limits.max_seq_len + options.prompt_lookup) // TOKENS_PER_BLOCK)
    num_blocks = min(limits.max_batch_size * per_sequence, budget // block_bytes)
    if num_blocks < per_sequence:
        raise EngineError(
            f"the KV cache of one sequence of {limits.max_seq_len:,} tokens needs "
            f"{per_sequence * block_bytes / 2**20:,.0f} MiB; {budget / 2**20:,.0f} MiB are given",
            hint="free memory, raise the KV cache's size, or rebuild with a lower --max-seq-len",
        )
    return Capacity(
        limits.max_batch_size,
        num_blocks,
        TOKENS_PER_BLOCK,
        guesses_per_sequence=options.prompt_lookup,
    )


def _scheduler_config(
    library: _Library, manifest: EngineManifest, capacity: Capacity, lookup: PromptLookup
) -> Any:
    config = library.genai.SchedulerConfig()
    config.max_num_seqs = capacity.max_batch_size
    config.max_num_batched_tokens = lookup.batched_tokens(
        manifest.limits.max_num_tokens, capacity.max_batch_size
    )
    config.num_kv_blocks = capacity.num_blocks
    config.dynamic_split_fuse = True  # long prompts are prefilled in pieces, between decode steps
    config.enable_prefix_caching = lookup.allows_prefix_cache
    return config


def _device_properties(manifest: EngineManifest, options: EngineOptions) -> dict[str, Any]:
    settings = manifest.backend.settings
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": settings["inference_precision"],
        "KV_CACHE_PRECISION": settings["kv_cache_precision"],
    }
    if "dynamic_quantization_group_size" in settings:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = settings["dynamic_quantization_group_size"]
    if options.num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = options.num_threads
    return properties


def _generation_config(
    library: _Library, sampling: SamplingParams, eos_token_ids: tuple[int, ...]
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


def _first_line(error: Exception) -> str:
    """What the library says, without the paths of the machine that it was compiled on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if "/src/" not in line and "Exception from" not in line]
    return (useful or lines or [type(error).__name__])[-1]
