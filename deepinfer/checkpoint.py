"""What a Hugging Face folder says about its model, without torch and without the weights' bytes.

Configuration files are parsed into a `Checkpoint`; what its safetensors hold is summed up by
`weights.py`. Where the folder came from is not known here.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.errors import CheckpointError, UnreadableModel
from deepinfer.weights import PRECISION_BY_DTYPE, WEIGHTS_INDEX_NAME, Weights, damaged, read_weights

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
QUANTIZATION_NAME = "hf_quant_config.json"  # of NVIDIA ModelOpt
CHAT_TEMPLATE_NAME = "chat_template.jinja"
LEGACY_CHAT_TEMPLATE_NAME = "chat_template.json"
NAMED_CHAT_TEMPLATES_DIR = "additional_chat_templates"  # one `<name>.jinja` for each
DEFAULT_CHAT_TEMPLATE = "default"
CHAT_TEMPLATE_NAME_PATTERN = re.compile(r"\w[\w.-]*")  # each becomes the name of a file
# A tokenizer without tokenizer.json is one of these, which transformers converts.
SLOW_TOKENIZER_NAMES = ("tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
SMALL_FILE_NAMES = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    CHAT_TEMPLATE_NAME,
    LEGACY_CHAT_TEMPLATE_NAME,
    WEIGHTS_INDEX_NAME,
    QUANTIZATION_NAME,
    "special_tokens_map.json",
    "added_tokens.json",
    *SLOW_TOKENIZER_NAMES,
)

# RoPE whose factors change when a sequence passes the original length. One long sequence would
# change every other in its batch, so the original length is the limit.
LENGTH_DEPENDENT_ROPE_TYPES = frozenset({"longrope", "su", "dynamic"})
# What transformers takes where config.json does not say it, as it leaves out what is its default.
TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3_text", "cohere", "starcoder2"})
KEY_BIAS_BY_DEFAULT = frozenset({"qwen2", "qwen2_moe", "starcoder2"})
# Those without a gate have two matrices in an MLP: up and down.
UNGATED_MLP_MODELS = frozenset({"nemotron", "starcoder2"})


MAX_DIMENSION = 2**31 - 1  # as the libraries count


@dataclass(frozen=True)
class ModelDims:
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    num_experts: int = 0  # 0 for a dense model
    expert_intermediate_size: int = 0
    num_experts_per_token: int = 0
    shared_expert_intermediate_size: int = 0  # of the expert that every token meets
    num_mlp_matrices: int = 3  # of hidden size by intermediate size: gate, up and down

    @property
    def num_expert_parameters(self) -> int:
        size = self.expert_intermediate_size or self.intermediate_size
        return self.num_layers * self.num_experts * 3 * self.hidden_size * size

    @property
    def num_layer_parameters(self) -> int:
        """All but embedding and LM head: attention, MLP or experts with router, norms."""
        hidden_size = self.hidden_size
        attention = hidden_size * self.head_dim * 2 * (self.num_attention_heads + self.num_kv_heads)
        mlp = self.num_mlp_matrices * hidden_size * self.intermediate_size
        if self.num_experts:
            mlp = 3 * hidden_size * self.shared_expert_intermediate_size
        layer = attention + mlp + self.num_experts * hidden_size + 2 * hidden_size
        return self.num_layers * layer + self.num_expert_parameters + hidden_size


@dataclass(frozen=True)
class Quantization:
    """What ModelOpt did to a checkpoint, in its own words, which are TensorRT-LLM's."""

    quant_algo: str  # such as "FP8" or "NVFP4"
    kv_cache_quant_algo: str | None = None

    @property
    def is_packed(self) -> bool:
        """Whether several weights share a byte, so that safetensors headers do not count them."""
        return "FP4" in self.quant_algo or self.quant_algo.startswith("W4")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding, as config.json describes it."""

    type: str = "default"  # in transformers' words, such as "llama3" or "yarn"
    theta: float | None = None  # None: config.json does not say it
    factor: float = 1.0
    original_max_positions: int | None = None
    has_alpha: bool = False  # of "dynamic", as Hunyuan's models have it

    def reach(self, positions: int) -> int:
        """Tokens that it was made for, of a model with so many `max_position_embeddings`.

        YaRN reaches its factor times the original length.
        """
        if self.type != "yarn":
            return positions
        return max(positions, int((self.original_max_positions or positions) * self.factor))


@dataclass(frozen=True)
class Checkpoint:
    id: str
    source: str  # what `--model` names: the id, or the folder's path
    revision: str | None
    folder: Path
    architecture: str
    model_type: str
    dims: ModelDims
    weights: Weights
    is_tied: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    quant_method: str | None = None  # of a checkpoint that is quantised already
    quantization: Quantization | None = None  # by ModelOpt
    rope: Rope = Rope()
    is_length_limited_by_rope: bool = False
    sliding_window: int | None = None  # tokens that some layers look back at; None: all of them
    has_key_bias: bool = False
    renormalizes_experts: bool = False  # the weights of the chosen ones, to a sum of 1
    has_chat_template: bool = False
    has_counted_weights: bool = False  # from the dimensions: there are no weights to read

    @property
    def precision(self) -> str:
        """What the weights are stored in: fp32, bf16, fp16, fp8, or as ModelOpt names it."""
        if self.quantization is not None:
            return self.quantization.quant_algo.lower()
        return PRECISION_BY_DTYPE[self.weights.dtype]

    @property
    def num_parameters(self) -> int:
        if self.quantization is not None and self.quantization.is_packed:
            return self.dims.num_layer_parameters + self.num_embedding_parameters
        return self.weights.num_parameters - self._num_ignored

    @property
    def num_embedding_parameters(self) -> int:
        """Of the token embedding and the LM head, which are one when tied."""
        weights = self.weights
        return weights.embedding_parameters + weights.lm_head_parameters - self._num_ignored

    @property
    def _num_ignored(self) -> int:
        # Some files carry the LM head although the configuration ties it to the embedding.
        return self.weights.lm_head_parameters if self.is_tied else 0

    @property
    def max_positions(self) -> int:
        return self.rope.reach(self.dims.max_position_embeddings)

    @property
    def has_weights(self) -> bool:
        """Whether the weights are in the folder, and not only on the hub."""
        return all((self.folder / name).is_file() for name in self.weights.files)


def read_checkpoint(
    folder: Path,
    *,
    model_id: str | None = None,
    source: str | None = None,
    revision: str | None = None,
    weights: Weights | None = None,
    has_counted_weights: bool = False,
) -> Checkpoint:
    """Read `folder`. With `weights` given, its safetensors are not looked for.

    `source` is what `--model` named, where that is neither `model_id` nor the folder itself.

    When those are counted and not real, the tokenizer may be missing as well. Raises
    UnreadableModel when config.json does not say the model's dimensions, and CheckpointError when
    it is not a checkpoint, is damaged, or has no safetensors.
    """
    source = source or model_id or str(folder.resolve())
    # Clients see the id: a folder goes by its name, and its path stays on this machine.
    model_id = model_id or folder.resolve().name
    _require_config(folder, source)
    config = _read_json(folder / CONFIG_NAME)
    architecture = _read_architecture(config, source)
    text_config = config.get("text_config") or config
    weights = weights or read_weights(folder)
    if not has_counted_weights:
        _require_tokenizer(folder, source)
    generation = _read_optional_json(folder / GENERATION_CONFIG_NAME)
    dims = _read_dims(text_config, architecture)
    rope = _read_rope(text_config)
    return Checkpoint(
        id=model_id,
        source=source,
        revision=revision,
        folder=folder,
        architecture=architecture,
        model_type=str(config.get("model_type", "")),
        dims=dims,
        weights=weights,
        is_tied=not weights.lm_head_parameters or _is_tied(config),
        eos_token_ids=_find_eos_token_ids(folder, generation, text_config, dims.vocab_size),
        bos_token_id=_first_token_id(generation, text_config, "bos_token_id"),
        pad_token_id=_first_token_id(generation, text_config, "pad_token_id"),
        quant_method=_find_quant_method(folder, config),
        quantization=_read_quantization(folder / QUANTIZATION_NAME),
        rope=rope,
        is_length_limited_by_rope=rope.type in LENGTH_DEPENDENT_ROPE_TYPES,
        sliding_window=_find_sliding_window(text_config),
        has_key_bias=_has_key_bias(text_config, weights),
        renormalizes_experts=bool(text_config.get("norm_topk_prob")),
        has_chat_template=bool(read_chat_templates(folder)),
        has_counted_weights=has_counted_weights,
    )


@dataclass(frozen=True)
class Positions:
    """How long a model's sequences can be."""

    max_positions: int
    is_limited_by_rope: bool  # which changes for sequences that are longer


