"""What the adapter must get out of the library: build, load and generate on the double, and look.

`check_contract` runs the compiler and the backend that it is given and fails when anything that
they should have said did not arrive; `check_faults` lets things fail, and fails when more ends than
should. The mutation check runs them on damaged copies of the adapter.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deepinfer.backends.base import BackendFault
from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.progress import Progress
from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineError
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    Grammar,
    LoraAdapter,
    SamplingParams,
    TokenChunk,
)
from deepinfer.manifest import PAYLOAD_DIR, EngineFolder, LoraLimits, record_files
from tests.contract.double.executor import (
    BAD_OUTPUT_VARIABLE,
    ITERATION_VARIABLE,
    STICKY_FAULT_VARIABLE,
    WORKER_DEATH_VARIABLE,
)
from tests.contract.double.guided import REFUSED_MARK
from tests.contract.installing import take_modules
from tests.contract.loading import write_code

KV_CACHE_FRACTION = 0.5
DEADLINE_S = 5.0  # for a request of some milliseconds
NCCL = {"NCCL_P2P_DISABLE": "1"}
FAULT_TOKEN = "99"
GREEDY = SamplingParams(max_tokens=6, temperature=0)
SAMPLED = SamplingParams(
    max_tokens=6,
    temperature=0.5,
    top_p=0.75,
    top_k=None,
    min_p=0.25,
    frequency_penalty=0.5,
    presence_penalty=0.25,
    repetition_penalty=1.5,
    seed=-3,
    stop_token_ids=(9,),
    logit_bias={11: 2.0},
    num_log_probs=0,
)


@dataclass(frozen=True)
class Build:
    """What a build starts from, and a finished engine of the same plan to load."""

    plan: BuildPlan
    checkpoint: Checkpoint
    engine: EngineFolder


def check_contract(compiler: ModuleType, backend: ModuleType, build: Build) -> None:
    """Raise AssertionError, or whatever the double raises, for an adapter that says it wrong."""
    check_build(compiler, build)
    check_serving(backend, build)


def check_build(compiler: ModuleType, build: Build) -> None:
    versions = compiler.read_versions(build.plan)
    assert {"tensorrt-llm", "tensorrt", "cuda", "driver"} <= versions.keys()
    with tempfile.TemporaryDirectory() as name, _not_imported_yet(), _seen_models() as seen:
        folder = Path(name)
        compiler.compile_checkpoint(build.plan, build.checkpoint, folder, Progress(_Null()))
        payload = sorted(path.name for path in (folder / PAYLOAD_DIR).iterdir())
        assert "rank0.engine" in payload and "config.json" in payload
        assert not (folder / ".work").exists()
        assert Path(seen[0][0].args.workspace) == folder / ".work"
    ((llm, received),) = seen
    _check_worker_environment(llm)
    assert build.plan.limits.model_dump().keys() <= llm.received_keywords.keys()
    _check_build_arguments(llm.args, build.plan)
    _check_smoke_request(received, build)


def _check_build_arguments(args: Any, plan: BuildPlan) -> None:
    settings = plan.tensorrt_llm
    assert settings is not None
    limits = plan.limits.model_dump()
    assert {name: getattr(args, name) for name in limits} == limits
    assert {name: getattr(args.build_config, name) for name in limits} == limits
    assert limits.keys() <= args.build_config.model_fields_set
    assert args.build_config.output_timing_cache.endswith("tensorrt.timing.cache")
    assert args.build_config.opt_batch_size == 8
    assert args.build_config.gather_generation_logits is True
    plugins = args.build_config.plugin_config.model_dump()
    assert {name: plugins[name] for name in settings.plugins} == settings.plugins
    assert plugins["lora_plugin"] is not None
    assert args.enable_lora is True
    for config in (args.lora_config, args.build_config.lora_config):
        _check_lora_config(config, plan.lora)
    assert args.dtype == settings.dtype
    assert args.tensor_parallel_size == plan.parallelism.tensor_parallel_size
    assert args.pipeline_parallel_size == plan.parallelism.pipeline_parallel_size
    assert args.enable_chunked_prefill is True
    assert args.env_overrides is None  # too late for the workers
    assert args.trust_remote_code is False
    assert (args.quant_config.quant_algo, args.quant_config.kv_cache_quant_algo) == ("FP8", "FP8")
    calibration = args.calib_config
    assert calibration.device == settings.calib_device
    assert Path(calibration.calib_dataset).name == "calibration"
    assert 1 <= calibration.calib_batches <= settings.calib_batches
    assert calibration.calib_batches != 512, "the library's own default"
    assert calibration.calib_max_seq_length == settings.calib_max_seq_length
    assert calibration.tokenizer_max_seq_length == settings.calib_max_seq_length
    cache = args.kv_cache_config
    assert cache.max_tokens >= plan.limits.max_seq_len
    assert cache.enable_block_reuse is False


def _check_lora_config(config: Any, limits: LoraLimits | None) -> None:
    assert limits is not None
    assert config.max_lora_rank == limits.max_rank
    assert config.max_loras == config.max_cpu_loras == limits.max_loras
    assert config.lora_target_modules == [
        *("attn_q", "attn_k", "attn_v", "attn_dense"),
        *("mlp_h_to_4h", "mlp_gate", "mlp_4h_to_h"),
    ]


def _check_smoke_request(received: list[Any], build: Build) -> None:
    (request,) = received
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.ignore_eos, sampling.detokenize) == (8, True, False)
    assert sampling.end_id == sampling.pad_id == build.checkpoint.eos_token_ids[0]
    assert sampling._return_log_probs is True
    assert sampling._greedy_decoding


def check_serving(backend: ModuleType, build: Build) -> None:
    with _loaded(backend, build.engine) as loaded:
        _check_load_arguments(loaded._llm, loaded, build.engine)
        _check_requests(loaded, build.engine)
        assert loaded._llm.num_stats_calls == 1


def check_faults(backend: ModuleType, build: Build) -> None:
    """What fails one request, and what fails the engine."""
    _check_bad_output(backend, build)
    _check_wrong_grammar(backend, build)
    for variable in (STICKY_FAULT_VARIABLE, WORKER_DEATH_VARIABLE):
        with _loaded(backend, build.engine, **{variable: FAULT_TOKEN}) as loaded:
            loaded.add(_request("deadly", GREEDY, FAULT_TOKEN))
            try:
                _finish(loaded, "deadly")
            except BackendFault as fault:
                assert "0x" not in fault.message, "the last line of a trace"
                continue
            raise AssertionError("a dead engine goes on")
    _check_code_in_payload(backend, build)


def _check_bad_output(backend: ModuleType, build: Build) -> None:
    variables = {BAD_OUTPUT_VARIABLE: FAULT_TOKEN, ITERATION_VARIABLE: "10"}
    with _loaded(backend, build.engine, **variables) as loaded:
        lasting = {"temperature": 0, "ignore_eos": True}
        loaded.add(_request("neighbour", SamplingParams(max_tokens=60, **lasting)))
        loaded.add(_request("bad", SamplingParams(max_tokens=50, **lasting), FAULT_TOKEN))
        ended = _finish(loaded, "neighbour", "bad")
        assert ended["neighbour"].finish_reason is FinishReason.LENGTH
        assert ended["bad"].finish_reason is FinishReason.ERROR
        bad = loaded._llm._executor.received[-1]
        assert len(bad.sequences[0].token_ids) < 50, "the library was not told to end it"


def _check_wrong_grammar(backend: ModuleType, build: Build) -> None:
    with _loaded(backend, build.engine, **{ITERATION_VARIABLE: "5"}) as loaded:
        loaded.add(_request("neighbour", SamplingParams(max_tokens=200, temperature=0)))
        while not loaded.step():
            pass
        wrong = Grammar("ebnf", f'root ::= "CUDA error" b  {REFUSED_MARK}', param="grammar")
        loaded.add(_request("wrong", SamplingParams(max_tokens=4, grammar=wrong)))
        ended = _finish(loaded, "neighbour", "wrong")
        assert ended["neighbour"].finish_reason is FinishReason.INTERRUPTED
        assert ended["wrong"].refused_param == "grammar"


def _check_code_in_payload(backend: ModuleType, build: Build) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(shutil.copytree(build.engine.path, Path(name) / "engine"))
        write_code(path / PAYLOAD_DIR, "AutoConfig", Path(name) / "marks")
        manifest = build.engine.manifest.model_copy(update={"files": record_files(path)})
        engine = EngineFolder(path=path, manifest=manifest)
        try:
            with _loaded(backend, engine):
                pass
        except EngineError:
            assert not (Path(name) / "marks").exists()
            return
        raise AssertionError("an engine that names code is loaded")


def _check_worker_environment(llm: Any) -> None:
    assert NCCL.items() <= llm.worker_environment.items(), "set before the import"
    assert llm.worker_environment["HF_HUB_OFFLINE"] == "1"


@contextmanager
def _not_imported_yet(**variables: str) -> Iterator[None]:
    """As in a process that has not imported the library; the environment is put back."""
    environment = dict(os.environ)
    take_modules()
    for name in (*NCCL, "HF_HUB_OFFLINE"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def _loaded(backend: ModuleType, engine: EngineFolder, **variables: str) -> Iterator[Any]:
    options = EngineOptions(kv_cache_fraction=KV_CACHE_FRACTION)
    with _not_imported_yet(**variables):
        loaded = backend.TensorRtLlmBackend.load(engine, options, lambda *_: None)
        try:
            yield loaded
        finally:
            loaded.close()


def _check_load_arguments(llm: Any, loaded: Any, engine: EngineFolder) -> None:
    args, limits = llm.args, engine.manifest.limits
    assert limits.model_dump().keys() <= llm.received_keywords.keys()
    assert {name: getattr(args, name) for name in limits.model_dump()} == limits.model_dump()
    executor = llm._executor.config
    for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width"):
        assert getattr(executor, name) == getattr(limits, name), name
    assert args.tensor_parallel_size == args.pipeline_parallel_size == 1
    assert engine.manifest.model.trust_remote_code, "and yet nothing is trusted here"
    assert args.trust_remote_code is False
    tokenizer_dir = Path(str(args.tokenizer))
    assert tokenizer_dir not in engine.tokenizer_dir.parents and not tokenizer_dir.exists()
    cache = args.kv_cache_config
    assert cache.free_gpu_memory_fraction == KV_CACHE_FRACTION
    assert cache.max_tokens == limits.max_batch_size * limits.max_seq_len
    assert cache.enable_block_reuse is False, "as the manifest of this engine says"
    scheduler = args.scheduler_config
    assert scheduler.capacity_scheduler_policy.name == "GUARANTEED_NO_EVICT"
    assert scheduler.context_chunking_policy.name == "FIRST_COME_FIRST_SERVED"
    tuning = scheduler.dynamic_batch_config
    assert tuning.enable_batch_size_tuning is True
    assert tuning.enable_max_num_tokens_tuning is False
    assert tuning.dynamic_batch_moving_average_window == 128
    assert args.enable_chunked_prefill is True
    assert args.guided_decoding_backend == "xgrammar"
    assert args.gather_generation_logits is True
    _check_worker_environment(llm)
    lora = engine.manifest.lora
    assert lora is not None and args.enable_lora is True
    _check_lora_config(args.lora_config, lora)
    held = lora.max_rank * lora.num_layers * len(lora.module_shapes) * lora.max_loras
    assert executor.peft_cache_config.num_device_module_layer == held
    assert executor.peft_cache_config.num_host_module_layer == held


def _check_requests(loaded: Any, engine: EngineFolder) -> None:
    eos = engine.manifest.tokens.eos_token_ids
    sampled = _run(loaded, SAMPLED)
    assert sampled.temperature == 0.5 and sampled.top_p == 0.75 and sampled.min_p == 0.25
    assert sampled.top_k == 0 and sampled.seed == 2**64 - 3
    assert sampled.frequency_penalty == 0.5 and sampled.presence_penalty == 0.25
    assert sampled.repetition_penalty == 1.5
    assert sampled.end_id == eos[0] and sampled.pad_id == engine.manifest.tokens.pad_token_id
    assert sampled.stop_token_ids == sorted({9, *eos[1:]})
    assert sampled.include_stop_str_in_output is True
    assert (sampled.max_tokens, sampled.n) == (6, 1)
    assert (sampled.detokenize, sampled.add_special_tokens) == (False, False)
    assert list(sampled.embedding_bias).index(2.0) == 11
    assert sampled._return_log_probs is True
    ranked = _run(loaded, SamplingParams(max_tokens=4, temperature=0, num_log_probs=3))
    assert (ranked.logprobs, ranked._return_log_probs) == (3, False)
    greedy = _run(loaded, SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
    assert (greedy.top_k, greedy.temperature, greedy.ignore_eos) == (1, None, True)
    assert greedy.end_id == -1 and greedy._greedy_decoding
    held = _run(loaded, SamplingParams(max_tokens=4, temperature=0, min_tokens=2))
    assert held.min_tokens == 2 and held.stop_token_ids is None
    grammars = {
        Grammar("json"): ("json_object", True),
        Grammar("json_schema", '{"type": "integer"}'): ("json", '{"type": "integer"}'),
        Grammar("regex", "[0-9]{2}"): ("regex", "[0-9]{2}"),
        Grammar("ebnf", 'root ::= "a"'): ("grammar", 'root ::= "a"'),
        Grammar("json", ebnf='root ::= "{}"'): ("grammar", 'root ::= "{}"'),
    }
    for grammar, (field, value) in grammars.items():
        guided = _run(loaded, SamplingParams(max_tokens=4, temperature=0, grammar=grammar))
        assert getattr(guided.guided_decoding, field) == value
    _check_adapter(loaded, engine)


def _check_adapter(loaded: Any, engine: EngineFolder) -> None:
    greedy = SamplingParams(max_tokens=4, temperature=0)
    adapter = LoraAdapter(name="story", id=7, path=str(engine.path))  # a folder that exists
    _run(loaded, greedy, adapter)
    seen = loaded._llm._executor.received[-1].adapter
    assert (seen.lora_name, seen.lora_int_id, seen.lora_path) == ("story", 7, adapter.path)
    _run(loaded, greedy)
    assert loaded._llm._executor.received[-1].adapter is None


def _run(loaded: Any, sampling: SamplingParams, adapter: LoraAdapter | None = None) -> Any:
    """Run one request to its end; what the executor was asked for.

    The double knows no regular expressions and refuses them, which is an answer here as well.
    """
    asked = _request("r", sampling, adapter=adapter)
    loaded.check(asked)
    loaded.add(asked)
    chunks = []
    deadline = time.monotonic() + DEADLINE_S
    while not chunks or chunks[-1].finish_reason is None:
        assert time.monotonic() < deadline, "the request does not end"
        chunks += loaded.step()
        assert loaded.num_used_blocks in (0, 1)
    is_refused = chunks[-1].finish_reason is FinishReason.ERROR
    assert not is_refused or sampling.grammar is not None, chunks[-1].message
    if sampling.num_log_probs is not None:
        ended_by_eos = chunks[-1].finish_reason is FinishReason.STOP
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        num_scores = sum(len(chunk.log_probs) for chunk in chunks)
        assert num_scores in (num_tokens, num_tokens - ended_by_eos)
    request = loaded._llm._executor.received[-1]
    assert request.is_streaming
    return request.sampling


def _request(
    name: str, sampling: SamplingParams, *prompt: str, adapter: LoraAdapter | None = None
) -> GenerationRequest:
    prompt_token_ids = tuple(map(int, prompt)) or (20, 21)
    return GenerationRequest(
        request_id=name, prompt_token_ids=prompt_token_ids, sampling=sampling, adapter=adapter
    )


def _finish(loaded: Any, *names: str) -> dict[str, TokenChunk]:
    """The last chunk of each request."""
    ended: dict[str, TokenChunk] = {}
    deadline = time.monotonic() + DEADLINE_S
    while len(ended) < len(names):
        assert time.monotonic() < deadline, "a request does not end"
        ended |= {c.request_id: c for c in loaded.step() if c.finish_reason is not None}
    return ended


@contextmanager
def _seen_models() -> Iterator[list[tuple[Any, list[Any]]]]:
    """Every LLM that a build makes, and the requests that its executor got."""
    from tests.contract.double.llm import LLM  # the package itself is not imported yet

    seen: list[tuple[Any, list[Any]]] = []
    build_model = LLM._build_model

    def build(self: Any) -> None:
        build_model(self)
        seen.append((self, self._executor.received))

    LLM._build_model = build
    try:
        yield seen
    finally:
        LLM._build_model = build_model


class _Null:
    """A stream that nobody reads."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""
