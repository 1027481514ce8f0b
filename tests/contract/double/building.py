"""The steps from a checkpoint's folder to an engine's, with the seconds that each took."""

from __future__ import annotations

import importlib
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.contract.double.build import BuildInput, build
from tests.contract.double.checkpoint import (
    calibration_texts,
    prequantized,
    read_hf_config,
    refuse_misleading_path,
    resolve_dtype,
    weight_bytes,
)
from tests.contract.double.log import logger
from tests.contract.double.record import message, recorded
from tests.contract.double.tokenizer import TransformersTokenizer

BUILD_ENDING_VARIABLE = "DOUBLE_BUILD_ENDING"  # a signal, or one of those of _end_on_command


def build_engine(
    args: Any, source: Path, tokenizer: Any, folder: Path
) -> Iterator[tuple[str, float]]:
    """Write the engine into `folder`; gives the label and duration of each step as it ends."""
    _, load_label, build_label = recorded("llm")["build_steps"]
    started_at = time.perf_counter()
    given = _load_checkpoint(args, source)
    loaded_at = time.perf_counter()
    _end_on_command()
    yield load_label, loaded_at - started_at
    build(given, folder, version_of("tensorrt_llm"), version_of("tensorrt"))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    yield build_label, time.perf_counter() - loaded_at


def _warn_of_outliers(hf_config: dict[str, Any], quant_config: Any) -> None:
    """ModelOpt measures large keys where a model adds a bias to them."""
    if quant_config.kv_cache_quant_algo == "FP8" and hf_config["model_type"] == "qwen2":
        warnings.warn(message("accuracy_warning", value=3.5), stacklevel=2)


def _end_on_command() -> None:
    """Abort as native code does, past Python, or be killed as by a kernel without memory.

    "never" waits for a signal; "orphan" leaves a forked process behind and aborts.
    """
    ending = os.environ.get(BUILD_ENDING_VARIABLE)
    if ending is None:
        return
    if ending == "never":
        print(f"waiting in process {os.getpid()}", flush=True)
        signal.pause()
    if ending == "orphan":
        if (orphan := os.fork()) == 0:
            signal.alarm(60)  # which ends it, should nobody else
            signal.pause()
        print(f"left process {orphan}", flush=True)
        ending = "SIGABRT"
    last_words = message("native_abort")
    os.write(2, f"{last_words}\n".encode())
    os.kill(os.getpid(), signal.Signals[ending])


def load_tokenizer(args: Any, folder: Path | None) -> Any:
    """The tokenizer that was given, or else the folder's, which may be None: that is a warning."""
    if args.skip_tokenizer_init:
        return None
    trusts_code = args.trust_remote_code
    if args.tokenizer is not None:
        is_path = isinstance(args.tokenizer, str | Path)
        path = Path(str(args.tokenizer))
        return TransformersTokenizer(path, trusts_code) if is_path else args.tokenizer
    try:
        return TransformersTokenizer(Path(str(folder)), trusts_code)
    except Exception as error:  # whatever is wrong with it
        logger.warning(message("tokenizer_not_loaded", folder=folder, error=error))
        return None


def version_of(package: str) -> str:
    """Of the package as it is installed, which is what a test chose."""
    version: str = importlib.import_module(package).__version__
    return version


def _load_checkpoint(args: Any, source: Path) -> BuildInput:
    hf_config = read_hf_config(source)
    quant_config = prequantized(source, args.quant_config)
    num_texts = 0
    if quant_config is None:
        quant_config = args.quant_config
        if quant_config._requires_calibration:
            refuse_misleading_path(source)
            tokenizer = TransformersTokenizer(source)
            num_texts = len(calibration_texts(source, args.calib_config, tokenizer))
            _warn_of_outliers(hf_config, quant_config)
    return BuildInput(
        hf_config=hf_config,
        dtype=resolve_dtype(args.dtype, hf_config),
        quant_config=quant_config,
        build_config=args.build_config,
        parallel=args.parallel,
        weight_bytes=weight_bytes(source),
        calibration_texts=num_texts,
        convert_options=args._convert_checkpoint_options,
    )
