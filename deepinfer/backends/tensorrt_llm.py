"""TensorRT-LLM's in-flight batching executor on NVIDIA GPUs, behind the protocol of `base.py`.

The library schedules, batches, pages its KV cache and samples, in threads and processes of its own;
a step here takes over what it has generated since the last one.

This is checked against the recorded interface of release 1.2.1; it has yet to run on a card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepinfer.backends.base import BackendFault, ReportPhase
from deepinfer.backends.tensorrt_errors import explain_load_error, last_line
from deepinfer.backends.tensorrt_fit import check_fit
from deepinfer.backends.tensorrt_reader import StreamReader
from deepinfer.backends.tensorrt_settings import (
    BuiltEngine,
    adapter_arguments,
    gathers_logits,
    grammar_arguments,
    load_arguments,
    make_stream,
    measured_capacity,
    plan_capacity,
    read_built_engine,
    sampling_arguments,
)
from deepinfer.backends.tensorrt_stream import TokenStream
from deepinfer.device import read_gpus
from deepinfer.engine import Capacity, EngineOptions
from deepinfer.errors import BackendError, InvalidValue, UnsupportedParameter
from deepinfer.generation import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.trtllm_release import USE_CONTAINER, installed_version

STEP_WAIT_S = 0.002  # how long a step waits for tokens before the host looks at its messages again
CANCEL_WAIT_S = 1.0  # for the library to end an aborted sequence; it takes an iteration
WARM_UP_TOKENS = 32


@dataclass
class TensorRtLlmBackend:
    capacity: Capacity
    manifest: EngineManifest
    built: BuiltEngine
    _llm: Any
    _library: Library
    _reader: StreamReader
    _num_used_blocks: int = 0

    @classmethod
    def load(
        cls, engine: EngineFolder, options: EngineOptions, report: ReportPhase
    ) -> TensorRtLlmBackend:
        report("checking the GPU", 2)
        check_fit(engine, read_gpus(), installed_version)
        report("importing TensorRT-LLM", 5)
        library = Library.load()
        report("loading the engine", 15)
        manifest = engine.manifest
        built = read_built_engine(engine)
        planned = plan_capacity(manifest, options)
        try:
            llm = library.LLM(**load_arguments(library, engine, built, options, planned))
        except Exception as error:
            raise explain_load_error(error, manifest) from error
        reader = StreamReader(library.RequestError)
        backend = cls(planned, manifest, built, llm, library, reader)
        report("warming up", 80)
        backend._warm_up()
        return backend

    @property
    def num_used_blocks(self) -> int:
        if self._reader.num_streams == 0:
            return 0
        self._read_stats()
        return self._num_used_blocks

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
        stream = make_stream(request, self.manifest)
        params = self._sampling_params(stream)
        adapter = adapter_arguments(self._library, request.adapter)

        def start() -> Any:
            # The library decides here, by the thread's event loop, how its output can be read.
            return self._llm.generate_async(
                list(request.prompt_token_ids), sampling_params=params, streaming=True, **adapter
            )

        self._reader.start(stream, start)

    def cancel(self, request_id: str) -> None:
        self._reader.abort(request_id)

    def step(self) -> list[TokenChunk]:
        self._reader.wait_for_aborted(CANCEL_WAIT_S)
        return self._reader.take(STEP_WAIT_S)

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

    def _read_stats(self) -> None:
        """Take over what the executor counted in the iterations since the last look."""
        for stats in self._llm.get_stats(timeout=0):
            self._num_used_blocks = int(stats["kvCacheStats"]["usedNumBlocks"])

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
        stats = self._llm.get_stats(timeout=0)
        if stats:
            self.capacity = measured_capacity(self.manifest, self.built, self.capacity, stats[-1])


@dataclass(frozen=True)
class Library:
    """The classes of TensorRT-LLM that serving uses."""

    LLM: Any
    CapacitySchedulerPolicy: Any
    ContextChunkingPolicy: Any
    DynamicBatchConfig: Any
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
            from tensorrt_llm.executor.utils import RequestError
            from tensorrt_llm.lora_helper import LoraConfig
        except Exception as error:  # a missing driver fails an import in many ways
            raise BackendError(
                f"TensorRT-LLM cannot be imported: {last_line(error)}", hint=USE_CONTAINER
            ) from error
        return cls(
            LLM=LLM,
            CapacitySchedulerPolicy=llmapi.CapacitySchedulerPolicy,
            ContextChunkingPolicy=llmapi.ContextChunkingPolicy,
            DynamicBatchConfig=llmapi.DynamicBatchConfig,
            GuidedDecodingParams=llmapi.GuidedDecodingParams,
            KvCacheConfig=llmapi.KvCacheConfig,
            LoraConfig=LoraConfig,
            LoRARequest=llmapi.LoRARequest,
            RequestError=RequestError,
            SamplingParams=llmapi.SamplingParams,
            SchedulerConfig=llmapi.SchedulerConfig,
        )
