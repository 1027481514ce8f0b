"""The backend on the double: what ends a request, what ends the engine, and what ends neither."""

from __future__ import annotations

import gc
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepinfer.backends import tensorrt_llm, tensorrt_reader
from deepinfer.backends.base import BackendFault
from deepinfer.backends.tensorrt_llm import TensorRtLlmBackend
from deepinfer.engine import EngineOptions
from deepinfer.errors import EngineError, InternalError
from deepinfer.generation import (
    FinishReason,
    GenerationRequest,
    Grammar,
    LoraAdapter,
    SamplingParams,
    TokenChunk,
)
from deepinfer.manifest import EngineFolder, record_files, write_manifest
from tests.building import BuildEngine
from tests.contract.double.executor import ITERATION_VARIABLE
from tests.contract.double.guided import REFUSED_MARK
from tests.contract.double.record import message
from tests.contract.installing import installed_double
from tests.contract.loading import write_code

LIMITS = ("--max-seq-len", "256", "--max-batch-size", "8", "--target", "rtx5090")
FAULT_TOKEN = 99
DEADLINE_S = 20.0
SLOW_MS = 10.0  # an iteration that leaves time for something to happen while requests run
WRONG = Grammar("ebnf", f'root ::= "a" b  {REFUSED_MARK}', param="guided_grammar")


@pytest.fixture(scope="module")
def engine(double_root: Path, build_engine: BuildEngine) -> EngineFolder:
    with installed_double(double_root):
        return build_engine("llama", "fp8", *LIMITS).engine


@pytest.fixture(scope="module")
def gathering(double_root: Path, build_engine: BuildEngine) -> EngineFolder:
    """An engine whose logits are gathered, and whose executor therefore runs in the process."""
    with installed_double(double_root):
        return build_engine("llama", "fp8", *LIMITS, "--gather-logits").engine


@pytest.fixture
def copied(engine: EngineFolder, tmp_path: Path) -> EngineFolder:
    """An engine that a test may change."""
    path = Path(shutil.copytree(engine.path, tmp_path / "engine"))
    return engine.model_copy(update={"path": path})


@contextmanager
def loaded(root: Path, engine: EngineFolder, **machine: Any) -> Iterator[TensorRtLlmBackend]:
    with installed_double(root, **machine):
        backend = TensorRtLlmBackend.load(engine, EngineOptions(), lambda *_: None)
        try:
            yield backend
        finally:
            backend.close()


def ask(
    name: str,
    *prompt: int,
    max_tokens: int = 12,
    adapter: LoraAdapter | None = None,
    **sampling: Any,
) -> GenerationRequest:
    values = {"temperature": 0.0, "ignore_eos": True} | sampling
    return GenerationRequest(
        request_id=name,
        prompt_token_ids=prompt or (10, 11, 12),
        sampling=SamplingParams(max_tokens=max_tokens, **values),
        adapter=adapter,
    )


def finish(backend: TensorRtLlmBackend, *names: str) -> dict[str, list[TokenChunk]]:
    """Step until the requests have ended; their chunks."""
    chunks: dict[str, list[TokenChunk]] = {name: [] for name in names}
    deadline = time.monotonic() + DEADLINE_S
    while any(not seen or seen[-1].finish_reason is None for seen in chunks.values()):
        assert time.monotonic() < deadline, "a request does not end"
        for chunk in backend.step():
            chunks[chunk.request_id].append(chunk)
    return chunks


def tokens(chunks: list[TokenChunk]) -> list[int]:
    return [token_id for chunk in chunks for token_id in chunk.token_ids]


def scores(chunks: list[TokenChunk]) -> list[float]:
    return [entry.log_prob for chunk in chunks for entry in chunk.log_probs]


# Log probabilities


