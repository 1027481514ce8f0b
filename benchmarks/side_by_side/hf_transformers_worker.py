"""transformers in a process of its own: a line of prompts in, a line of tokens and seconds out.

Takes the same jobs as `bare_pipeline.py`. The manager of the continuous batching lives as long as
the process, as a server's would.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

TOKENS_PER_BLOCK = 32
MAX_BATCH_TOKENS = 256
NO_TOKEN = -1
ANSWER_TIMEOUT_S = 300.0


def start(checkpoint: str, dtype: str, max_streams: int, max_seq_len: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0, max_new_tokens=max_seq_len
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            block_size=TOKENS_PER_BLOCK,
            num_blocks=max_streams * -(-max_seq_len // TOKENS_PER_BLOCK),
            max_batch_tokens=MAX_BATCH_TOKENS,
        ),
    )
    manager.start()
    return manager


def run(manager: Any, prompts: list[list[int]], max_tokens: int) -> tuple[int, float]:
    started_at = time.perf_counter()
    for prompt in prompts:
        manager.add_request(prompt, max_new_tokens=max_tokens)
    num_tokens = num_ended = 0
    while num_ended < len(prompts):
        result = manager.get_result(timeout=ANSWER_TIMEOUT_S)
        if result is None:
            raise SystemExit("no answer in time")
        if result.is_finished():
            num_tokens += len(result.generated_tokens)
            num_ended += 1
    return num_tokens, time.perf_counter() - started_at


def main() -> None:
    checkpoint, dtype, max_streams, max_seq_len = sys.argv[1:]
    manager = start(checkpoint, dtype, int(max_streams), int(max_seq_len))
    for line in sys.stdin:
        job = json.loads(line)
        num_tokens, elapsed_s = run(manager, job["prompts"], job["max_tokens"])
        print(json.dumps({"num_tokens": num_tokens, "elapsed_s": elapsed_s}), flush=True)
    manager.stop(block=True)


if __name__ == "__main__":
    main()
