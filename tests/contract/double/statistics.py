"""The record that the executor keeps of each iteration, with the recorded keys."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from tests.contract.double.executor_config import EngineFacts, ExecutorConfig
from tests.contract.double.requests import Request


def iteration_record(
    config: ExecutorConfig,
    engine: EngineFacts,
    active: Sequence[Request],
    admitted: Sequence[Request],
    *,
    number: int,
    latency_ms: float,
    num_queued: int,
    num_finished: int,
    num_stepped: int,
) -> dict[str, Any]:
    """`active` are the requests that go on after the iteration."""
    return {
        "timestamp": datetime.now().strftime("%m-%d-%Y %H:%M:%S.%f"),
        "iter": number,
        "iterLatencyMS": latency_ms,
        "newActiveRequestsQueueLatencyMS": 0.0,
        "numNewActiveRequests": len(admitted),
        "numActiveRequests": len(active),
        "numQueuedRequests": num_queued,
        "numCompletedRequests": num_finished,
        "maxNumActiveRequests": config.max_batch_size,
        **_tuning(config),
        **dict.fromkeys(("gpuMemUsage", "cpuMemUsage", "pinnedMemUsage"), 0),
        "kvCacheStats": _kv_cache_stats(engine, active, admitted),
        "inflightBatchingStats": _batching_stats(admitted, num_stepped),
        "specDecStats": None,
    }


def _tuning(config: ExecutorConfig) -> dict[str, int]:
    names = ("Static", "TunerRecommended", "Runtime")
    batch = {f"maxBatchSize{name}": config.max_batch_size for name in names}
    tokens = {f"maxNumTokens{name}": config.max_num_tokens for name in names}
    return batch | tokens


def _kv_cache_stats(
    engine: EngineFacts, active: Sequence[Request], admitted: Sequence[Request]
) -> dict[str, float]:
    used = sum(
        engine.blocks_for(len(request.prompt) + len(sequence.token_ids))
        for request in active
        for sequence in request.running
    )
    new = sum(engine.blocks_for(len(request.prompt)) for request in admitted)
    return {
        "maxNumBlocks": engine.num_blocks,
        "freeNumBlocks": engine.num_blocks - used,
        "usedNumBlocks": used,
        "tokensPerBlock": engine.tokens_per_block,
        "allocTotalBlocks": used,
        "allocNewBlocks": new,
        "reusedBlocks": 0,
        "missedBlocks": new,
        "cacheHitRate": 0.0,
    }


def _batching_stats(admitted: Sequence[Request], num_stepped: int) -> dict[str, float]:
    return {
        "numScheduledRequests": num_stepped,
        "numContextRequests": len(admitted),
        "numGenRequests": num_stepped - len(admitted),
        "numPausedRequests": 0,
        "numCtxTokens": sum(len(request.prompt) for request in admitted),
        "microBatchId": 0,
        "avgNumDecodedTokensPerIter": 1.0,
    }
