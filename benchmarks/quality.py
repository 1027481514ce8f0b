"""What each precision costs in quality, on text that the sample model has not seen.

    .venv/bin/python benchmarks/quality.py --output /tmp/quality

Perplexity over held-out documents of the sample's own generator, through the engine's own
executor (paged attention, KV cache and all), and how far greedy answers agree with those of fp32.
The planner's automatic choices rest on this table.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
from tokenizers import Tokenizer

from deepinfer.manifest import CACHED_TOKENS_KEY, EngineFolder, read_engine

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from sample_text import held_out_documents

GREEDY_TOKENS = 64
PROMPT_SHARE = 4  # a greedy prompt is the first quarter of a document
TOKENS_PER_BLOCK = 32


@dataclass(frozen=True)
class Variant:
    """One engine, and how it is loaded if not as its manifest says."""

    name: str
    precision: str
    overrides: dict[str, Any]


VARIANTS = (
    Variant("fp32, f32 KV", "fp32", {}),
    Variant("fp32, u8 KV", "fp32", {"KV_CACHE_PRECISION": "u8"}),
    Variant("bf16", "bf16", {}),
    Variant("bf16, f32 arithmetic", "bf16", {"INFERENCE_PRECISION_HINT": "f32"}),
    Variant("bf16, bf16 arithmetic", "bf16", {"INFERENCE_PRECISION_HINT": "bf16"}),
    Variant("fp16", "fp16", {}),
    Variant("int8, group 32", "int8", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}),
    Variant("int8, group 128", "int8", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}),
    Variant("int8, none", "int8", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
    Variant("int8, keys by channel", "int8", {"KEY_CACHE_QUANT_MODE": "BY_CHANNEL"}),
    Variant("int4, group 128", "int4", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}),
    Variant("int4, group 32", "int4", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}),
    Variant("int4, none", "int4", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
)


class Engine:
    """An engine's payload, scored and sampled without the server around it."""

    def __init__(self, engine: EngineFolder, overrides: dict[str, Any]) -> None:
        settings = {name.upper(): v for name, v in engine.manifest.backend.settings.items()}
        settings.pop(CACHED_TOKENS_KEY.upper(), None)
        settings["INFERENCE_PRECISION_HINT"] = settings.pop("INFERENCE_PRECISION")
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = engine.manifest.limits.max_num_tokens
        scheduler.num_kv_blocks = engine.manifest.limits.max_seq_len // TOKENS_PER_BLOCK * 8
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            engine.payload_dir, scheduler, "CPU", settings | overrides
        )
        self._num_requests = 0

    def log_probabilities(self, token_ids: Sequence[int]) -> list[float]:
        """Of each token but the first, given those before it."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = 0
        config.echo = True
        config.logprobs = 1
        outputs = self._run(token_ids, config)
        return [value for output in outputs for value in output.generated_log_probs][1:]

    def greedy(self, token_ids: Sequence[int]) -> list[int]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = GREEDY_TOKENS
        config.ignore_eos = True
        outputs = self._run(token_ids, config)
        return [token_id for output in outputs for token_id in output.generated_ids]

    def _run(self, token_ids: Sequence[int], config: Any) -> list[Any]:
        prompt = ov.Tensor(np.array([token_ids], dtype=np.int64))
        handle = self._pipeline.add_request(self._num_requests, prompt, config)
        self._num_requests += 1
        outputs: list[Any] = []
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            while handle.can_read():
                outputs.extend(handle.read().values())
        return outputs


@dataclass(frozen=True)
class Quality:
    perplexity: float
    answers: list[list[int]]


def measure(engine: Engine, documents: Sequence[Sequence[int]]) -> Quality:
    log_probabilities = [value for ids in documents for value in engine.log_probabilities(ids)]
    return Quality(
        perplexity=math.exp(-sum(log_probabilities) / len(log_probabilities)),
        answers=[engine.greedy(ids[: len(ids) // PROMPT_SHARE]) for ids in documents],
    )


def agreement(answers: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> float:
    """The share of answers that are equal to the last token."""
    return sum(a == r for a, r in zip(answers, reference, strict=True)) / len(reference)


@cache
def build(output: Path, precision: str) -> EngineFolder:
    subprocess.run(
        [sys.executable, "-m", "deepinfer", "build", "--model", "sample", "--output", str(output)]
        + ["--name", precision, "--precision", precision],
        check=True,
        capture_output=True,
    )
    return read_engine(output / precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the engines")
    parser.add_argument("--documents", type=int, default=150)
    arguments = parser.parse_args()
    reference: Quality | None = None
    documents: list[list[int]] = []
    print("| engine | size, MB | perplexity | cost | greedy answers equal to fp32's |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        engine = build(arguments.output, variant.precision)
        if not documents:
            tokenizer = Tokenizer.from_file(str(engine.tokenizer_dir / "tokenizer.json"))
            texts = held_out_documents(arguments.documents)
            documents = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        quality = measure(Engine(engine, variant.overrides), documents)
        reference = reference or quality
        cost = quality.perplexity / reference.perplexity - 1
        size = engine.manifest.files["payload/openvino_model.bin"].size_bytes / 1e6
        print(
            f"| {variant.name} | {size:.1f} | {quality.perplexity:.4f} | {cost:+.2%} "
            f"| {agreement(quality.answers, reference.answers):.0%} |",
            flush=True,
        )
    num_tokens = sum(len(ids) for ids in documents)
    print(
        f"\n{len(documents)} documents, {num_tokens:,} tokens, {GREEDY_TOKENS} greedy tokens each"
    )


if __name__ == "__main__":
    main()
