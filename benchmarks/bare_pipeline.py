"""The bare ContinuousBatchingPipeline in a process of its own: what DeepInfer is measured against.

Reads one JSON line of prompts at a time from stdin, runs them together, and answers with the
number of generated tokens and the seconds. Loaded with the same settings as DeepInfer loads it, but
for those in a second argument: JSON with `scheduler`, `properties` and `huge_pages`, which moves
its memory where DeepInfer's engines have theirs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai

from deepinfer import huge_pages
from deepinfer.manifest import CACHED_TOKENS_KEY, EngineFolder, read_engine

TOKENS_PER_BLOCK = 32
WARM_UP_TOKENS = 32


def load(engine: EngineFolder, overrides: dict[str, Any]) -> Any:
    limits, settings = engine.manifest.limits, engine.manifest.backend.settings
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = limits.max_batch_size
    scheduler.max_num_batched_tokens = limits.max_num_tokens
    _, scheduler.num_kv_blocks = engine.manifest.count_cache_blocks(TOKENS_PER_BLOCK)
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    for name, value in overrides.get("scheduler", {}).items():
        setattr(scheduler, name, value)
    kept = {name: value for name, value in settings.items() if name != CACHED_TOKENS_KEY}
    properties = {name.upper(): value for name, value in kept.items()}
    properties["INFERENCE_PRECISION_HINT"] = properties.pop("INFERENCE_PRECISION")
    properties |= overrides.get("properties", {})
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        engine.payload_dir, scheduler, "CPU", properties
    )
    if overrides.get("huge_pages"):
        run(pipeline, [[0] * WARM_UP_TOKENS], max_tokens=2)  # the first step repacks the weights
        huge_pages.collapse()
    return pipeline


def run(pipeline: Any, prompts: list[list[int]], max_tokens: int) -> tuple[int, float]:
    """Generate `max_tokens` greedy tokens for each prompt, all at once."""
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.do_sample = False
    config.ignore_eos = True
    started_at = time.perf_counter()
    handles = [
        pipeline.add_request(i, ov.Tensor(np.array([prompt], dtype=np.int64)), config)
        for i, prompt in enumerate(prompts)
    ]
    num_tokens = 0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for handle in handles:
            while handle.can_read():
                num_tokens += sum(len(out.generated_ids) for out in handle.read().values())
    return num_tokens, time.perf_counter() - started_at


def main() -> None:
    overrides = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    pipeline = load(read_engine(Path(sys.argv[1])), overrides)
    for line in sys.stdin:
        job = json.loads(line)
        num_tokens, elapsed_s = run(pipeline, job["prompts"], job["max_tokens"])
        print(json.dumps({"num_tokens": num_tokens, "elapsed_s": elapsed_s}), flush=True)


if __name__ == "__main__":
    main()
