"""The folder of links that TensorRT-LLM reads instead of the checkpoint, on a neutral path.

TensorRT-LLM 1.2.1 loads configuration, tokenizer and model with `trust_remote_code=True` whatever
is asked for, and takes a model for another one when certain words occur anywhere in its path.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepinfer.adapter import ADAPTER_CONFIG_NAME
from deepinfer.checkpoint import CONFIG_NAME, TOKENIZER_CONFIG_NAME, Checkpoint
from deepinfer.compiler.tokenizer_files import without_code
from deepinfer.errors import BuildError

# Anywhere in a path, the library takes these for the model "MPT" ("prompts" holds it), VILA and
# LLaVA, or for data sets with other columns: quantize_by_modelopt.py of 1.2.1.
MISLEADING_WORDS = (
    *("mpt", "vila", "llava-onevision-qwen2"),
    *("cnn_dailymail", "pileval", "scienceqa", "science_qa"),
)
FALLBACK_DIRS = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def neutral_folder(preferred: Path) -> Iterator[Path]:
    """A new folder without a misleading word in its path, for small files and links.

    It is `preferred` where that will do, and otherwise a temporary one, removed at the end. Raises
    BuildError when no place is left.
    """
    preferred = preferred.absolute()
    if find_misleading_word(preferred) is None:
        preferred.mkdir(parents=True)
        yield preferred
        return
    for parent in (tempfile.gettempdir(), *FALLBACK_DIRS):
        if find_misleading_word(Path(parent)) is None and Path(parent).is_dir():
            break
    else:
        word = find_misleading_word(preferred)
        raise BuildError(
            f"TensorRT-LLM would take the model in `{preferred}` for another one, because of "
            f"`{word}` in its path",
            hint="choose an `--output` without that word, or set TMPDIR to a folder without it",
        )
    folder = _make_folder(Path(parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_misleading_word(path: Path) -> str | None:
    text = str(path).lower()
    return next((word for word in MISLEADING_WORDS if word in text), None)


def _make_folder(parent: Path) -> Path:
    while True:  # the random part of a name can hold a word as well
        folder = Path(tempfile.mkdtemp(prefix="deepinfer-", dir=parent))
        if find_misleading_word(folder) is None:
            return folder
        folder.rmdir()


def link_checkpoint(
    checkpoint: Checkpoint, folder: Path, *, trust_remote_code: bool, needs_pad_token: bool
) -> Path:
    """Make `folder`, with links to the checkpoint's files, and a config.json as 1.2.1 reads it.

    Without `trust_remote_code` it has no Python files and no configuration that names one. With
    `needs_pad_token` the tokenizer has one: calibration pads its texts, and any token will do. It
    never has an adapter's configuration: transformers would load the base that is named there.
    """
    folder.mkdir()
    for file in checkpoint.folder.resolve().iterdir():
        if file.name == ADAPTER_CONFIG_NAME:
            continue
        config = _read_config(file)
        changed = config
        if config is not None:
            changed = config if trust_remote_code else without_code(config)
            if file.name == TOKENIZER_CONFIG_NAME and needs_pad_token:
                changed = _with_pad_token(changed)
            if file.name == CONFIG_NAME:
                changed = as_transformers_4_reads(changed)
                if not changed.get("quantization_config", True):  # empty, it only misleads readers
                    changed = {k: v for k, v in changed.items() if k != "quantization_config"}
        if changed != config:
            text = json.dumps(changed, ensure_ascii=False)
            (folder / file.name).write_text(text, encoding="utf-8")
        elif trust_remote_code or (file.suffix != ".py" and not file.is_dir()):
            (folder / file.name).symlink_to(file)
    return folder


def _read_config(file: Path) -> dict[str, Any] | None:
    """The content of a configuration file; None for any other file and for a damaged one."""
    if not file.name.endswith("config.json") or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def as_transformers_4_reads(config: dict[str, Any]) -> dict[str, Any]:
    """The same model for the transformers of the image, which is of before 5.

    It does not know `rope_parameters`, in which transformers 5 writes all of RoPE, and would
    compute with its default theta and without scaling.
    """
    nested = config.get("rope_parameters")
    if not isinstance(nested, dict) or config.get("rope_theta") is not None:
        return config
    changed = {key: value for key, value in config.items() if key != "rope_parameters"}
    # One set for all layers, or one for each kind of attention, as Gemma 3 has them.
    of_all = nested.get("full_attention", nested)
    of_windows = nested.get("sliding_attention")
    if "rope_theta" in of_all:
        changed["rope_theta"] = of_all["rope_theta"]
    if isinstance(of_windows, dict) and "rope_theta" in of_windows:
        changed["rope_local_base_freq"] = of_windows["rope_theta"]
    if of_all.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in of_all.items() if key != "rope_theta"}
        changed.setdefault("rope_scaling", scaling)
    return changed


def _with_pad_token(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("pad_token") or not config.get("eos_token"):
        return config
    return config | {"pad_token": config["eos_token"]}
