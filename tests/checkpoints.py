"""Tiny Hugging Face checkpoints with random weights, made on the spot and the same each time.

`make_checkpoint` writes a folder as a hub repository would be: config, generation config,
safetensors, a byte-level BPE tokenizer and a chat template. The models say nothing sensible, but
every part of them is real.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "mixtral",
    "qwen3_moe",
    "granite",
    "olmo2",
    "smollm3",
)
VOCAB_SIZE = 384  # 256 bytes, the special tokens, and the merges that TEXT gives
BOS, EOS, PAD, IM_START, IM_END = SPECIAL_TOKENS = (
    "<|begin|>",
    "<|end|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = (
    "The river ran past the mill and the miller counted sacks of flour in the evening light.",
    "A lamp in the window said that somebody was still awake and reading a letter.",
    "Twelve birds and seven birds are nineteen birds, unless two of them fly away.",
    "Größe, naïve café, 東京の朝, и вечер тоже: words from other places belong here.",
)


def make_checkpoint(
    folder: Path,
    architecture: str = "llama",
    *,
    dtype: str = "float32",
    seed: int = 0,
    vocab_padding: int = 0,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    num_experts: int = 4,
    max_position_embeddings: int = 512,
    sliding_window: int | None = None,
    eos_token_ids: Sequence[int] | None = None,
    tied: bool = False,
    sharded: bool = False,
    chat_template_place: str = "chat_template.jinja",
) -> Path:
    """Write a checkpoint into `folder` and return it. The first call imports torch, for seconds.

    `vocab_padding` is how many more rows the embedding has than the tokenizer has tokens.
    `eos_token_ids` None takes the tokenizer's two end tokens. `chat_template_place` is the file
    that carries the chat template, or "" for none.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer = _train_tokenizer()
    special_ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    if eos_token_ids is None:
        eos_token_ids = (special_ids[EOS], special_ids[IM_END])
    config = _model_config(
        architecture,
        vocab_size=tokenizer.get_vocab_size() + vocab_padding,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        num_experts=num_experts,
        max_position_embeddings=max_position_embeddings,
        sliding_window=sliding_window,
        tie_word_embeddings=tied,
        bos_token_id=special_ids[BOS],
        pad_token_id=special_ids[PAD],
        eos_token_id=special_ids[EOS],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms begin as ones, biases as zeros: too easy to get right
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.generation_config = GenerationConfig(
        bos_token_id=special_ids[BOS],
        pad_token_id=special_ids[PAD],
        eos_token_id=list(eos_token_ids),
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size="100KB" if sharded else "5GB")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(folder, chat_template_place)
    return folder


def _train_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def _model_config(architecture: str, **dims: Any) -> Any:
    import transformers

    num_experts = dims.pop("num_experts")
    sliding_window = dims.pop("sliding_window")
    head_dim = dims["head_dim"]
    dims["initializer_range"] = 0.1  # wide enough that random logits differ well
    dims["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    if architecture == "llama":
        return transformers.LlamaConfig(**dims)
    if architecture == "mistral":
        return transformers.MistralConfig(sliding_window=sliding_window, **dims)
    if architecture == "mixtral":
        return transformers.MixtralConfig(
            num_local_experts=num_experts, sliding_window=sliding_window, **dims
        )
    if architecture == "qwen3":
        return transformers.Qwen3Config(**dims)
    if architecture == "gemma3":
        return transformers.Gemma3TextConfig(**dims)
    if architecture == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            num_experts=num_experts,
            num_experts_per_tok=2,
            moe_intermediate_size=dims["intermediate_size"] // 2,
            **dims,
        )
    # The others have no head_dim of their own: it is hidden_size over heads.
    if dims["hidden_size"] != head_dim * dims["num_attention_heads"]:
        raise ValueError(f"{architecture} needs hidden_size == num_heads * head_dim")
    del dims["head_dim"]
    if architecture == "phi3":
        return transformers.Phi3Config(sliding_window=sliding_window, **dims)
    others = {
        "granite": transformers.GraniteConfig,
        "olmo2": transformers.Olmo2Config,
        "qwen2": transformers.Qwen2Config,
        "smollm3": transformers.SmolLM3Config,
    }
    return others[architecture](**dims)


def _write_tokenizer_config(folder: Path, chat_template_place: str) -> None:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": IM_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template_place == "tokenizer_config.json":
        config["chat_template"] = CHAT_TEMPLATE
    elif chat_template_place == "tokenizer_config.json:named":
        config["chat_template"] = [
            {"name": "tool_use", "template": "tools: " + CHAT_TEMPLATE},
            {"name": "default", "template": CHAT_TEMPLATE},
        ]
    elif chat_template_place == "chat_template.json":
        text = json.dumps({"chat_template": CHAT_TEMPLATE})
        (folder / "chat_template.json").write_text(text, encoding="utf-8")
    elif chat_template_place == "chat_template.jinja":
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    elif chat_template_place:
        raise ValueError(f"no such place for a chat template: {chat_template_place!r}")
    text = json.dumps(config, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def make_adapter(
    folder: Path,
    checkpoint: Path,
    *,
    rank: int = 4,
    alpha: float = 16,
    target_modules: Sequence[str] = ("q_proj", "v_proj", "down_proj"),
    seed: int = 1,
    **options: Any,
) -> Path:
    """Write a LoRA adapter of `checkpoint` into `folder` as `peft` saves it, and return it.

    Its B is not zero, as it is before training: the adapter changes what the model says.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
        **options,
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder
