"""The options of a build: flags override a recipe, which overrides the defaults here.

Recipes are YAML files whose keys are the names of the flags. Whether the options can be met is
decided by the planner; this module only refuses values that have no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from deepinfer.errors import ConfigError
from deepinfer.validation import describe_rule, show_value, suggest

Precision = Literal["auto", "fp32", "fp16", "bf16", "fp8", "nvfp4", "int8", "int4"]
KvCachePrecision = Literal["auto", "fp32", "fp16", "bf16", "fp8", "int8"]
RequestedBackend = Literal["auto", "tensorrt-llm", "openvino"]

AS_ASKED = "as asked"  # the reason of a choice that an option made


class BuildOptions(BaseModel):
    """The options of one build. None and `auto` leave the choice to the planner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, description="Hub id, folder, or `sample`")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub")
    lora: str | None = Field(
        None, min_length=1, description="LoRA adapter to merge into the weights: folder or hub id"
    )
    output: Path = Field(Path("engines"), description="Folder of engines")
    name: str | None = Field(None, description="Name of the engine; by default made from the model")
    backend: RequestedBackend = Field(
        "auto", description="Library that compiles and runs the engine"
    )
    precision: Precision = Field("auto", description="Type of the weights")
    kv_cache_precision: KvCachePrecision = Field("auto", description="Type of the KV cache")
    group_size: int | None = Field(
        None, ge=1, description="Number of int4 weights that share a scale"
    )
    target: str = Field("auto", description="Device: `cpu`, or a GPU by name or compute capability")
    max_batch_size: int | None = Field(
        None, ge=1, description="Maximum number of sequences that run at once"
    )
    max_input_len: int | None = Field(None, ge=1, description="Maximum number of prompt tokens")
    max_seq_len: int | None = Field(
        None, ge=2, description="Maximum number of tokens of prompt and answer together"
    )
    max_num_tokens: int | None = Field(
        None, ge=1, description="Maximum number of tokens computed in one step"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Number of GPUs that split every layer")
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Number of GPUs among which the layers are divided"
    )
    max_lora_rank: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Maximum rank of the LoRA adapters that requests to a GPU engine may name; "
        "without it, none may be named",
    )
    max_loras: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Maximum number of LoRA adapters that a GPU engine keeps in memory",
    )
    calib_data: Path | None = Field(
        None, description="Texts for calibration: a folder, a .jsonl or a .txt file"
    )
    experimental: bool = Field(
        False,
        description="Allow combinations that the library builds but does not list as supported",
    )
    allow_untried_release: bool = Field(
        False, description="Allow a TensorRT-LLM release other than 1.2.1, the only one tested"
    )
    gather_logits: bool = Field(
        False, description="Build a GPU engine that can return top_logprobs"
    )
    smoke_test: bool = Field(True, description="Generate a few tokens after a GPU build")
    trust_remote_code: bool = Field(False, description="Run Python code from the checkpoint")


def describe_values(field: FieldInfo) -> str:
    """What a value of `field` looks like, for `--help`."""
    kind = field.annotation
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    kinds = (kind, *get_args(kind))
    if Path in kinds:
        return "FOLDER" if kind is Path else "PATH"
    return "N" if int in kinds else "TEXT"


def read_options(recipe: Path | None, flags: Mapping[str, Any]) -> BuildOptions:
    """Merge `flags` over `recipe`; a flag that is None was not given.

    Raises ConfigError for a recipe that cannot be read, an unknown key or a value of a wrong kind.
    """
    options = _read_recipe(recipe) if recipe else {}
    options.update({key: value for key, value in flags.items() if value is not None})
    if "model" not in options:
        raise ConfigError(
            "no model is given",
            hint="`--model <hub id | folder | sample>`, or `model:` in the recipe",
        )
    try:
        return BuildOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        source = f"flags or recipe `{recipe}`" if recipe else "flags"
        raise ConfigError(
            f"`{key}` {describe_rule(first)}; {source} give {show_value(first['input'])}"
        ) from error


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read recipe `{path}`: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A number of thousands of digits, a day that no month has; brackets without end.
        reason = " ".join(str(error).split())
        raise ConfigError(f"recipe `{path}` is not YAML: {reason}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"recipe `{path}` is not a mapping of keys to values",
            hint="write one `key: value` per line, such as `precision: int8`",
        )
    for key in loaded:
        if key not in BuildOptions.model_fields:
            raise ConfigError(
                f"recipe `{path}` has an unknown key `{key}`",
                hint=suggest(str(key).replace("-", "_"), BuildOptions.model_fields),
            )
    return loaded
