"""Writes an engine's `tokenizer/`: what the API process needs to turn text into tokens and back.

Every checkpoint ends up in the same shape: a `tokenizer.json`, and each chat template in a file of
its own, wherever it was before.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

from deepinfer.checkpoint import (
    CHAT_TEMPLATE_NAME,
    CONFIG_NAME,
    DEFAULT_CHAT_TEMPLATE,
    GENERATION_CONFIG_NAME,
    NAMED_CHAT_TEMPLATES_DIR,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    Checkpoint,
    read_chat_templates,
)
from deepinfer.errors import BackendError, BuildError

SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model")
# What transformers needs to convert such a file, by module, and the package to install for it.
SENTENCEPIECE_MODULES = {
    "sentencepiece": "sentencepiece>=0.2,<0.3",
    "google.protobuf": "protobuf>=4,<8",
}
TIKTOKEN_MODULES = {"tiktoken": "tiktoken"}
MAX_LINE_BYTES = 4096
COPIED_NAMES = (GENERATION_CONFIG_NAME, "special_tokens_map.json")


def write_tokenizer(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> None:
    """Make `folder` and fill it. Raises BuildError for a tokenizer that cannot be converted."""
    folder.mkdir()
    source = checkpoint.folder
    for name in COPIED_NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TOKENIZER_NAME).is_file():
        shutil.copyfile(source / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    else:
        _convert_slow_tokenizer(source, folder / TOKENIZER_NAME, trust_remote_code)
    for name, template in read_chat_templates(source).items():
        path = folder / CHAT_TEMPLATE_NAME
        if name != DEFAULT_CHAT_TEMPLATE:
            path = folder / NAMED_CHAT_TEMPLATES_DIR / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8")
    for name in (CONFIG_NAME, TOKENIZER_CONFIG_NAME):
        if (source / name).is_file():
            config = without_code(json.loads((source / name).read_text(encoding="utf-8")))
            config.pop("chat_template", None)
            text = json.dumps(config, ensure_ascii=False, indent=2)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of transformers that names no Python code of its own folder.

    A tokenizer class that only such code has becomes the class that reads any tokenizer.json.
    """
    named = config.get("auto_map")
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    if isinstance(named, dict) and "AutoTokenizer" in named and "tokenizer_class" in kept:
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept


def check_converter(checkpoint: Checkpoint) -> None:
    """Raise BackendError when what converts the tokenizer is missing, before anything is loaded."""
    source = checkpoint.folder
    if (source / TOKENIZER_NAME).is_file():
        return
    models = [source / name for name in SENTENCEPIECE_NAMES if (source / name).is_file()]
    if not models:
        return
    with open(models[0], "rb") as file:
        # tiktoken's files have a token in base64 and its rank on each line.
        is_tiktoken = re.match(rb"[A-Za-z0-9+/=]+ \d+\s", file.readline(MAX_LINE_BYTES)) is not None
    needed = TIKTOKEN_MODULES if is_tiktoken else SENTENCEPIECE_MODULES
    missing = [package for name, package in needed.items() if not _is_installed(name)]
    if missing:
        packages = " ".join(f"'{package}'" for package in missing)
        raise BackendError(
            f"`{checkpoint.source}` has its tokenizer in {models[0].name} alone, which cannot be "
            f"converted to a {TOKENIZER_NAME} without packages that are not installed",
            hint=f"pip install {packages}",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _convert_slow_tokenizer(source: Path, path: Path, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=trust_remote_code
        )
        tokenizer.backend_tokenizer.save(str(path))
    except Exception as error:
        # transformers fails in as many ways as there are tokenizers.
        reason = " ".join(str(error).split())
        raise BuildError(
            f"the checkpoint has no {TOKENIZER_NAME}, and its tokenizer cannot be converted: "
            f"{reason}",
            hint=f"save it once with transformers, and put {TOKENIZER_NAME} beside the weights",
        ) from error