def read_positions(path: Path) -> Positions:
    """What a `config.json` says by itself. Raises CheckpointError when it says nothing."""
    if not path.is_file():
        raise CheckpointError(f"there is no `{path}`")
    config = _read_json(path)
    text_config = config.get("text_config") or config
    dims = _read_dims(text_config, _read_architecture(config, str(path.parent)))
    rope = _read_rope(text_config)
    return Positions(
        rope.reach(dims.max_position_embeddings), rope.type in LENGTH_DEPENDENT_ROPE_TYPES
    )


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Jinja sources by name, of which "default" is the usual one; empty when there is none.

    `folder` is a checkpoint or an engine's `tokenizer/`. As in transformers, `chat_template.jinja`
    and the folder of named ones replace what the configuration says. Raises CheckpointError.
    """
    templates: dict[str, str] = {}
    default_path = folder / CHAT_TEMPLATE_NAME
    if default_path.is_file():
        templates[DEFAULT_CHAT_TEMPLATE] = _read_text(default_path)
    else:
        for name in (TOKENIZER_CONFIG_NAME, LEGACY_CHAT_TEMPLATE_NAME):
            path = folder / name
            found = _read_optional_json(path).get("chat_template")
            if isinstance(found, str):
                templates = {DEFAULT_CHAT_TEMPLATE: found}
            elif isinstance(found, list):
                templates = _read_named_templates(found, path)
            if templates:
                break
    for path in find_named_chat_templates(folder):
        templates[path.stem] = _read_text(path)
    return templates


def find_named_chat_templates(folder: Path) -> list[Path]:
    """The files of named chat templates in a checkpoint or an engine's `tokenizer/`."""
    return sorted(folder.glob(f"{NAMED_CHAT_TEMPLATES_DIR}/*.jinja"))