@pytest.mark.parametrize("num_log_probs", [0, 3])
def test_log_probabilities_of_concurrent_requests_come_once_with_each_token(
    double_root: Path, gathering: EngineFolder, num_log_probs: int
) -> None:
    with loaded(double_root, gathering) as backend:
        asked = [ask(str(i), 20 + i, num_log_probs=num_log_probs) for i in range(6)]
        alone = {}
        for request in asked:
            backend.add(request)
            alone |= finish(backend, request.request_id)
        for request in asked:
            backend.add(request)
        together = finish(backend, *(request.request_id for request in asked))
        for name, chunks in together.items():
            assert chunks[-1].finish_reason is FinishReason.LENGTH, chunks[-1].message
            assert len(scores(chunks)) == len(tokens(chunks)) == 12
            assert tokens(chunks) == tokens(alone[name])
            assert scores(chunks) == scores(alone[name])
            assert {len(e.top) for c in chunks for e in c.log_probs} == {num_log_probs}


def test_log_probabilities_outlive_stop_tokens(double_root: Path, engine: EngineFolder) -> None:
    with loaded(double_root, engine) as backend:
        backend.add(ask("free", num_log_probs=0))
        free = finish(backend, "free")["free"]
        stop = tokens(free)[4]
        count = tokens(free).index(stop) + 1
        backend.add(ask("stopped", num_log_probs=0, stop_token_ids=(stop,)))
        stopped = finish(backend, "stopped")["stopped"]
        assert stopped[-1].finish_reason is FinishReason.STOP
        assert tokens(stopped) == tokens(free)[:count]
        assert scores(stopped) == scores(free)[:count]


# One request's exception


def test_output_that_cannot_be_read_ends_its_request_and_frees_its_cache(
    double_root: Path, engine: EngineFolder
) -> None:
    faults = {"bad_output_token": FAULT_TOKEN, "iteration_ms": SLOW_MS}
    with loaded(double_root, engine, **faults) as backend:
        backend.add(ask("neighbour", max_tokens=60))
        backend.add(ask("bad", FAULT_TOKEN, max_tokens=200))
        (failed,) = finish(backend, "bad", "neighbour")["bad"]
        assert failed.finish_reason is FinishReason.ERROR
        assert failed.message is not None and "Unknown finish reason" in failed.message
        backend.add(ask("after"))
        assert len(tokens(finish(backend, "after")["after"])) == 12
        executor = backend._llm._executor
        cancelled = [request for request in executor.received if FAULT_TOKEN in request.prompt]
        assert [len(request.sequences[0].token_ids) < 200 for request in cancelled] == [True]
        assert backend.num_used_blocks == 0


def test_neighbour_s_tokens_are_what_they_are_without_the_bad_output(
    double_root: Path, engine: EngineFolder
) -> None:
    with loaded(double_root, engine, bad_output_token=FAULT_TOKEN) as backend:
        backend.add(ask("alone", max_tokens=40))
        alone = tokens(finish(backend, "alone")["alone"])
        backend.add(ask("neighbour", max_tokens=40))
        backend.add(ask("bad", FAULT_TOKEN))
        assert tokens(finish(backend, "neighbour", "bad")["neighbour"]) == alone


def test_request_that_the_library_s_classes_refuse_ends_alone(
    double_root: Path, build_engine: BuildEngine
) -> None:
    with installed_double(double_root):
        adaptable = build_engine("llama", "fp8", *LIMITS, "--max-lora-rank", "8").engine
    gone = LoraAdapter(name="gone", id=1, path="/nowhere")
    with loaded(double_root, adaptable) as backend:
        with pytest.raises(InternalError, match="/nowhere"):
            backend.add(ask("adapted", adapter=gone))
        with pytest.raises(InternalError, match="top_p"):
            backend.add(ask("sampled", temperature=1.0, top_p=2.0))
        backend.add(ask("after"))
        assert finish(backend, "after")["after"][-1].finish_reason is FinishReason.LENGTH


