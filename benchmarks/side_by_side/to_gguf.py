"""Writes a checkpoint of `random_model.py` as GGUF, weights as q8_0: CHECKPOINT PATH.

Runs in the environment of llama.cpp, where there is `gguf` and nothing of ours. llama.cpp's own
converter is no part of any package; this one knows Qwen2's shape and tokenizers of single bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ARCHITECTURE = gguf.MODEL_ARCH.QWEN2
WEIGHT_TYPE = gguf.GGMLQuantizationType.Q8_0
SPACE, NEWLINE = "Ġ", "Ċ"


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """From safetensors, whose bf16 numpy does not have: its bits are the upper half of a float."""
    content = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    for name, entry in json.loads(content[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", f"{name} is {entry['dtype']}"
        first, last = (start + offset for offset in entry["data_offsets"])
        bits = content[first:last].view(np.uint16).astype(np.uint32) << 16
        yield name, bits.view(np.float32).reshape(entry["shape"])


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: dict[str, Any], eos: int) -> None:
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    texts = sorted(vocab, key=vocab.__getitem__)
    kinds = [gguf.TokenType.NORMAL] * len(texts)
    kinds[eos] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([show(text, i) if i < eos else text for i, text in enumerate(texts)])
    writer.add_token_types(kinds)
    writer.add_token_merges(["byte0 byte1"])  # llama.cpp wants some, and this one never applies
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(False)


def show(text: str, token_id: int) -> str:
    """A byte that is no text by itself is spelled: the server would hold it back, and its event be
    missing from the count. Prompts are ASCII and never need it."""
    return text if text.isascii() or text in (SPACE, NEWLINE) else f"byte{token_id}"


def main() -> None:
    checkpoint, output = map(Path, sys.argv[1:])
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(output, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    add_shape(writer, config)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    add_tokenizer(writer, tokenizer, config["eos_token_id"])
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    for name, tensor in read_tensors(checkpoint / "model.safetensors"):
        shown = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if tensor.ndim == 1:  # norms and biases
            writer.add_tensor(shown, tensor)
        else:
            quantized = gguf.quants.quantize(tensor, WEIGHT_TYPE)
            writer.add_tensor(shown, quantized, raw_dtype=WEIGHT_TYPE)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
