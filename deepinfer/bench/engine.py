"""An engine's own rates, without text and without HTTP, beside the limits of this machine.

A trial submits a batch of random prompts together. Prefill lasts from there until every sequence
has its first token. Decoding lasts from then until the first answer ends, so that all of them run.

The limits are a roofline and no forecast. A decoding step reads every weight once and the cache of
every sequence, and multiplies each weight with each sequence; it takes at least the longer of the
two. Prefill is limited by the arithmetic only. All weights of a mixture of experts count, so its
limit is too low.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

import msgspec

from deepinfer.bench.machine import MachineRates
from deepinfer.engine import EngineOptions
from deepinfer.errors import BenchError, RequestError
from deepinfer.generation import GenerationRequest, SamplingParams
from deepinfer.manifest import PAYLOAD_DIR, EngineFolder, EngineManifest
from deepinfer.runtime.client import EngineClient
from deepinfer.terminal import format_bytes

SCHEMA_VERSION = 1
FLOPS_PER_PARAMETER = 2  # a multiplication and an addition
HEADERS = (
    *("BATCH", "PROMPT", "PREFILL TOKENS/S", "OF LIMIT", "DECODE TOKENS/S", "OF LIMIT"),
    "SPREAD OF DECODE",
)


class EngineSize(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoding step reads and multiplies."""

    weight_bytes: int
    num_parameters: int
    kv_bytes_per_token: int


class Bounds(msgspec.Struct, frozen=True):
    """Limits in tokens per second, over all sequences."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def read_engine_size(manifest: EngineManifest) -> EngineSize:
    """Counts the payload without the tokenizers that some backends keep there."""
    sizes = [
        record.size_bytes
        for path, record in manifest.files.items()
        if path.startswith(f"{PAYLOAD_DIR}/") and "tokenizer" not in path
    ]
    return EngineSize(
        weight_bytes=sum(sizes),
        num_parameters=manifest.model.num_parameters,
        kv_bytes_per_token=manifest.kv_bytes_per_token,
    )


def compute_bounds(
    size: EngineSize, rates: MachineRates, batch_size: int, context_len: int
) -> Bounds | None:
    """`context_len` is the tokens in each sequence's cache. None for an engine without weights."""
    if not size.weight_bytes or not size.num_parameters:
        return None
    cache_bytes = batch_size * context_len * size.kv_bytes_per_token
    memory_s = (size.weight_bytes + cache_bytes) / rates.read_bytes_per_s
    flops_per_token = FLOPS_PER_PARAMETER * size.num_parameters
    compute_s = batch_size * flops_per_token / rates.gemm_flops
    return Bounds(
        prefill_tokens_per_s=rates.gemm_flops / flops_per_token,
        decode_tokens_per_s=batch_size / max(memory_s, compute_s),
    )


class Trial(msgspec.Struct, frozen=True):
    """Rates in tokens per second, over all sequences."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None  # None if all ended in the first step of decoding


class Point(msgspec.Struct, frozen=True):
    """The trials of one batch size and prompt length, and their medians."""

    batch_size: int
    prompt_len: int
    trials: tuple[Trial, ...]
    bounds: Bounds | None  # None if unknown

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
    skipped: tuple[str, ...]  # batches that do not fit, and why


class EngineBenchPlan(msgspec.Struct, frozen=True, kw_only=True):
    batch_sizes: tuple[int, ...]
    prompt_lens: tuple[int, ...]
    output_tokens: int
    num_trials: int
    num_threads: int | None
    seed: int = 0

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Batch size and prompt length of each point."""
        return [(size, length) for length in self.prompt_lens for size in self.batch_sizes]


async def bench_engine(
    engine: EngineFolder,
    plan: EngineBenchPlan,
    machine: MachineRates | None,
    report: Callable[[str], None],
) -> EngineReport:
    """Raises BackendError if the engine does not load, BenchError if it fails later.

    `report` receives progress messages.
    """
    manifest = engine.manifest
    size = read_engine_size(manifest)
    points, skipped = [], []
    client = EngineClient(engine, EngineOptions(num_threads=plan.num_threads, resume_attempts=0))
    await client.start()
    try:
        await client.wait_ready()
        for batch_size, prompt_len in plan.shapes:
            if reason := _find_misfit(client, batch_size, prompt_len + plan.output_tokens):
                skipped.append(f"{batch_size} x {prompt_len}: {reason}")
                continue
            report(f"measuring {batch_size} x {prompt_len}")
            trials = await _run_trials(client, plan, batch_size, prompt_len)
            context_len = prompt_len + plan.output_tokens // 2  # in the middle of the answer
            bounds = compute_bounds(size, machine, batch_size, context_len) if machine else None
            points.append(Point(batch_size, prompt_len, trials, bounds))
    finally:
        await client.close(timeout_s=0)
    return EngineReport(
        engine=manifest.name,
        backend=f"{manifest.backend.name} {manifest.backend.version}",
        precision=manifest.precision,
        weight_bytes=size.weight_bytes,
        output_tokens=plan.output_tokens,
        machine=machine,
        points=tuple(points),
        skipped=tuple(skipped),
    )


