"""A checkpoint of random weights in the shape of a real model, for measuring speed.

Speed depends on shapes only, so nothing needs to be downloaded. The tokenizer has the real number
of tokens, each with a text of its own, so that detokenising and streaming cost what they would.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Qwen2.5-0.5B: 494 million parameters.
SHAPE: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
NUM_BYTES = 256
EOS = NUM_BYTES


def make_random_checkpoint(folder: Path, shape: Mapping[str, Any] | None = None) -> None:
    """Write the checkpoint into `folder`, about 1 GB of bfloat16; keep one that is there.

    `shape` says what differs from `SHAPE`.
    """
    if (folder / "model.safetensors").exists():
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    fields = SHAPE | dict(shape or {})
    config = Qwen2Config(**fields, eos_token_id=EOS, bos_token_id=None, dtype="bfloat16")
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    _write_tokenizer(folder, fields["vocab_size"])


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    vocab["<|end|>"] = EOS
    vocab |= {f"Ġw{i}": i for i in range(EOS + 1, vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
