"""OpenVINO GenAI's continuous batching on the CPU, behind the protocol of `base.py`.

The library schedules, batches, pages its KV cache and samples. What it leaves to its caller is done
here: ids are validated by the host, capacity is counted by the host (a prompt larger than the cache
would take every other running request down with it), and handles are drained before they are let
go, because reading an empty one blocks for ever with the interpreter's lock held.
"""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deepinfer import huge_pages
from deepinfer.backends.base import BackendFault, ReportPhase, refuse_grammar
from deepinfer.backends.openvino_grammars import GrammarGate
from deepinfer.backends.openvino_library import Library, first_line
from deepinfer.backends.openvino_scoring import Scorer
from deepinfer.backends.openvino_settings import (
    device_properties,
    generation_config,
    scheduler_config,
    speculation_properties,
)
from deepinfer.backends.openvino_speculation import Speculation
from deepinfer.device import read_machine
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import (
    BackendError,
    EngineError,
    EngineUnavailable,
    InternalError,
    UnsupportedParameter,
)
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
WARM_UP_TOKENS = 256  # a full step: the first one of a size makes room and kernels for it
TOKENIZER_NAME = "openvino_tokenizer.xml"  # which the library reads a grammar's tokens from
TRIAL_WAIT_S = 0.005  # for the trial of a grammar, in a step that has nothing else to do


