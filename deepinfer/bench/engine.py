"""An engine's own rates: an engine process is asked for tokens, without text and without HTTP.

A trial submits a batch of random prompts together. Prefill is timed from there until each has its
first token; decoding from then until the first answer ends, while all of them run.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from statistics import median

import msgspec

from deepinfer.bench.bounds import Bounds, find_bounds, read_work
from deepinfer.bench.machine import MachineRates
from deepinfer.engine import EngineOptions
from deepinfer.errors import BenchError, RequestError
from deepinfer.generation import GenerationRequest, SamplingParams
from deepinfer.manifest import EngineFolder, EngineManifest
from deepinfer.runtime.client import EngineClient

SCHEMA_VERSION = 1


class Trial(msgspec.Struct, frozen=True):
    """Tokens a second, of all sequences together."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None  # None when all ended in the step that began the last one


class Point(msgspec.Struct, frozen=True):
    """Medians over the trials of one batch size and one length of prompts."""

    batch_size: int
    prompt_len: int
    trials: tuple[Trial, ...]
    bounds: Bounds | None  # None where they are not known

    @property
    def prefill_tokens_per_s(self) -> float:
        return median(trial.prefill_tokens_per_s for trial in self.trials)

    @property
    def decode_tokens_per_s(self) -> float | None:
        rates = [trial.decode_tokens_per_s for trial in self.trials]
        known = [rate for rate in rates if rate is not None]
        return median(known) if known else None


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    kind: str = "engine"
    schema_version: int = SCHEMA_VERSION
    engine: str
    backend: str
    precision: str
    weight_bytes: int
    output_tokens: int
    machine: MachineRates | None
    points: tuple[Point, ...]
    skipped: tuple[str, ...]  # what the engine has no room for, and why


class EngineBenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    batch_sizes: tuple[int, ...]
    prompt_lens: tuple[int, ...]
    output_tokens: int
    num_trials: int
    num_threads: int | None
    seed: int = 0

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Batch size and length of prompts of each point."""
        return [(size, length) for length in self.prompt_lens for size in self.batch_sizes]


async def bench_engine(
    engine: EngineFolder,
    plan: EngineBenchPlan,
    machine: MachineRates | None,
    report: Callable[[str], None],
) -> EngineReport:
    """Raises BackendError when the engine does not load, BenchError when it fails later."""
    manifest = engine.manifest
    work = read_work(manifest)
    points, skipped = [], []
    async with _running(engine, plan) as client:
        for batch_size, prompt_len in plan.shapes:
            if reason := _refuse(client, batch_size, prompt_len + plan.output_tokens):
                skipped.append(f"{batch_size} x {prompt_len}: {reason}")
                continue
            report(f"measuring {batch_size} x {prompt_len}")
            trials = await _run_trials(client, plan, batch_size, prompt_len)
            context_len = prompt_len + plan.output_tokens // 2  # in the middle of the answer
            bounds = find_bounds(work, machine, batch_size, context_len) if machine else None
            points.append(Point(batch_size, prompt_len, trials, bounds))
    return EngineReport(
        engine=manifest.name,
        backend=f"{manifest.backend.name} {manifest.backend.version}",
        precision=manifest.precision,
        weight_bytes=work.weight_bytes,
        output_tokens=plan.output_tokens,
        machine=machine,
        points=tuple(points),
        skipped=tuple(skipped),
    )


@asynccontextmanager
async def _running(engine: EngineFolder, plan: EngineBenchPlan) -> AsyncIterator[EngineClient]:
    client = EngineClient(engine, EngineOptions(num_threads=plan.num_threads, resume_attempts=0))
    await client.start()
    try:
        await client.wait_ready()
        yield client
    finally:
        await client.close(timeout_s=0)


def _refuse(client: EngineClient, batch_size: int, total_len: int) -> str | None:
    """Why a batch does not fit, so that what is measured is one batch and not several in turn."""
    limits, capacity = client.manifest.limits, client.capacity
    assert capacity is not None, "it is ready"
    if batch_size > limits.max_batch_size:
        return f"the engine takes {limits.max_batch_size} sequences at once"
    if total_len > limits.max_seq_len:
        return f"the engine takes {limits.max_seq_len:,} tokens a sequence"
    if batch_size * capacity.blocks_for(total_len) > capacity.num_blocks:
        return f"the KV cache holds {capacity.num_tokens:,} tokens"
    return None


async def _run_trials(
    client: EngineClient, plan: EngineBenchPlan, batch_size: int, prompt_len: int
) -> tuple[Trial, ...]:
    trials = []
    for number in range(plan.num_trials + 1):
        # New prompts each time: a prefix cache must not answer for the engine.
        rng = Random(f"{plan.seed}:{batch_size}:{prompt_len}:{number}")
        requests = make_requests(client.manifest, rng, batch_size, prompt_len, plan.output_tokens)
        trial = await _run_trial(client, requests)
        if number:  # the first one warms up
            trials.append(trial)
    return tuple(trials)


def make_requests(
    manifest: EngineManifest, rng: Random, batch_size: int, prompt_len: int, output_tokens: int
) -> list[GenerationRequest]:
    tokens = manifest.tokens
    special = {tokens.bos_token_id, tokens.pad_token_id, *tokens.eos_token_ids}
    ids = [token_id for token_id in range(tokens.vocab_size) if token_id not in special]
    sampling = SamplingParams(
        max_tokens=output_tokens, min_tokens=output_tokens, temperature=0, ignore_eos=True
    )
    return [
        GenerationRequest(
            request_id=f"bench-{index}",
            prompt_token_ids=tuple(rng.choices(ids, k=prompt_len)),
            sampling=sampling,
        )
        for index in range(batch_size)
    ]


async def _run_trial(client: EngineClient, requests: Sequence[GenerationRequest]) -> Trial:
    clock = TrialClock({request.request_id for request in requests}, time.perf_counter())
    try:
        async for chunks in client.generate(requests):
            now = time.perf_counter()
            for chunk in chunks:
                if chunk.message is not None:
                    raise BenchError(f"the engine failed: {chunk.message}")
                clock.note(chunk.request_id, len(chunk.token_ids), now)
            if any(chunk.finish_reason for chunk in chunks):
                clock.end(now)
    except RequestError as error:
        raise BenchError(f"the engine gave up: {error.message}") from error
    return clock.trial(sum(len(request.prompt_token_ids) for request in requests))


class TrialClock:
    """When the prompts were all read, and how many tokens came from then to the first end."""

    def __init__(self, request_ids: set[str], started_at: float) -> None:
        self._without_token = request_ids
        self._started_at = started_at
        self._prefilled_at: float | None = None
        self._ended_at: float | None = None
        self._num_decoded = 0

    def note(self, request_id: str, num_tokens: int, at: float) -> None:
        """Tokens of one request came; those of a wake-up all have the same moment."""
        if self._without_token:
            self._without_token.discard(request_id)
            if not self._without_token:
                self._prefilled_at = at
        elif self._ended_at is None and at != self._prefilled_at:
            self._num_decoded += num_tokens

    def end(self, at: float) -> None:
        """Some request ended; what comes later is of a smaller batch."""
        if self._ended_at is None:
            self._ended_at = at

    def trial(self, num_prompt_tokens: int) -> Trial:
        assert self._prefilled_at is not None and self._ended_at is not None
        decoding_s = self._ended_at - self._prefilled_at
        return Trial(
            prefill_tokens_per_s=num_prompt_tokens / (self._prefilled_at - self._started_at),
            decode_tokens_per_s=self._num_decoded / decoding_s if decoding_s > 0 else None,
        )