def _read_named_templates(entries: list[Any], path: Path) -> dict[str, str]:
    templates = {}
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {}
        name, template = entry.get("name"), entry.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise damaged(path, "an entry of its `chat_template` lacks its name or its template")
        if not CHAT_TEMPLATE_NAME_PATTERN.fullmatch(name):
            raise damaged(path, f"{name!r} cannot be the name of a chat template")
        templates[name] = template
    return templates


def digest_source(checkpoint: Checkpoint, *, with_code: bool = False) -> str:
    """SHA-256 over the names, sizes and SHA-256 of the files that a build reads.

    Reads every byte of the weights. `with_code` also covers the Python files beside them.
    """
    names = {*SMALL_FILE_NAMES, *checkpoint.weights.files}
    if with_code:
        names.update(path.name for path in checkpoint.folder.glob("*.py"))
    names.update(
        f"{NAMED_CHAT_TEMPLATES_DIR}/{path.name}"
        for path in find_named_chat_templates(checkpoint.folder)
    )
    digest = hashlib.sha256()
    for name in sorted(names):
        path = checkpoint.folder / name
        if path.is_file():
            with open(path, "rb") as file:
                file_digest = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{name}\0{path.stat().st_size}\0{file_digest}\n".encode())
    return digest.hexdigest()


def _require_config(folder: Path, source: str) -> None:
    if (folder / CONFIG_NAME).is_file():
        return
    hint = "give a folder with config.json, safetensors and a tokenizer"
    if (folder / "adapter_config.json").is_file():
        hint = "this is an adapter: give its base model, and the adapter with `--lora`"
    elif (folder / "model_index.json").is_file():
        hint = "this is a diffusion pipeline: DeepInfer compiles language models"
    elif any(folder.glob("*.gguf")):
        hint = "GGUF is another engine's format: give the checkpoint that it was made from"
    raise CheckpointError(
        f"`{source}` is not a Hugging Face checkpoint: it has no {CONFIG_NAME}", hint=hint
    )


def _require_tokenizer(folder: Path, source: str) -> None:
    if not any((folder / name).is_file() for name in (TOKENIZER_NAME, *SLOW_TOKENIZER_NAMES)):
        raise CheckpointError(
            f"`{source}` has no tokenizer",
            hint=f"put the {TOKENIZER_NAME} of the model beside its weights",
        )


def _read_architecture(config: dict[str, Any], source: str) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        return architectures[0]
    raise CheckpointError(
        f"the {CONFIG_NAME} of `{source}` names no architecture",
        hint="give a checkpoint of a causal language model",
    )


