"""What the library reads of a Hugging Face folder before it builds: config, quantisation, texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.contract.double.configs import MODEL_MAP, QuantAlgo
from tests.contract.double.record import message, recorded

MXFP4, FP8 = "mxfp4", "fp8"


def read_hf_config(folder: Path) -> dict[str, Any]:
    """Raises NotImplementedError for an architecture that is not in MODEL_MAP.

    The library reads the configuration through transformers and lets it run the folder's code,
    whatever `trust_remote_code` it was given itself.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:  # transformers takes seconds to import, and has nothing to run else
        from transformers import AutoConfig

        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    architecture = config["architectures"][0]
    if architecture not in MODEL_MAP:
        raise NotImplementedError(message("architecture_not_supported", name=architecture))
    return config


def resolve_dtype(dtype: str, config: dict[str, Any]) -> str:
    """The checkpoint's own for "auto", but no engine computes in float32 by itself."""
    if dtype != "auto":
        return dtype
    found = config.get("torch_dtype") or config.get("dtype") or "float16"
    return "float16" if found == "float32" else str(found)


def prequantized(folder: Path, wanted: Any) -> Any | None:
    """The QuantConfig of a checkpoint that is quantised already, or None for one that is not.

    Raises ValueError where `wanted` asks for something else, NotImplementedError for a format that
    the library does not read.
    """
    path = folder / recorded("quantization")["prequantized"]["file"]
    if path.exists():
        return _from_modelopt(json.loads(path.read_text(encoding="utf-8")), wanted)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
        "quantization_config"
    )
    if found is None:
        return None
    if found.get("quant_method") == FP8 and found.get("weight_block_size"):
        return replace(wanted, quant_algo=QuantAlgo.FP8_BLOCK_SCALES)
    if found.get("quant_method") == MXFP4:
        return replace(wanted, quant_algo=QuantAlgo.W4A16_MXFP4)
    raise NotImplementedError(message("quantization_config", value=found))


def _from_modelopt(content: dict[str, Any], wanted: Any) -> Any:
    rules = recorded("quantization")["prequantized"]
    found = dict(content["quantization"])
    name = found.pop("quant_algo", None)
    if name is None:
        raise ValueError(message("prequantized_without_algorithm"))
    algorithm = QuantAlgo[rules["renamed_algorithms"].get(name, name)]
    _refuse_conflict("quant_algo", wanted.quant_algo, algorithm)
    result = replace(wanted, quant_algo=algorithm)
    kv_name = found.pop("kv_cache_quant_algo", None)
    if kv_name is not None:
        kv_algorithm = QuantAlgo[kv_name]
        _refuse_conflict("kv_cache_quant_algo", wanted.kv_cache_quant_algo, kv_algorithm)
        result.kv_cache_quant_algo = kv_algorithm
    elif wanted.kv_cache_quant_algo not in (None, *rules["kv_cache_when_file_is_silent"]):
        _refuse_conflict("kv_cache_quant_algo", wanted.kv_cache_quant_algo, None)
    for key, value in found.items():
        setattr(result, key, value)
    return result


def _refuse_conflict(name: str, wanted: Any, found: Any) -> None:
    if wanted is not None and wanted != found:
        raise ValueError(message("prequantized_conflict", name=name, wanted=wanted, found=found))


def calibration_texts(folder: Path, calib_config: Any, tokenizer: Any) -> list[str]:
    """The texts that a model is calibrated with. The library's own data set needs a network."""
    name = calib_config.calib_dataset
    rules = recorded("quantization")["calibration_data"]
    if any(word in name for word in rules["taken_for_a_download"]):
        raise ConnectionError(message("calibration_network", name=name))
    if not Path(name).is_dir():
        raise NotImplementedError(message("calibration_folder", name=name))
    if tokenizer is None or tokenizer.pad_token_id is None:
        raise AssertionError(message("pad_token", name=folder))
    path = Path(name) / f"{rules['split']}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    column = rules["column"]
    if any(column not in row for row in rows) or not rows:
        columns = sorted({key for row in rows for key in row})
        raise KeyError(message("calibration_column", column=column, columns=columns))
    return [row[column] for row in rows][: calib_config.calib_batches]


def refuse_misleading_path(folder: Path) -> None:
    """The library's calibration takes some words anywhere in a path for another kind of model."""
    for word in recorded("quantization")["taken_for_another_model"]:
        if word in str(folder):
            raise ValueError(message("taken_for_another_model", word=word, folder=folder))


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