def test_wrong_grammar_is_refused_and_what_ran_beside_it_is_interrupted(
    double_root: Path, engine: EngineFolder
) -> None:
    with loaded(double_root, engine, iteration_ms=SLOW_MS) as backend:
        for _ in range(2):  # the same words again, within the second that they name
            backend.add(ask("neighbour", max_tokens=200))
            while not backend.step():
                pass
            backend.add(ask("wrong", grammar=WRONG))
            ended = finish(backend, "neighbour", "wrong")
            assert ended["neighbour"][-1].finish_reason is FinishReason.INTERRUPTED
            refused = ended["wrong"][-1]
            assert refused.finish_reason is FinishReason.ERROR
            assert refused.refused_param == "guided_grammar"
            assert refused.message is not None and "not defined" in refused.message
        backend.add(ask("after"))
        assert len(tokens(finish(backend, "after")["after"])) == 12


def test_grammars_of_which_one_is_wrong_are_interrupted_to_be_tried_alone(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Grammar("json_schema", '{"type": "integer"}')
    with loaded(double_root, engine) as backend:
        # Both begin in one iteration: which of them an error is about is not said.
        monkeypatch.setenv(ITERATION_VARIABLE, "500")
        backend.add(ask("running", max_tokens=200))
        while not backend.step():
            pass
        backend.add(ask("right", grammar=right))
        backend.add(ask("wrong", grammar=WRONG))
        for chunks in finish(backend, "running", "right", "wrong").values():
            assert chunks[-1].finish_reason is FinishReason.INTERRUPTED
        monkeypatch.delenv(ITERATION_VARIABLE)
        backend.add(ask("right again", grammar=right, ignore_eos=False))
        assert finish(backend, "right again")["right again"][-1].finish_reason is FinishReason.STOP
        backend.add(ask("wrong again", grammar=WRONG))
        (refused,) = finish(backend, "wrong again")["wrong again"]
        assert refused.refused_param == "guided_grammar"


class Parser:
    """xgrammar's `Grammar`, as far as it is used: what it raises was seen of release 0.1.25."""

    @staticmethod
    def from_ebnf(text: str) -> None:
        if REFUSED_MARK in text:
            raise RuntimeError(message("grammar_parser"))

    @staticmethod
    def from_regex(text: str, newer: object) -> None:
        raise AssertionError("it is called with one argument")


def test_grammar_that_xgrammar_does_not_parse_is_not_sent_to_the_executor(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", SimpleNamespace(Grammar=Parser))
    with loaded(double_root, engine) as backend:
        backend.add(ask("neighbour", max_tokens=40))
        backend.add(ask("cancelled", grammar=WRONG))
        backend.cancel("cancelled")
        backend.add(ask("wrong", grammar=WRONG))
        right = Grammar("json_schema", '{"type": "integer"}')
        backend.add(ask("right", grammar=right, ignore_eos=False))
        backend.add(ask("unknown", grammar=Grammar("regex", "[0-9]")))
        ended = finish(backend, "neighbour", "wrong", "right", "unknown")
        assert len(tokens(ended["neighbour"])) == 40
        (refused,) = ended["wrong"]
        assert refused.refused_param == "guided_grammar"
        assert refused.message is not None and "not defined" in refused.message
        assert ended["right"][-1].finish_reason is FinishReason.STOP
        prompts = [request.sampling.guided_decoding for request in backend._llm._executor.received]
        assert len([guide for guide in prompts if guide is not None]) == 2


# The device or the executor


def test_broken_gpu_is_a_fault_of_the_engine(double_root: Path, engine: EngineFolder) -> None:
    with loaded(double_root, engine, sticky_fault_token=FAULT_TOKEN) as backend:
        backend.add(ask("running", max_tokens=200))
        backend.add(ask("breaking", FAULT_TOKEN))
        with pytest.raises(BackendFault, match="an illegal memory access was encountered$"):
            finish(backend, "running", "breaking")


def test_worker_that_dies_in_silence_is_a_fault_of_the_engine(
    double_root: Path, engine: EngineFolder
) -> None:
    with loaded(double_root, engine, worker_death_token=FAULT_TOKEN) as backend:
        backend.add(ask("deadly", FAULT_TOKEN))
        with pytest.raises(BackendFault, match="Failed during generation"):
            finish(backend, "deadly")


def test_request_that_a_dead_executor_does_not_take_is_left_to_the_next_engine(
    double_root: Path, engine: EngineFolder
) -> None:
    with loaded(double_root, engine) as backend:
        backend._llm._executor.shutdown()
        backend.add(ask("late"))
        with pytest.raises(BackendFault, match="LLM is shutting down"):
            backend.step()


def test_executor_that_says_nothing_is_a_fault_of_the_engine(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(double_root, engine) as backend:
        backend._reader.max_silence_s = 0.5
        monkeypatch.setenv(ITERATION_VARIABLE, "3000")
        backend.add(ask("unanswered"))
        with pytest.raises(BackendFault, match="has said nothing for"):
            finish(backend, "unanswered")


def test_library_that_blocks_whoever_calls_it_is_a_fault_of_the_engine(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_reader, "CALL_TIMEOUT_S", 0.2)
    with loaded(double_root, engine) as backend:
        with backend._llm._executor._wake:  # which it needs to take a request
            backend.add(ask("untaken"))
            with pytest.raises(BackendFault, match="busy for 0.2 s with one call"):
                backend.step()


def test_backend_that_is_closed_leaves_no_request_to_be_read(
    double_root: Path, engine: EngineFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with loaded(double_root, engine, iteration_ms=SLOW_MS) as backend:
        for name in ("running", "aborted"):
            backend.add(ask(name, max_tokens=200))
        backend.cancel("aborted")
    del backend
    gc.collect()  # which has asyncio log each task that still waits
    assert [r.message for r in caplog.records if r.name == "asyncio"] == []


def test_silence_while_the_engine_was_stopped_is_no_fault(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(double_root, engine, iteration_ms=SLOW_MS) as backend:
        backend.add(ask("running", max_tokens=30))
        backend.step()
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 1e6)
        assert finish(backend, "running")["running"][-1].finish_reason is FinishReason.LENGTH


# Statistics


def test_engine_that_gathers_logits_loads_without_statistics_and_scores_alternatives(
    double_root: Path, gathering: EngineFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), loaded(double_root, gathering) as backend:
        assert backend._llm._executor.is_in_process
        assert backend.capacity.num_blocks == 8 * 256 // 32
        backend.add(ask("a", num_log_probs=2))
        chunks = finish(backend, "a")["a"]
        assert {len(e.top) for chunk in chunks for e in chunk.log_probs} == {2}
    (line,) = (r.getMessage() for r in caplog.records if "KV cache is" in r.getMessage())
    assert "TypeError" in line and "64 blocks" in line


@pytest.mark.parametrize("fault", ["raise", "hang"])
def test_statistics_that_fail_leave_the_planned_capacity(
    double_root: Path, engine: EngineFolder, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_llm, "STATS_DEADLINE_S", 0.1)
    with loaded(double_root, engine, statistics_fault=fault) as backend:
        assert backend.capacity.num_blocks == 8 * 256 // 32
        backend.add(ask("a"))
        assert len(tokens(finish(backend, "a")["a"])) == 12


STATISTICS: dict[str, Any] = {
    "nothing": None,
    "no iteration": [],
    "another thing": ["text"],
    "no cache": [{"kvCacheStats": None}],
    "no blocks": [{"kvCacheStats": {"maxNumBlocks": 0, "tokensPerBlock": 32}}],
}


@pytest.mark.parametrize("statistics", STATISTICS.values(), ids=STATISTICS)
def test_statistics_that_say_nothing_leave_the_planned_capacity(
    double_root: Path, engine: EngineFolder, statistics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.contract.double.llm import LLM

    monkeypatch.setattr(LLM, "get_stats", lambda *_, **__: statistics)
    with loaded(double_root, engine) as backend:
        assert backend.capacity.num_blocks == 8 * 256 // 32


def test_cache_that_is_too_small_is_refused(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.contract.double.llm import LLM

    small = [{"kvCacheStats": {"maxNumBlocks": 2, "tokensPerBlock": 32}}]
    monkeypatch.setattr(LLM, "get_stats", lambda *_, **__: small)
    with pytest.raises(EngineError, match="KV cache of 64 tokens"), loaded(double_root, engine):
        pass


def test_statistics_are_asked_for_once_and_used_blocks_are_counted_by_length(
    double_root: Path, engine: EngineFolder
) -> None:
    with loaded(double_root, engine, iteration_ms=SLOW_MS) as backend:
        backend.add(ask("long", *range(20, 80), max_tokens=60))
        backend.add(ask("short", 20, max_tokens=60))
        assert backend.num_used_blocks == 2 + 1
        used = [backend.num_used_blocks]
        while used[-1]:
            backend.step()
            used.append(backend.num_used_blocks)
        assert max(used) == 4 + 2
        assert backend._llm.num_stats_calls == 1


# The process that loads


def with_settings(engine: EngineFolder, **settings: str | int | bool) -> EngineFolder:
    backend = engine.manifest.backend
    changed = backend.model_copy(update={"settings": backend.settings | settings})
    manifest = engine.manifest.model_copy(update={"backend": changed})
    return engine.model_copy(update={"manifest": manifest})


def test_workers_have_the_variables_of_the_manifest_and_never_ask_the_hub(
    double_root: Path, engine: EngineFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NCCL_P2P_DISABLE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with loaded(double_root, with_settings(engine, NCCL_P2P_DISABLE="1")) as backend:
        environment: Mapping[str, str] = backend._llm.worker_environment
        assert environment["NCCL_P2P_DISABLE"] == environment["HF_HUB_OFFLINE"] == "1"
        assert backend._llm.args.env_overrides is None


def test_code_in_a_payload_is_refused(
    double_root: Path, copied: EngineFolder, tmp_path: Path
) -> None:
    write_code(copied.payload_dir, "AutoConfig", tmp_path / "marks")
    copied = sealed(copied)
    with pytest.raises(EngineError, match="auto_map") as caught, loaded(double_root, copied):
        pass
    assert caught.value.hint is not None
    assert not (tmp_path / "marks").exists()


@pytest.mark.parametrize("is_trusted", [False, True])
def test_code_in_a_tokenizer_is_never_run(
    double_root: Path, copied: EngineFolder, tmp_path: Path, is_trusted: bool
) -> None:
    for kind in ("AutoConfig", "AutoTokenizer"):
        write_code(copied.tokenizer_dir, kind, tmp_path / "marks")
    model = copied.manifest.model.model_copy(update={"trust_remote_code": is_trusted})
    with loaded(double_root, sealed(copied, model=model)) as backend:
        folder = Path(str(backend._llm.args.tokenizer))
        assert folder != copied.tokenizer_dir and not folder.exists()
        assert backend._llm.args.trust_remote_code is False
        grammar = Grammar("json_schema", '{"type": "integer"}')
        backend.add(ask("a", grammar=grammar, ignore_eos=False))
        assert finish(backend, "a")["a"][-1].finish_reason is FinishReason.STOP
    assert not (tmp_path / "marks").exists()


def test_damaged_tokenizer_is_named(double_root: Path, copied: EngineFolder) -> None:
    (copied.tokenizer_dir / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with (
        pytest.raises(EngineError, match="tokenizer_config.json"),
        loaded(double_root, sealed(copied)),
    ):
        pass


def sealed(engine: EngineFolder, **changes: Any) -> EngineFolder:
    """The engine with a manifest of its files as they are now, as a stranger would write it."""
    changes = {"files": record_files(engine.path), **changes}
    manifest = engine.manifest.model_copy(update=changes)
    write_manifest(engine.path, manifest)
    return engine.model_copy(update={"manifest": manifest})
