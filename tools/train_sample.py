"""Train the sample checkpoint that ships in the package, and write its folder.

    python tools/train_sample.py --output deepinfer/sample

Trains a byte-level BPE tokenizer and a small Llama on the text of `sample_text.py`, saves them in
the Hugging Face layout in bfloat16, loads the folder again as anybody would, measures the held-out
loss, tries a few prompts, and writes the model card. Everything follows from the seeds, up to the
rounding of the machine. It needs torch and transformers and no network.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sample_text
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from sample_text import BEGIN, END, HELD_OUT_SEED, IM_END, IM_START, PAD, TRAIN_SEED
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = (BEGIN, END, IM_START, IM_END, PAD)
VOCAB_SIZE = 4096
MAX_POSITIONS = 2048
TOKENIZER_DOCUMENTS = 20_000
HELD_OUT_DOCUMENTS = 400

# Words with their leading space, single digits, runs of signs, white space: no piece is lost.
WORD_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = """\
{%- if not messages -%}
  {{- raise_exception("messages must hold at least one message") -}}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
  {%- if message.role not in ["system", "developer", "user", "assistant"] -%}
    {{- raise_exception("message role must be system, developer, user or assistant") -}}
  {%- endif -%}
  {%- if message.content is not string -%}
    {{- raise_exception("message content must be a string") -}}
  {%- endif -%}
  {%- set role = "system" if message.role == "developer" else message.role -%}
  {{- "<|im_start|>" + role + "\\n" + message.content + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Shape:
    """The model's size. Hidden and intermediate sizes are multiples of 128, for grouped int4."""

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64


@dataclass(frozen=True)
class Recipe:
    """How it is trained; the defaults made the shipped checkpoint."""

    steps: int = 1100
    batch_size: int = 4
    sequence_length: int = 512
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.1
    seed: int = TRAIN_SEED
    threads: int = 2

    @property
    def num_tokens(self) -> int:
        return self.steps * self.batch_size * self.sequence_length

    def learning_rate_at(self, step: int) -> float:
        """Warm up in a line, then follow a cosine down to a fiftieth."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


# --- tokenizer ---------------------------------------------------------------------------------


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE over the training text; any UTF-8 text survives encode and decode."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (d.rendered for d in sample_text.documents(seed, TOKENIZER_DOCUMENTS))
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
    )
    return tokenizer


# --- training ----------------------------------------------------------------------------------


def model_config(tokenizer: Tokenizer, shape: Shape) -> dict[str, Any]:
    """config.json, in the spelling that transformers 4 and 5 both read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        **asdict(shape),
        "max_position_embeddings": MAX_POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "torch_dtype": "bfloat16",
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: a turn ends with one token and a document with another."""
    return {
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": [tokenizer.token_to_id(IM_END), tokenizer.token_to_id(END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def pack(tokenizer: Tokenizer, recipe: Recipe) -> torch.Tensor:
    """The training tokens, document after document, each seen once: [steps, batch, length]."""
    ids: list[int] = []
    for document in sample_text.documents(recipe.seed, count=10**9):
        ids += tokenizer.encode(document.rendered).ids
        if len(ids) >= recipe.num_tokens:
            break
    rows = torch.tensor(ids[: recipe.num_tokens]).view(-1, recipe.sequence_length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(recipe.seed))]
    return rows.view(recipe.steps, recipe.batch_size, recipe.sequence_length)


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; matrices decay, gains do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def train(model: Any, tokens: torch.Tensor, recipe: Recipe) -> float:
    """Train in place and return the minutes it took."""
    optimizer = make_optimizer(model, recipe)
    started = time.perf_counter()
    model.train()
    for step, batch in enumerate(tokens):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == recipe.steps - 1:
            minutes = (time.perf_counter() - started) / 60
            print(f"step {step:5d}  loss {loss.item():.3f}  {minutes:.1f} min", flush=True)
    return (time.perf_counter() - started) / 60


# --- the folder --------------------------------------------------------------------------------


def save_checkpoint(output: Path, model: Any, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Write everything but the model card; the output head is the embedding and is not stored."""
    output.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(output / "tokenizer.json"))
    (output / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    write_json(output / "config.json", config)
    write_json(output / "generation_config.json", generation_config(tokenizer))
    write_json(
        output / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [IM_START, IM_END],
            "clean_up_tokenization_spaces": False,
            "model_max_length": MAX_POSITIONS,
        },
    )


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class Sample:
    """The saved checkpoint, loaded as anybody would load it, in float32."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def chat_ids(self, *contents: str) -> list[int]:
        """Token ids of a chat in which user and assistant take turns."""
        roles = ("user", "assistant") * len(contents)
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def generate(self, prompt_ids: list[int], count: int = 1, **options: Any) -> list[Answer]:
        """`count` continuations; greedy unless sampling options are given."""
        inputs = torch.tensor([prompt_ids])  # [1, prompt_len]
        output = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=400,
            num_return_sequences=count,
            **(options or {"do_sample": False}),
        )
        return [self._answer(row[len(prompt_ids) :].tolist()) for row in output]

    def _answer(self, ids: list[int]) -> Answer:
        stops = set(self.model.generation_config.eos_token_id)
        end = next((i for i, token in enumerate(ids) if token in stops), None)
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return Answer(text, num_tokens=len(ids[:end]), is_stopped=end is not None)

    def held_out_loss(self) -> tuple[float, int]:
        """Mean loss in nats over every token after the first of each document, and their number."""
        total, count = 0.0, 0
        with torch.inference_mode():
            for text in sample_text.held_out_documents(HELD_OUT_DOCUMENTS):
                ids = torch.tensor([self.tokenizer.encode(text)])  # [1, document_len]
                total += self.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
                count += ids.shape[1] - 1
        return total / count, count


@dataclass(frozen=True)
class Answer:
    """One continuation, and whether the model ended it by itself."""

    text: str
    num_tokens: int
    is_stopped: bool