@dataclass
class OpenVinoBackend:
    capacity: Capacity
    eos_token_ids: tuple[int, ...]
    _pipeline: Any
    _library: Library
    _scorer: Scorer
    _speculation: Speculation
    _gate: GrammarGate | None  # None where the engine has no tokenizer of the library's own
    _handles: dict[str, Any] = field(default_factory=dict)
    _with_log_probs: set[str] = field(default_factory=set)  # the library gives zeros to the others
    _sequence_ids: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def load(
        cls, engine: EngineFolder, options: EngineOptions, report: ReportPhase
    ) -> OpenVinoBackend:
        report("importing OpenVINO", 5)
        library = Library.load()
        report("loading weights", 15)
        manifest = engine.manifest
        speculation = Speculation.choose(options)
        capacity = _plan_capacity(manifest, options, speculation)
        scheduler = scheduler_config(library, manifest, capacity, speculation)
        try:
            pipeline = library.genai.ContinuousBatchingPipeline(
                engine.payload_dir,
                scheduler,
                "CPU",
                device_properties(manifest, options)
                | speculation_properties(library, speculation, scheduler, options),
            )
        except Exception as error:
            raise BackendError(
                f"OpenVINO cannot load engine `{manifest.name}`: {first_line(error)}",
                hint=f"check it with `deepinfer engines verify {shlex.quote(manifest.name)}`",
            ) from error
        scorer = Scorer(
            engine.payload_dir, device_properties(manifest, options), library.core, library.numpy
        )
        has_tokenizer = (engine.payload_dir / TOKENIZER_NAME).exists()
        gate = GrammarGate(engine.payload_dir, manifest.tokens.vocab_size)
        backend = cls(
            capacity,
            manifest.tokens.eos_token_ids,
            pipeline,
            library,
            scorer,
            speculation,
            gate if has_tokenizer else None,
        )
        report("warming up", 80)
        backend._warm_up(manifest)  # which repacks the weights: what is moved is what stays
        report("moving weights to huge pages", 90)
        num_bytes = huge_pages.collapse()
        logger.debug("%d MiB lie in huge pages", num_bytes >> 20)
        return backend

    @property
    def gate(self) -> GrammarGate | None:
        return self._gate

    @property
    def num_used_blocks(self) -> int:
        # The library counts when it schedules, so its figure is of the last step that ran anything.
        if not self._handles:
            return 0
        share = float(self._pipeline.get_metrics().cache_usage) / 100
        return round(share * self.capacity.num_blocks)

    def check(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        self._speculation.check(sampling)
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

        if self._scorer.is_needed(request):
            missing, free = self._scorer.missing_bytes, read_machine().available_memory_bytes
            if missing > free:
                raise EngineUnavailable(
                    f"Log probabilities of alternatives and prompts need {missing / 2**30:.1f} GiB "
                    f"more memory here, and {free / 2**30:.1f} GiB are free"
                )

    def add(self, request: GenerationRequest) -> None:
        if self._gate is None:
            self._start(request)
            return
        if not self._handles and self._gate.is_nearly_full:
            # The library has no way to let go of them, and nobody else is in the engine now.
            raise BackendFault("the engine starts anew to let go of the grammars that it keeps")
        if self._gate.has_passed(request):
            self._start(request)
        else:
            self._gate.hold(request, tenant="", is_admitted=True)

    def _start(self, request: GenerationRequest) -> None:
        try:
            prompt = self._library.token_tensor(request.prompt_token_ids)
            config = generation_config(self._library, request.sampling, self.eos_token_ids)
            self._speculation.configure(config)
            handle = self._pipeline.add_request(next(self._sequence_ids), prompt, config)
        except Exception as error:
            raise InternalError(
                f"the engine could not take the request: {first_line(error)}"
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
        chunks: list[TokenChunk] = []
        for request_id, handle in self._handles.items():
            try:
                chunk = self._read(request_id, handle)
            except Exception:
                logger.exception("request %s: its tokens cannot be read", request_id)
                handle.cancel()
                chunk = _failed(request_id, "the engine could not read the answer")
            if chunk is not None:
                chunks.append(chunk)
        for chunk in chunks:
            if chunk.finish_reason is not None:
                del self._handles[chunk.request_id]
                self._with_log_probs.discard(chunk.request_id)
        scored = self._scorer.pass_on(chunks)
        for chunk in scored:
            if chunk.finish_reason is FinishReason.ERROR:  # by the scorer; the executor goes on
                self.cancel(chunk.request_id)
        return refusals + scored

    def _recover(self, error: Exception) -> list[TokenChunk]:
        """Let go of every request, after which the library can step again; they may come back.

        An exception leaves the pipeline in the middle of its scheduling. Raises BackendFault when
        it does not get out of there.
        """
        what = f"OpenVINO failed in a step: {first_line(error)}"
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
        timeout_s = 0 if self._handles else TRIAL_WAIT_S
        for request, fault in self._gate.release(timeout_s, is_admitted=True):
            if fault is None:
                yield from self._start_in_step(request)
            else:
                yield refuse_grammar(request, fault)

    def _start_in_step(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        """The end of a request that cannot be started: an exception would be everybody's end."""
        try:
            self._start(request)
        except InternalError as error:
            logger.warning("request %s: %s", request.request_id, error.message)
            yield _failed(request.request_id, error.message)

    def close(self) -> None:
        if self._gate is not None:
            self._gate.close()
        self._handles.clear()
        self._pipeline = None

    def _read(self, request_id: str, handle: Any) -> TokenChunk | None:
        token_ids: list[int] = []
        log_probs: list[float] = []
        finish = None
        has_log_probs = request_id in self._with_log_probs
        while handle.can_read():
            for output in handle.read().values():
                token_ids.extend(output.generated_ids)
                if has_log_probs:
                    log_probs.extend(output.generated_log_probs)
                if output.finish_reason != self._library.unfinished:
                    finish = self._library.finish_reasons[output.finish_reason]
        if token_ids or finish is not None:
            return TokenChunk(
                request_id=request_id,
                token_ids=tuple(token_ids),
                finish_reason=finish,
                log_probs=tuple(map(TokenLogProbs, log_probs)),
            )
        if handle.get_status() == self._library.ignored:
            return TokenChunk(
                request_id=request_id,
                finish_reason=FinishReason.ERROR,
                message="the engine ran out of KV cache for this request",
            )
        return None

    def _warm_up(self, manifest: EngineManifest) -> None:
        """Run one request of a full step, which repacks the weights; no user should wait for it."""
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


def _failed(request_id: str, message: str) -> TokenChunk:
    return TokenChunk(request_id, finish_reason=FinishReason.ERROR, message=message)


def _plan_capacity(
    manifest: EngineManifest, options: EngineOptions, speculation: Speculation
) -> Capacity:
    """Blocks for full batches, or as many as memory allows; a draft has as many.

    Raises EngineError when not even one sequence of the longest length would fit.
    """
    limits = manifest.limits
    kv_bytes_per_token = manifest.kv_bytes_per_token + speculation.draft_kv_bytes_per_token
    block_bytes = kv_bytes_per_token * TOKENS_PER_BLOCK
    budget = options.kv_cache_bytes
    if budget is None:
        share = options.kv_cache_fraction or FREE_MEMORY_SHARE
        budget = int(read_machine().available_memory_bytes * share)
    per_sequence, full = manifest.count_cache_blocks(TOKENS_PER_BLOCK, speculation.num_guesses)
    num_blocks = min(full, budget // block_bytes)
    if num_blocks < per_sequence:
        raise EngineError(
            f"the KV cache of one sequence of {limits.max_seq_len:,} tokens needs "
            f"{per_sequence * block_bytes / 2**20:,.0f} MiB; {budget / 2**20:,.0f} MiB are given",
            hint="free memory, raise the KV cache's size, or serve with a lower --max-seq-len",
        )
    logger.info(
        "KV cache: %d tokens in %.0f MiB, %.1f sequences of the longest length (%d tokens)",
        num_blocks * TOKENS_PER_BLOCK,
        num_blocks * block_bytes / 2**20,
        num_blocks / per_sequence,
        limits.max_seq_len,
    )
    return Capacity(
        limits.max_batch_size,
        num_blocks,
        TOKENS_PER_BLOCK,
        guesses_per_sequence=speculation.num_guesses,
    )
