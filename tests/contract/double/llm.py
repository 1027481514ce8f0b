"""LLM: a checkpoint or an engine folder in, an executor behind it, requests through it."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.contract.double import guided
from tests.contract.double.arguments import TrtLlmArgs, _ModelFormatKind
from tests.contract.double.building import build_engine, load_tokenizer, version_of
from tests.contract.double.configs import RequestError
from tests.contract.double.environment import worker_environment
from tests.contract.double.executor import STATISTICS_FAULT_VARIABLE
from tests.contract.double.loading import executor_config, load_engine
from tests.contract.double.log import logger
from tests.contract.double.machine import device_count
from tests.contract.double.plan import read_config
from tests.contract.double.record import assumed, entry, message
from tests.contract.double.requests import Request
from tests.contract.double.results import RequestOutput
from tests.contract.double.sampling import SamplingParams
from tests.contract.double.shapes import recorded_method
from tests.contract.double.tokenizer import run_named_code

MAX_SEED = 2**64 - 1  # an unsigned number of 64 bits in the native code


@dataclass
class LlmBuildStats:
    build_steps_info: list[tuple[str, float]] = field(default_factory=list)
    cache_hitted: bool = False


class LLM:
    """`tensorrt_llm._tensorrt_engine.LLM`, with the recorded signatures."""

    _executor: Any = None
    mpi_session = None
    _statistics_in_loop: bool | None = None  # whether the first request was made in an event loop
    num_stats_calls = 0  # for a test to look at

    @recorded_method("LLM")
    def __init__(self, kwargs: dict[str, Any] | None = None, **named: Any) -> None:
        keywords = dict(kwargs or {})
        for name in entry("surfaces", "LLM")["popped"]:
            keywords.pop(name, None)
        self.received_keywords = dict(keywords)  # what was said, for a test to look at
        os.environ.update(keywords.get("env_overrides") or {})
        logger.info(message("using_backend"))
        try:
            self.args = _parse_arguments({**named, **keywords})
        except Exception as error:
            logger.error(message("arguments_not_parsed", error=error))
            raise
        self._check_devices()
        self.worker_environment = worker_environment()  # for a test to look at
        self.llm_build_stats = LlmBuildStats()
        self._request_ids = count(1)
        self._llm_id = f"double-{os.getpid()}-{time.time_ns() // 1_000_000}"
        self._tokenizer: Any = None
        self._workspace = tempfile.mkdtemp(suffix="-llm-workspace", dir=self.args.workspace)
        weakref.finalize(self, shutil.rmtree, self._workspace, ignore_errors=True)
        self._build_model()
        atexit.register(_shutdown_later(weakref.ref(self)))

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def workspace(self) -> Path:
        return Path(self._workspace)

    @property
    def llm_id(self) -> str:
        return self._llm_id

    # Requests

    @recorded_method("LLM")
    def generate(
        self, inputs: Any, sampling_params: Any, lora_request: Any, **others: Any
    ) -> RequestOutput | list[RequestOutput]:
        is_one = isinstance(inputs, str | dict) or isinstance(inputs[0], int)
        batch = [inputs] if is_one else list(inputs)
        params = sampling_params if isinstance(sampling_params, list) else None
        futures = [
            self.generate_async(item, params[i] if params else sampling_params, streaming=False)
            for i, item in enumerate(batch)
        ]
        results = [future.result() for future in futures]
        return results[0] if is_one else results

    @recorded_method("LLM")
    def generate_async(
        self, inputs: Any, sampling_params: Any, lora_request: Any, streaming: bool, **others: Any
    ) -> RequestOutput:
        executor = self._executor
        if executor is None or executor.is_shutdown():
            raise RuntimeError(message("shutting_down"))
        prompt, token_ids = self._tokenize(inputs)
        sampling = self._prepare_sampling_params(sampling_params)
        if sampling.seed is not None and not 0 <= sampling.seed <= MAX_SEED:
            raise TypeError(message("seed_type", value=sampling.seed))
        self._check_arguments(len(token_ids), sampling)
        if self._statistics_in_loop is None:
            self._statistics_in_loop = _has_event_loop()
        result = RequestOutput._make(
            next(self._request_ids),
            prompt,
            token_ids,
            sampling,
            self._tokenizer,
            executor.abort,
            executor.handle_error,
        )
        executor.submit(
            Request(
                prompt=list(token_ids),
                sampling=sampling,
                result=result,
                is_streaming=streaming,
                vocab_size=executor.engine.vocab_size,
                max_tokens=self._room_for(len(token_ids), sampling.max_tokens),
                adapter=self._heeded(lora_request),
                **self._guidance(sampling),
            )
        )
        return result

    @recorded_method("LLM")
    def get_stats(self, timeout: float | None) -> list[dict[str, Any]]:
        """A call to the executor's process, or a look into a queue that nobody fills."""
        self.num_stats_calls += 1
        fault = os.environ.get(STATISTICS_FAULT_VARIABLE)
        if fault == "hang":
            threading.Event().wait()
        if fault == "raise":
            raise TimeoutError(message("statistics_timeout"))
        executor = self._running_executor()
        if not executor.is_in_process:
            return executor.take_stats(timeout)  # type: ignore[no-any-return]
        # The queue of an event loop gives None where that of a thread says that it is empty.
        return [json.loads(None)] if self._statistics_in_loop else []  # type: ignore[arg-type]

    @recorded_method("LLM")
    def get_stats_async(self, timeout: float | None) -> Any:
        return _each(lambda: self._running_executor().take_stats(timeout))

    @recorded_method("LLM")
    def get_kv_cache_events(self, timeout: float | None) -> list[dict[str, Any]]:
        return []  # the double reuses no blocks, so none is stored or removed

    @recorded_method("LLM")
    def get_kv_cache_events_async(self, timeout: float | None) -> Any:
        return _each(list)

    @recorded_method("LLM")
    def save(self, engine_dir: str) -> None:
        if self._engine_dir is None:
            raise RuntimeError(message("not_built"))
        if Path(engine_dir).absolute() == self._engine_dir.absolute():
            return
        shutil.copytree(self._engine_dir, engine_dir, dirs_exist_ok=True)

    @recorded_method("LLM")
    def shutdown(self) -> None:
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def _check_health(self) -> bool:
        return self._executor is not None and not self._executor.is_shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def __del__(self) -> None:
        self.shutdown()

    def __getstate__(self) -> None:
        raise RuntimeError(message("not_picklable"))

    # Building and loading

    _engine_dir: Path | None = None
    _hf_model_dir: Path | None = None

    def _check_devices(self) -> None:
        required, available = self.args.parallel.world_size, device_count()
        if required > 1 and available < required:
            raise RuntimeError(message("too_few_gpus", available=available, required=required))

    def _build_model(self) -> None:
        if self.args.model_format is _ModelFormatKind.TLLM_ENGINE:
            self._engine_dir = Path(self.args.model)
        else:
            self._build_engine()
        self.args.model = self._engine_dir
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.args, self._engine_dir)
        run_named_code(Path(self.args.model), "AutoConfig")  # of any folder, trusted or not
        self._executor_config = executor_config(self.args, self._tokenizer)
        gathers = self.args.gather_generation_logits or self.args.build_config.gather_context_logits
        self._executor = load_engine(
            Path(self.args.model),
            self._executor_config,
            version_of("tensorrt"),
            is_in_process=gathers and self.args.parallel.world_size == 1,
        )

    def _build_engine(self) -> None:
        if self.args.backend is not None:
            raise ValueError(message("backend_not_supported", backend=self.args.backend))
        source = Path(self.args.model)
        if not source.is_dir():
            raise OSError(message("hub_unreachable", name=self.args.model))
        self._hf_model_dir = source
        self._tokenizer = load_tokenizer(self.args, source)
        self._engine_dir = self.workspace / "tmp.engine"
        self.llm_build_stats.build_steps_info += build_engine(
            self.args, source, self._tokenizer, self._engine_dir
        )

    # Checking requests

    def _running_executor(self) -> Any:
        if self._executor is None:
            raise RuntimeError(message("shutting_down"))
        return self._executor

    def _tokenize(self, inputs: Any) -> tuple[str | None, list[int]]:
        if isinstance(inputs, dict):
            inputs = inputs["prompt"] if "prompt" in inputs else inputs["prompt_token_ids"]
        if isinstance(inputs, str):
            if self._tokenizer is None:
                raise ValueError(message("text_without_tokenizer"))
            return inputs, self._tokenizer.encode(inputs)
        if not isinstance(inputs, list) or not all(type(item) is int for item in inputs):
            raise TypeError(message("inputs_type", kind=type(inputs)))
        return None, inputs

    def _prepare_sampling_params(self, given: Any) -> Any:
        if given is None:
            if self._tokenizer is None:
                raise ValueError(message("default_without_tokenizer"))
            given = SamplingParams()
        if not isinstance(given, SamplingParams):
            raise TypeError(message("sampling_params_type", kind=type(given)))
        if given.end_id is None:
            if self._tokenizer is None:
                raise ValueError(message("end_id_without_tokenizer"))
            given._setup(self._tokenizer, None, None)
        return given

    def _check_arguments(self, prompt_len: int, sampling: Any) -> None:
        built = read_config(Path(self.args.model))["build_config"]
        num_tokens = sampling.max_tokens or 0
        prompt = prompt_len / self.args.parallel.cp_size
        if not self.args.enable_chunked_prefill and prompt + num_tokens > built["max_seq_len"]:
            raise ValueError(
                message(
                    "prompt_too_long",
                    prompt=prompt,
                    query=0,
                    tokens=sampling.max_tokens,
                    limit=built["max_seq_len"],
                )
            )
        self._check_width(sampling, built)
        if sampling.prompt_logprobs and not built["gather_context_logits"]:
            raise ValueError(
                message("prompt_logprobs_need_context_logits", value=sampling.prompt_logprobs)
            )
        if sampling.logprobs and not self.args.gather_generation_logits:
            raise ValueError(message("logprobs_need_generation_logits", value=sampling.logprobs))

    def _check_width(self, sampling: Any, built: dict[str, Any]) -> None:
        limit_name = "max_beam_width" if sampling.use_beam_search else "max_batch_size"
        text = "n_above_beam_width" if sampling.use_beam_search else "n_above_batch_size"
        for name in ("n", "best_of"):
            value = getattr(sampling, name)
            if value > built[limit_name]:
                raise ValueError(message(text, name=name, value=value, limit=built[limit_name]))

    def _room_for(self, prompt_len: int, max_tokens: int | None) -> int:
        """The native code cuts what would outgrow the sequence, and fills it when not limited."""
        room = int(self._executor_config.max_seq_len) - prompt_len
        return room if max_tokens is None else min(max_tokens, room)

    def _heeded(self, adapter: Any) -> Any:
        is_passed_over = not self._executor.engine.takes_adapters
        return None if is_passed_over and assumed("adapters_need_the_plugin") else adapter

    def _guidance(self, sampling: Any) -> dict[str, Any]:
        """The answer that a constraint leads to, or why the native code refuses it."""
        if sampling.guided_decoding is None:
            return {}
        if self._executor_config.guided_decoding_config is None:
            return {"refusal": RequestError(message("guided_without_backend"))}
        try:
            return {"script": guided.script(sampling.guided_decoding, self._tokenizer)}
        except RequestError as error:
            return {"refusal": error}


def _parse_arguments(keywords: dict[str, Any]) -> Any:
    known = {*TrtLlmArgs.model_fields, *entry("surfaces", "LLM")["besides_fields_of_args"]}
    for name in keywords:
        if name not in known:
            raise ValueError(message("invalid_argument", name=name))
    return TrtLlmArgs(**keywords)


def _has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _shutdown_later(llm: weakref.ref[LLM]) -> Callable[[], None]:
    def shutdown() -> None:
        alive = llm()
        if alive is not None:
            alive.shutdown()

    return shutdown


async def _each(read: Callable[[], list[dict[str, Any]]]) -> Any:
    for item in read():
        yield item
