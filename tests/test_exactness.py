"""At `--precision fp32`, greedy tokens over HTTP are those of transformers in float32.

The checkpoints are random and the reference is computed here. Each token has a text of its own, so
the text of an answer says exactly which tokens it was made of.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from pathlib import Path

import httpx
import pytest

from tests.building import BuildEngine
from tests.checkpoints import VOCAB_SIZE
from tests.server.serving import serving

NUM_PROMPTS = 20
NUM_TOKENS = 64
CONCURRENCY = 16
EXACT_ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "phi3")
REQUEST_DEADLINE_S = 120.0


def write_spelling_tokenizer(checkpoint: Path) -> None:
    """Replace the tokenizer by one that spells token 17 as ` w17`, and no token as special."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {f"Ġw{i}": i for i in range(VOCAB_SIZE)}
    vocab |= {char: VOCAB_SIZE + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))


def read_spelling(text: str) -> list[int]:
    return [int(number) for number in re.findall(r" w(\d+)", text)]


def greedy_by_transformers(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The most likely token at each place, by the reference implementation, one prompt a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


async def complete(client: httpx.AsyncClient, prompt: list[int]) -> list[int]:
    body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["usage"]["completion_tokens"] == NUM_TOKENS, answer
    return read_spelling(answer["choices"][0]["text"])


async def complete_all(url: str, prompts: list[list[int]], concurrency: int) -> list[list[int]]:
    gate = asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, prompt: list[int]) -> list[int]:
        async with gate:
            return await complete(client, prompt)

    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_DEADLINE_S) as client:
        return await asyncio.gather(*(one(client, prompt) for prompt in prompts))


@pytest.mark.parametrize("architecture", EXACT_ARCHITECTURES)
async def test_greedy_tokens_over_http_equal_transformers(
    architecture: str, build_engine: BuildEngine
) -> None:
    built = build_engine(architecture, "fp32", edit_checkpoint=write_spelling_tokenizer)
    rng = random.Random(11)
    prompts = [
        [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 60))] for _ in range(NUM_PROMPTS)
    ]
    expected = greedy_by_transformers(built.checkpoint, prompts)
    with serving(built.engine.path) as server:
        alone = await complete_all(server.url, prompts, concurrency=1)
        together = await complete_all(server.url, prompts, CONCURRENCY)
    assert sum(a == e for a, e in zip(alone, expected, strict=True)) == NUM_PROMPTS
    assert sum(a == e for a, e in zip(together, expected, strict=True)) == NUM_PROMPTS
