"""TensorRT-LLM's in-flight batching executor on NVIDIA GPUs, behind the protocol of `base.py`.

The library schedules, batches, pages its KV cache and samples, in threads and processes of its own;
a step here takes over what it has generated since the last one.

This is checked against the recorded interface of release 1.2.1; it has yet to run on a card.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepinfer.backends.base import BackendFault, ReportPhase
from deepinfer.backends.tensorrt_errors import describe, explain_load_error
from deepinfer.backends.tensorrt_fit import check_fit
from deepinfer.backends.tensorrt_reader import StreamReader, refused_chunk
from deepinfer.backends.tensorrt_settings import (
    BuiltEngine,
    adapter_arguments,
    find_grammar_fault,
    gathers_logits,
    grammar_arguments,
    load_arguments,
    make_stream,
    measured_capacity,
    plan_capacity,
    process_environment,
    read_built_engine,
    sampling_arguments,
    write_plain_tokenizer,
)
from deepinfer.backends.tensorrt_stream import TokenStream
from deepinfer.device import read_gpus
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import (
    BackendError,
    EngineError,
    InternalError,
    InvalidValue,
    UnsupportedParameter,
)
from deepinfer.generation import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.trtllm_release import USE_CONTAINER, installed_version

logger = logging.getLogger(__name__)

STEP_WAIT_S = 0.002  # how long a step waits for tokens before the host looks at its messages again
CANCEL_WAIT_S = 1.0  # for the library to end an aborted sequence; it takes an iteration
STATS_TIMEOUT_S = 0.5  # for the library to wait for what it counted while it warmed up
STATS_DEADLINE_S = 5.0  # for its answer, which comes from another process
WARM_UP_TOKENS = 32


@dataclass
class TensorRtLlmBackend:
    capacity: Capacity
    manifest: EngineManifest
    built: BuiltEngine
    _llm: Any
    _library: Library
    _reader: StreamReader
    _refused: list[TokenChunk] = field(default_factory=list)  # before the library was asked

    @classmethod
    def load(
        cls, engine: EngineFolder, options: EngineOptions, report: ReportPhase
    ) -> TensorRtLlmBackend:
        report("checking the GPU", 2)
        check_fit(engine, read_gpus(), installed_version)
        manifest = engine.manifest
        built = read_built_engine(engine)
        planned = plan_capacity(manifest, options)
        report("importing TensorRT-LLM", 5)
        os.environ.update(process_environment(manifest))
        library = Library.load()
        report("loading the engine", 15)
        with tempfile.TemporaryDirectory(prefix="deepinfer-tokenizer-") as name:
            write_plain_tokenizer(engine, Path(name))
            arguments = load_arguments(library, engine, built, options, planned, Path(name))
            try:
                llm = library.LLM(**arguments)
            except Exception as error:
                raise explain_load_error(error, manifest) from error
        reader = StreamReader(
            library.RequestError, library.CppExecutorError, lambda: find_executor_fault(llm)
        )
        backend = cls(planned, manifest, built, llm, library, reader)
        report("warming up", 80)
        backend._warm_up()
        backend._measure_capacity()
        return backend

    @property
    def gate(self) -> None:
        return None  # the library compiles grammars in processes of its own

    @property
    def num_used_blocks(self) -> int:
        # Counted here: the library's own count is a call to another process, or comes to nothing.
        return sum(map(self.capacity.blocks_for, self._reader.sequence_lens))

    def check(self, request: GenerationRequest) -> None:
        if request.adapter is not None and self.manifest.lora is None:
            # The library would answer without the adapter, and say nothing.
            raise UnsupportedParameter(
                "This engine takes no adapters; one built with `--max-lora-rank` does",
                param="model",
            )
        if request.sampling.num_log_probs and not gathers_logits(self.manifest):
            raise UnsupportedParameter(
                "This engine gives the log probabilities of the chosen tokens only; one built with "
                "`--gather-logits` gives those of alternatives too",
                param="logprobs",
            )
        if request.sampling.with_prompt_log_probs:
            # The library lists the likeliest tokens of a prompt, and not the prompt's own.
            raise UnsupportedParameter(
                "Engines of TensorRT-LLM give no log probabilities of a prompt", param="echo"
            )

    def add(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        if sampling.min_tokens > sampling.max_tokens:
            raise InvalidValue(
                f"min_tokens {sampling.min_tokens} is more than max_tokens {sampling.max_tokens}",
                param="min_tokens",
            )
        grammar, parser = sampling.grammar, self._library.GrammarParser
        if grammar is not None and parser is not None:
            fault = find_grammar_fault(parser, grammar)
            if fault is not None:
                self._refused.append(refused_chunk(request.request_id, grammar, fault))
                return
        stream = make_stream(request, self.manifest)
        try:
            params = self._sampling_params(stream)
            adapter = adapter_arguments(self._library, request.adapter)
        except Exception as error:  # the library checks values when its classes are made
            raise InternalError(
                f"the engine could not take the request: {describe(error)}"
            ) from error

        def start() -> Any:
            # The library decides here, by the thread's event loop, how its output can be read.
            output = self._llm.generate_async(
                list(request.prompt_token_ids), sampling_params=params, streaming=True, **adapter
            )
            if hasattr(output, "use_trtllm_sampler"):
                # The executor sends all log probabilities so far with each token, and from 1.2 on
                # the library adds each list to the last one unless it is told so.
                output.use_trtllm_sampler = True
            return output

        self._reader.start(stream, start)

    def cancel(self, request_id: str) -> None:
        self._refused = [chunk for chunk in self._refused if chunk.request_id != request_id]
        self._reader.abort(request_id)

    def step(self) -> list[TokenChunk]:
        refused, self._refused = self._refused, []
        self._reader.wait_for_aborted(CANCEL_WAIT_S)
        return refused + self._reader.take(0 if refused else STEP_WAIT_S)

    def close(self) -> None:
        self._reader.close()
        self._llm.shutdown()

    def _sampling_params(self, stream: TokenStream) -> Any:
        arguments = sampling_arguments(stream, self.manifest, self.built.padded_vocab_size)
        if (grammar := stream.request.sampling.grammar) is not None:
            arguments["guided_decoding"] = self._library.GuidedDecodingParams(
                **grammar_arguments(grammar)
            )
        return self._library.SamplingParams(**arguments)

    def _warm_up(self) -> None:
        """Run one short request, so that no user waits for the first kernels to load."""
        prompt_len = max(1, min(WARM_UP_TOKENS, self.manifest.limits.max_seq_len - 2))
        self.add(
            GenerationRequest(
                request_id="warm-up",
                prompt_token_ids=(0,) * prompt_len,
                sampling=SamplingParams(max_tokens=2, temperature=0, ignore_eos=True),
            )
        )
        while self._reader.num_streams:
            for chunk in self.step():
                if chunk.finish_reason is FinishReason.ERROR:
                    raise BackendFault(f"the first request failed: {chunk.message}")

    def _measure_capacity(self) -> None:
        """Take over how much KV cache there is. Raises EngineError when it is too little.

        Nothing else depends on the library's statistics, which some of its executors have none of:
        then what was planned stays.
        """
        try:
            stats = _ask(lambda: self._llm.get_stats(timeout=STATS_TIMEOUT_S), STATS_DEADLINE_S)
            self.capacity = measured_capacity(self.manifest, self.built, self.capacity, stats[-1])
        except EngineError:
            raise
        except Exception as error:  # each kind of executor fails in its own way
            logger.info(
                "the executor does not say how large its KV cache is (%s: %s); counting on the "
                "%d blocks that were planned",
                type(error).__name__,
                describe(error),
                self.capacity.num_blocks,
            )


def _ask(question: Callable[[], Any], timeout_s: float) -> Any:
    """What `question` returns, or raises. Raises TimeoutError when it is still at it by then."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    # A daemon, so that the process can end while it waits for a process that is gone.
    threading.Thread(target=run, name="tensorrt-llm-question", daemon=True).start()
    return answer.result(timeout_s)


