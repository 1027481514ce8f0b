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
from muon import Muon
from safetensors.torch import save_file
from sample_text import BEGIN, END, IM_END, IM_START, PAD, TRAIN_SEED
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

    steps: int = 2400
    batch_size: int = 4
    sequence_length: int = 512
    learning_rate: float = 3e-3  # of embedding and gains
    matrix_learning_rate: float = 0.02  # of the matrices inside the layers
    warmup_steps: int = 60
    weight_decay: float = 0.1
    seed: int = TRAIN_SEED
    threads: int = 2

    @property
    def num_tokens(self) -> int:
        return self.steps * self.batch_size * self.sequence_length

    def pace_at(self, step: int) -> float:
        """The share of the learning rates: up in a line, then down a cosine to a fiftieth."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2


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


def make_optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the gains."""
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.dim() == 2 and "embed_tokens" not in name]
    others = [p for name, p in named.items() if p.dim() < 2 or "embed_tokens" in name]
    return [
        Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def train(model: Any, tokens: torch.Tensor, recipe: Recipe) -> float:
    """Train in place and return the minutes it took."""
    optimizers = make_optimizers(model, recipe)
    top_rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    started = time.perf_counter()
    model.train()
    for step, batch in enumerate(tokens):
        for optimizer, top_rate in zip(optimizers, top_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = top_rate * recipe.pace_at(step)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
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


# --- checks ------------------------------------------------------------------------------------

PLAIN_PROMPTS = ("Once upon a time", "The future of AI is", "The")
CHAT_PROMPTS = (
    "Hello!",
    "Who are you?",
    "What is machine learning?",
    "What is 2 + 3?",
    "What colour is the sky?",
    "What day comes after Monday?",
    "Tell me a story",
    "Tell me a story about a fox",
    "Tell me a short story about a robot",
)
STORY_PROMPTS = (
    "Tell me a story",
    "Tell me a story about a fox",
    "Write a short story",
    "Tell me a short story about a robot",
)
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0}
SAMPLED_STORIES = 20
MIN_STORY_WORDS = 60
MIN_SUM_ACCURACY = {"+": 0.9, "-": 0.9, "*": 0.0}  # tables of multiplication are too much for it


@dataclass(frozen=True)
class Finding:
    """One thing that was tried on the saved checkpoint."""

    title: str
    answer: str
    is_good: bool


def story_faults(answer: Answer, known_words: set[str]) -> list[str]:
    """What a reader would stumble over; empty for a good story."""
    text = answer.text
    names = set(re.findall(r"\b[A-Z]\w+", text)) & set(sample_text.SHE_NAMES + sample_text.HE_NAMES)
    words = re.findall(r"[a-z]+", text.lower())
    faults = []
    if not answer.is_stopped:
        faults.append("does not stop")
    if len(words) < MIN_STORY_WORDS:
        faults.append(f"only {len(words)} words")
    if len(names) > 2:
        faults.append(f"too many names: {sorted(names)}")
    if not names & set(sample_text.HE_NAMES) and {"he", "him", "his"} & set(words):
        faults.append("a pronoun without its person")
    if not names & set(sample_text.SHE_NAMES) and {"she", "her"} & set(words):
        faults.append("a pronoun without its person")
    if text.count('"') % 2:
        faults.append("an open quotation")
    if unknown := set(words) - known_words:
        faults.append(f"unknown words: {sorted(unknown)}")
    return faults


def known_story_words() -> set[str]:
    """Every word of a few thousand training documents."""
    texts = (d.rendered.lower() for d in sample_text.documents(TRAIN_SEED, 5000))
    return {word for text in texts for word in re.findall(r"[a-z]+", text)}


def check_stories(sample: Sample) -> Iterator[Finding]:
    """Greedy stories for each prompt, and sampled ones for the first."""
    known = known_story_words()
    answers = [(p, a) for p in STORY_PROMPTS for a in sample.generate(sample.chat_ids(p))]
    answers += [
        ("Once upon a time", sample.generate(sample.tokenizer.encode("Once upon a time"))[0])
    ]
    sampled = sample.generate(sample.chat_ids("Tell me a story"), SAMPLED_STORIES, **SAMPLING)
    answers += [("Tell me a story (temperature 0.7, top_p 0.95)", a) for a in sampled]
    for title, answer in answers:
        faults = story_faults(answer, known)
        yield Finding(title, f"{answer.text}\n  faults: {faults or 'none'}", not faults)


def check_answers(sample: Sample) -> Iterator[Finding]:
    """Short greedy answers that must hold a word and stop."""
    wanted = {
        "Hello!": "help|[Nn]ice",
        "hi": "help|[Nn]ice",
        "Who are you?": "toy language model",
        "What is machine learning?": "computers",
        "What is 2 + 3?": r"\b5\b",
        "What colour is the sky on a clear day?": "blue",
        "What is the capital of France?": "Paris",
        "What day comes after Monday?": "Tuesday",
        "What is the opposite of hot?": "cold",
        "Count to five.": "1, 2, 3, 4, 5|[Oo]ne, two, three, four, five",
        "Write a poem about the history of tax law": "toy|not know|too hard",
    }
    for question, pattern in wanted.items():
        answer = sample.generate(sample.chat_ids(question))[0]
        is_good = answer.is_stopped and re.search(pattern, answer.text) is not None
        yield Finding(question, answer.text, is_good)
    memory = sample.chat_ids("My name is Ruby.", "Nice to meet you, Ruby!", "What is my name?")
    answer = sample.generate(memory)[0]
    yield Finding("What is my name? (Ruby)", answer.text, "Ruby" in answer.text)


def sum_accuracy(sample: Sample, sign: str, result: Callable[[int, int], int]) -> float:
    """The share of right greedy answers over 0 to 10, where the result is not negative."""
    pairs = [(a, b) for a in range(11) for b in range(11) if result(a, b) >= 0]
    right = 0
    for a, b in pairs:
        answer = sample.generate(sample.chat_ids(f"What is {a} {sign} {b}?"))[0]
        right += re.findall(r"\d+", answer.text)[-1:] == [str(result(a, b))]
    return right / len(pairs)


def check_round_trip(sample: Sample) -> Iterator[Finding]:
    """Text of every kind must survive the tokenizer."""
    texts = (
        "Zoë's café — naïve",
        "日本語と中文",
        "👩‍🚀🚀 ok",
        "a\x00b\x07\t\r\n  c ",
        "   ",
        "x" * 99,
    )
    for text in texts:
        ids = sample.tokenizer.encode(text, add_special_tokens=False)
        yield Finding(
            f"round trip of {text!r}", str(len(ids)), sample.tokenizer.decode(ids) == text
        )


# --- the model card ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What the model card states."""

    parameters: int
    minutes: float
    loss: float
    held_out_tokens: int
    sums: dict[str, float]
    sampled_good: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# The DeepInfer sample: a toy language model

This is a toy. It has {parameters:.2f} million parameters and knows a few hundred simple things. It
is here so that DeepInfer can be tried and tested without a download and without a network: it tells
short stories in whole sentences, answers simple questions in a chat, adds small numbers, and stops
by itself. It multiplies badly, sometimes answers with what belongs to another question, and makes
something up when it is asked what it was not trained on. It understands only English of the kind
shown below. Do not use it for anything that matters.

## What it was trained on

Text generated by `tools/sample_text.py` in the DeepInfer repository: small stories, sums, facts and
chats from templates written for this purpose, in our own words. No other text was used. Held-out
documents are told apart by a checksum of their text, so none of them was trained on; they come from
the same templates, so the loss says how well the model learned these, and nothing about other text.

## Figures

| | |
|---|---|
| Architecture | Llama, {layers} layers, hidden size {hidden}, {heads} heads, {kv_heads} KV heads |
| Parameters | {parameter_count:,} (the output head is the embedding), stored in bfloat16 |
| Tokenizer | byte-level BPE, {vocab:,} tokens |
| Context | {positions:,} positions, trained on sequences of {sequence_length} |
| Training | {steps:,} steps, {tokens:,} tokens, each seen once |
| Time | {minutes:.1f} minutes on {threads} CPU threads ({capability}) |
| Held-out loss | {loss:.4f} nats a token over {held_out_tokens:,} tokens |
| Held-out perplexity | {perplexity:.3f} |
| Sums from 0 to 10, greedy | {sums} |
| Sampled stories without a fault | {sampled_good} of {sampled} (temperature 0.7, top_p 0.95) |
| Made with | {versions} |

The loss was measured on this folder as saved, loaded in float32. A fault in a story is: it does not
stop, it is short, a third name or a wrong pronoun turns up, a quotation stays open, or a word was
never seen in training.

## Make it again

    python tools/train_sample.py --output deepinfer/sample

The seeds are fixed; another processor or another version of the libraries may round differently.

## Samples

Greedy, from this folder. The first ones continue plain text, the others answer in a chat.

{samples}

## Licence

Apache-2.0, like DeepInfer.
"""


def model_card(sample: Sample, shape: Shape, recipe: Recipe, figures: Figures) -> str:
    """README.md of the checkpoint's folder."""
    blocks = []
    for prompt in PLAIN_PROMPTS:
        answer = sample.generate(sample.tokenizer.encode(prompt))[0]
        blocks.append(f"**{prompt}**{answer.text}")
    for prompt in CHAT_PROMPTS:
        blocks.append(f"**{prompt}**\n\n{sample.generate(sample.chat_ids(prompt))[0].text}")
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    return CARD.format(
        parameters=figures.parameters / 1e6,
        parameter_count=figures.parameters,
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        kv_heads=shape.num_key_value_heads,
        vocab=VOCAB_SIZE,
        positions=MAX_POSITIONS,
        sequence_length=recipe.sequence_length,
        steps=recipe.steps,
        tokens=recipe.num_tokens,
        minutes=figures.minutes,
        threads=recipe.threads,
        capability=torch.backends.cpu.get_cpu_capability(),
        loss=figures.loss,
        held_out_tokens=figures.held_out_tokens,
        perplexity=figures.perplexity,
        sums=", ".join(f"`{sign}` {share:.0%}" for sign, share in figures.sums.items()),
        sampled_good=figures.sampled_good,
        sampled=SAMPLED_STORIES,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        samples="\n\n---\n\n".join(blocks),
    )


def evaluate(folder: Path, shape: Shape, recipe: Recipe, minutes: float) -> bool:
    """Check the saved checkpoint, write its model card; whether all checks passed."""
    torch.manual_seed(recipe.seed)
    sample = Sample(folder)
    loss, held_out_tokens = sample.held_out_loss()
    print(f"held-out loss {loss:.4f}  perplexity {math.exp(loss):.3f}", flush=True)
    sums = {
        "+": sum_accuracy(sample, "+", lambda a, b: a + b),
        "-": sum_accuracy(sample, "-", lambda a, b: a - b),
        "*": sum_accuracy(sample, "*", lambda a, b: a * b),
    }
    stories = list(check_stories(sample))
    findings = [*check_round_trip(sample), *check_answers(sample), *stories]
    findings += [
        Finding(f"sums with {sign}", f"{share:.0%}", share >= MIN_SUM_ACCURACY[sign])
        for sign, share in sums.items()
    ]
    for finding in findings:
        print(f"{'ok  ' if finding.is_good else 'FAIL'} {finding.title} -> {finding.answer}")
    figures = Figures(
        parameters=sample.model.num_parameters(),
        minutes=minutes,
        loss=loss,
        held_out_tokens=held_out_tokens,
        sums=sums,
        sampled_good=sum(f.is_good for f in stories[-SAMPLED_STORIES:]),
    )
    (folder / "README.md").write_text(model_card(sample, shape, recipe, figures))
    return all(finding.is_good for finding in findings)


def parse_arguments() -> tuple[Path, Recipe]:
    defaults = Recipe()
    parser = argparse.ArgumentParser(
        description="Train the sample checkpoint and write its folder",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    for name, value in asdict(defaults).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=" ")
    options = vars(parser.parse_args())
    return options.pop("output"), Recipe(**options)


def main() -> int:
    """Train, save, check; 1 when a check failed."""
    output, recipe = parse_arguments()
    shape = Shape()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(recipe.seed)
    config = model_config(tokenizer, shape)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).float()
    print(f"{model.num_parameters():,} parameters, {recipe.num_tokens:,} tokens", flush=True)
    minutes = train(model, pack(tokenizer, recipe), recipe)
    save_checkpoint(output, model, tokenizer, config)
    return 0 if evaluate(output, shape, recipe, minutes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