def _read_dims(config: dict[str, Any], architecture: str) -> ModelDims:
    def read(*keys: str, default: int | None = None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                if value > MAX_DIMENSION:
                    raise UnreadableModel(
                        f"`{key}` in the {CONFIG_NAME} of this {architecture} must be at most "
                        f"{MAX_DIMENSION:,}",
                        architecture,
                    )
                return value
        if default is not None:
            return default
        raise UnreadableModel(
            f"the {CONFIG_NAME} of this {architecture} has no `{keys[0]}`", architecture
        )

    hidden_size = read("hidden_size", "n_embd", "d_model")
    num_heads = read("num_attention_heads", "n_head", "num_heads")
    max_positions = read("max_position_embeddings", "n_positions", "seq_length")
    rope = _read_rope(config)
    if rope.type in LENGTH_DEPENDENT_ROPE_TYPES:
        max_positions = min(max_positions, rope.original_max_positions or max_positions)
    return ModelDims(
        hidden_size=hidden_size,
        num_layers=read("num_hidden_layers", "n_layer", "num_layers"),
        num_attention_heads=num_heads,
        num_kv_heads=read("num_key_value_heads", default=num_heads),
        head_dim=read("head_dim", default=hidden_size // num_heads),
        intermediate_size=read("intermediate_size", "n_inner", default=4 * hidden_size),
        vocab_size=read("vocab_size"),
        max_position_embeddings=max_positions,
        num_experts=read("num_local_experts", "num_experts", default=0),
        expert_intermediate_size=read("moe_intermediate_size", default=0),
        num_experts_per_token=read("num_experts_per_tok", default=0),
        shared_expert_intermediate_size=read("shared_expert_intermediate_size", default=0),
        num_mlp_matrices=2 if config.get("model_type") in UNGATED_MLP_MODELS else 3,
    )


def _read_rope(config: dict[str, Any]) -> Rope:
    nested, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    found = nested or scaling
    found = found if isinstance(found, dict) else {}
    found = found.get("full_attention", found)  # Gemma 3 has one for each kind of attention
    original = found.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings"
    )
    theta = config.get("rope_theta") or found.get("rope_theta")
    return Rope(
        type=str(found.get("rope_type") or found.get("type") or "default"),
        theta=_read_number(theta),
        factor=_read_number(found.get("factor")) or 1.0,
        original_max_positions=original if isinstance(original, int) else None,
        has_alpha="alpha" in found,
    )


def _read_number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None  # an integer of more than 308 digits is no number of a model


def _find_sliding_window(config: dict[str, Any]) -> int | None:
    window = config.get("sliding_window")
    if not isinstance(window, int) or not config.get("use_sliding_window", True):
        return None
    return window


def _has_key_bias(config: dict[str, Any], weights: Weights) -> bool:
    if weights.shapes:
        return any(
            name.endswith((".k_proj.bias", ".qkv_proj.bias", ".c_attn.bias"))
            for name in weights.shapes
        )
    is_biased = config.get("attention_bias", config.get("use_bias"))
    return config.get("model_type") in KEY_BIAS_BY_DEFAULT if is_biased is None else bool(is_biased)


def _is_tied(config: dict[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", config.get("model_type") in TIED_BY_DEFAULT))


def _find_quant_method(folder: Path, config: dict[str, Any]) -> str | None:
    found = config.get("quantization_config")
    if isinstance(found, dict) and found:
        return str(found.get("quant_method", "unknown"))
    return "modelopt" if (folder / QUANTIZATION_NAME).is_file() else None


def _read_quantization(path: Path) -> Quantization | None:
    if not path.is_file():
        return None
    found = _read_json(path).get("quantization")
    if not isinstance(found, dict) or not isinstance(found.get("quant_algo"), str):
        raise damaged(path, "it names no quant_algo")
    kv_cache = found.get("kv_cache_quant_algo")
    return Quantization(found["quant_algo"], str(kv_cache) if kv_cache else None)


def _token_ids(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool))


def _first_token_id(generation: dict[str, Any], config: dict[str, Any], key: str) -> int | None:
    found = _token_ids(generation.get(key)) or _token_ids(config.get(key))
    return found[0] if found else None


def _find_eos_token_ids(
    folder: Path, generation: dict[str, Any], config: dict[str, Any], vocab_size: int
) -> tuple[int, ...]:
    """Every id that ends an answer: the model's own, and the token that ends a chat turn."""
    ids = _token_ids(generation.get("eos_token_id")) or _token_ids(config.get("eos_token_id"))
    ids += _token_ids(_tokenizer_eos_id(folder))
    # An id beyond the vocabulary cannot be generated.
    return tuple(sorted({token_id for token_id in ids if 0 <= token_id < vocab_size}))


def _tokenizer_eos_id(folder: Path) -> int | None:
    config = _read_optional_json(folder / TOKENIZER_CONFIG_NAME)
    token = config.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        return None
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        if entry.get("content") == content:
            return int(token_id)
    tokenizer = _read_optional_json(folder / TOKENIZER_NAME)
    for entry in tokenizer.get("added_tokens") or []:
        if entry.get("content") == content:
            return int(entry["id"])
    vocab = (tokenizer.get("model") or {}).get("vocab")
    return vocab.get(content) if isinstance(vocab, dict) else None


def _read_optional_json(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(path, f"it cannot be read ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON that can be read ({error})") from error
    if not isinstance(value, dict):
        raise damaged(path, "it is not a JSON object")
    return value