def _find_misfit(client: EngineClient, batch_size: int, total_len: int) -> str | None:
    """Why the engine cannot run the whole batch at once; None if it can."""
    limits, capacity = client.manifest.limits, client.capacity
    assert capacity is not None, "the engine is ready"
    if batch_size > limits.max_batch_size:
        return f"the engine accepts at most {limits.max_batch_size} sequences"
    if total_len > limits.max_seq_len:
        return f"the engine accepts at most {limits.max_seq_len:,} tokens per sequence"
    if batch_size * capacity.blocks_for(total_len) > capacity.num_blocks:
        return f"the KV cache holds {capacity.num_tokens:,} tokens"
    return None


async def _run_trials(
    client: EngineClient, plan: EngineBenchPlan, batch_size: int, prompt_len: int
) -> tuple[Trial, ...]:
    trials = []
    for number in range(plan.num_trials + 1):
        # New prompts each time, which the prefix cache does not know.
        rng = Random(f"{plan.seed}:{batch_size}:{prompt_len}:{number}")
        requests = make_requests(client.manifest, rng, batch_size, prompt_len, plan.output_tokens)
        trial = await _run_trial(client, requests)
        if number > 0:  # the first trial is the warm-up
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
                clock.add_tokens(chunk.request_id, len(chunk.token_ids), now)
            if any(chunk.finish_reason for chunk in chunks):
                clock.end(now)
    except RequestError as error:
        raise BenchError(f"the engine failed: {error.message}") from error
    return clock.trial(sum(len(request.prompt_token_ids) for request in requests))


class TrialClock:
    """Times of one trial: the end of prefill, the first end of an answer, the tokens between."""

    def __init__(self, request_ids: set[str], started_at: float) -> None:
        self._without_token = request_ids
        self._started_at = started_at
        self._prefilled_at: float | None = None
        self._ended_at: float | None = None
        self._num_decoded = 0

    def add_tokens(self, request_id: str, num_tokens: int, at: float) -> None:
        """Record tokens of one request; all chunks of one engine step have the same `at`."""
        if self._without_token:
            self._without_token.discard(request_id)
            if not self._without_token:
                self._prefilled_at = at
        elif self._ended_at is None and at != self._prefilled_at:
            self._num_decoded += num_tokens

    def end(self, at: float) -> None:
        """Record that a request ended; later tokens are of a smaller batch and do not count."""
        if self._ended_at is None:
            self._ended_at = at

    def trial(self, num_prompt_tokens: int) -> Trial:
        assert self._prefilled_at is not None and self._ended_at is not None
        decoding_s = self._ended_at - self._prefilled_at
        return Trial(
            prefill_tokens_per_s=num_prompt_tokens / (self._prefilled_at - self._started_at),
            decode_tokens_per_s=self._num_decoded / decoding_s if decoding_s > 0 else None,
        )


def engine_overview(report: EngineReport) -> list[tuple[str, str]]:
    """Rows about the engine and the machine."""
    rows = [
        ("engine", f"{report.engine} ({report.precision}, {report.backend})"),
        ("weights", format_bytes(report.weight_bytes)),
    ]
    if (machine := report.machine) is not None:
        rows += [
            ("memory, read", f"{machine.read_bytes_per_s / 1e9:.1f} GB/s"),
            ("memory, copied", f"{machine.copy_bytes_per_s / 1e9:.1f} GB/s, both ways together"),
            ("matrix products", f"{machine.gemm_flops / 1e9:.0f} GFLOP/s in float32"),
            ("threads", str(machine.num_threads)),
        ]
    return rows


def point_row(point: Point) -> tuple[str, ...]:
    """A row under HEADERS; it ends with the slowest and the fastest trial of decoding."""
    bounds, decode = point.bounds, point.decode_tokens_per_s
    rates = [trial.decode_tokens_per_s for trial in point.trials]
    known = [rate for rate in rates if rate is not None]
    return (
        str(point.batch_size),
        str(point.prompt_len),
        f"{point.prefill_tokens_per_s:.1f}",
        _share(point.prefill_tokens_per_s, bounds.prefill_tokens_per_s if bounds else None),
        "-" if decode is None else f"{decode:.1f}",
        _share(decode, bounds.decode_tokens_per_s if bounds else None),
        f"{min(known):.1f} to {max(known):.1f}" if known else "-",
    )


def _share(rate: float | None, bound: float | None) -> str:
    return "-" if rate is None or not bound else f"{rate / bound:.0%}"
