"""What each setting of the CPU engine is worth: the bare pipeline with one of them changed.

    .venv/bin/python benchmarks/cpu_settings.py --engine engines/mine --output /tmp/settings

Every variant is loaded in a process of its own, once a repetition, all variants in turn, so that
whatever else the machine does meets them alike. Ratios are to the engine's own settings in the same
repetition; figures and ratios are medians.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bare import BarePipeline, PipelineFailed

from deepinfer.device import read_machine

PROMPT_LEN, LONG_PROMPT_LEN = 32, 768
NUM_DECODED = 48  # tokens of each stream
STREAMS = (1, 4, 16)
TOKEN_IDS = range(300, 100_000)
PLANNED = "as planned"
VARIANTS: dict[str, dict[str, Any]] = {
    PLANNED: {},
    "huge pages": {"huge_pages": True},
    "1 thread": {"properties": {"INFERENCE_NUM_THREADS": 1}},
    "threads pinned to cores": {"properties": {"ENABLE_CPU_PINNING": True}},
    "threads not pinned": {"properties": {"ENABLE_CPU_PINNING": False}},
    "threads share work as it comes": {"properties": {"TBB_PARTITIONER": "AUTO"}},
    "threads share work beforehand": {"properties": {"TBB_PARTITIONER": "STATIC"}},
    "cores reserved": {"properties": {"ENABLE_CPU_RESERVATION": True}},
    "KV cache f32": {"properties": {"KV_CACHE_PRECISION": "f32"}},
    "KV cache f16": {"properties": {"KV_CACHE_PRECISION": "f16"}},
    "KV cache bf16": {"properties": {"KV_CACHE_PRECISION": "bf16"}},
    "activations quantised in groups of 32": {
        "properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
    },
    "activations quantised in groups of 448": {
        "properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 448}
    },
    "activations not quantised": {"properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}},
    "arithmetic in bf16": {"properties": {"INFERENCE_PRECISION_HINT": "bf16"}},
    "arithmetic in f16": {"properties": {"INFERENCE_PRECISION_HINT": "f16"}},
    "arithmetic in f32": {"properties": {"INFERENCE_PRECISION_HINT": "f32"}},
    "128 tokens a step": {"scheduler": {"max_num_batched_tokens": 128}},
    "512 tokens a step": {"scheduler": {"max_num_batched_tokens": 512}},
    "1,024 tokens a step": {"scheduler": {"max_num_batched_tokens": 1024}},
    "no prefix cache": {"scheduler": {"enable_prefix_caching": False}},
    "weights read, not mapped": {"properties": {"ENABLE_MMAP": False}},
}
Figures = Mapping[str, float]


def measure(engine: Path, overrides: Mapping[str, Any]) -> Figures:
    started_at = time.perf_counter()
    pipeline = BarePipeline(engine, overrides)
    try:
        pipeline.run(make_prompts(1, PROMPT_LEN), 2)
        ready_at = time.perf_counter()
        pipeline.run(make_prompts(max(STREAMS), PROMPT_LEN), 2)
        decode = {
            f"decode at {count}, tokens/s": _decode_rate(pipeline, count) for count in STREAMS
        }
        prefill_s = pipeline.run(make_prompts(1, LONG_PROMPT_LEN), 1)
        return {
            **decode,
            "prefill, tokens/s": LONG_PROMPT_LEN / prefill_s,
            "start to first answer, s": ready_at - started_at,
            "memory, MiB": pipeline.memory_bytes / 2**20,
        }
    finally:
        pipeline.close()


def make_prompts(count: int, length: int) -> list[list[int]]:
    """New ones each time: the prefix cache shall not know them."""
    return [random.choices(TOKEN_IDS, k=length) for _ in range(count)]


def _decode_rate(pipeline: BarePipeline, count: int) -> float:
    """Of the steps after the one that ends the prompts."""
    first_s = pipeline.run(make_prompts(count, PROMPT_LEN), 1)
    all_s = pipeline.run(make_prompts(count, PROMPT_LEN), 1 + NUM_DECODED)
    return count * NUM_DECODED / (all_s - first_s)


def show(runs: Mapping[str, Sequence[Figures]]) -> str:
    columns = list(runs[PLANNED][0])
    lines = ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for name, figures in runs.items():
        cells = []
        for column in columns:
            value = median(run[column] for run in figures)
            pairs = zip(figures, runs[PLANNED], strict=True)
            ratio = median(run[column] / planned[column] for run, planned in pairs)
            cells.append(f"{value:.3g}" + ("" if name == PLANNED else f" ({ratio:.2f})"))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True, help="an engine for the CPU")
    parser.add_argument("--output", type=Path, required=True, help="folder for the JSON")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    names = list(dict.fromkeys([PLANNED, *arguments.only]))
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    refused: dict[str, str] = {}
    for repetition in range(arguments.repetitions):
        for name in [name for name in names if name not in refused]:
            try:
                runs[name].append(measure(arguments.engine, VARIANTS[name]))
            except PipelineFailed as reason:
                refused[name] = str(reason)
                del runs[name]
                continue
            print(f"{repetition}: {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    cpu = read_machine().cpu
    print(f"{cpu.name}, {cpu.num_threads} CPUs; medians of {arguments.repetitions}\n")
    print(show(runs))
    for name, reason in refused.items():
        print(f"{name}: refused, {reason}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    found = {"runs": runs, "refused": refused}
    (arguments.output / "settings.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