@dataclass(frozen=True)
class Library:
    """The classes of TensorRT-LLM that serving uses."""

    LLM: Any
    CapacitySchedulerPolicy: Any
    ContextChunkingPolicy: Any
    CppExecutorError: Any
    DynamicBatchConfig: Any
    GrammarParser: Any  # xgrammar's class; None where it comes without its Python package
    GuidedDecodingParams: Any
    KvCacheConfig: Any
    LoraConfig: Any
    LoRARequest: Any
    RequestError: Any
    SamplingParams: Any
    SchedulerConfig: Any

    @classmethod
    def load(cls) -> Library:
        """Import the library, which takes half a minute and a GPU. Raises BackendError."""
        try:
            from tensorrt_llm import llmapi
            from tensorrt_llm._tensorrt_engine import LLM
            from tensorrt_llm.executor import CppExecutorError
            from tensorrt_llm.executor.utils import RequestError
            from tensorrt_llm.lora_helper import LoraConfig
        except Exception as error:  # a missing driver fails an import in many ways
            raise BackendError(
                f"TensorRT-LLM cannot be imported: {describe(error)}", hint=USE_CONTAINER
            ) from error
        return cls(
            LLM=LLM,
            CapacitySchedulerPolicy=llmapi.CapacitySchedulerPolicy,
            ContextChunkingPolicy=llmapi.ContextChunkingPolicy,
            CppExecutorError=CppExecutorError,
            DynamicBatchConfig=llmapi.DynamicBatchConfig,
            GrammarParser=_import_grammar_parser(),
            GuidedDecodingParams=llmapi.GuidedDecodingParams,
            KvCacheConfig=llmapi.KvCacheConfig,
            LoraConfig=LoraConfig,
            LoRARequest=llmapi.LoRARequest,
            RequestError=RequestError,
            SamplingParams=llmapi.SamplingParams,
            SchedulerConfig=llmapi.SchedulerConfig,
        )


def _import_grammar_parser() -> Any:
    try:
        return importlib.import_module("xgrammar").Grammar
    except Exception as error:  # whatever an import of native code may raise
        logger.info("grammars are compiled untried: xgrammar cannot be imported: %s", error)
        return None


def find_executor_fault(llm: Any) -> str | None:
    """Why an LLM's executor answers no more, as far as the library knows; None while it does.

    Costs next to nothing. What is not a part of the release that is installed is not looked at.
    """
    check_health = getattr(llm, "_check_health", None)
    if check_health is not None and not check_health():
        return "its executor has shut down"
    executor = getattr(llm, "_executor", None)
    # Exceptions of its threads and processes, which it raises when the next output is read.
    errors = getattr(executor, "_error_queue", None)
    if errors is not None and not errors.empty():
        return f"its executor has failed: {describe(errors.queue[0])}"
    if any(future.done() for future in getattr(executor, "mpi_futures", ())):
        return "a process of its executor has ended"
    return None
