"""Whether a build calibrates, where and on how much. What it reads then is not known here."""

from __future__ import annotations

from dataclasses import dataclass

from deepinfer.checkpoint import Checkpoint
from deepinfer.compiler import gpu_footprint
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.published import find_published
from deepinfer.compiler.targets import TargetDevice
from deepinfer.compiler.tensorrt_llm_plan import (
    CALIB_BATCHES,
    CALIB_BATCHES_ON_CPU,
    CALIB_MAX_SEQ_LENGTH,
)
from deepinfer.errors import PlanError
from deepinfer.manifest import Choice
from deepinfer.terminal import format_bytes

MEMORY_SHARE = 0.9  # of a card that ModelOpt may have; of all of it, so that plans stay the same


@dataclass(frozen=True)
class Calibration:
    is_needed: bool
    device: str = "cuda"
    num_batches: int = CALIB_BATCHES
    max_seq_length: int = CALIB_MAX_SEQ_LENGTH


def choose_calibration(
    device: TargetDevice,
    checkpoint: Checkpoint,
    precision: str,
    kv_cache_precision: str,
    options: BuildOptions,
) -> tuple[Calibration, tuple[Choice, ...]]:
    """Raises PlanError for calibration data that would not be read."""
    obstacle = _why_none(checkpoint, precision, kv_cache_precision)
    if obstacle is not None:
        if options.calib_data is not None:
            raise PlanError(
                f"`--calib-data {options.calib_data}` would not be read: {obstacle}",
                hint="leave it away",
            )
        return Calibration(is_needed=False), ()
    assert device.gpu is not None
    need_bytes = gpu_footprint.calibration_bytes(checkpoint)
    in_16_bits = f"calibrating the model in 16 bits takes {format_bytes(need_bytes)}"
    if need_bytes <= device.gpu.total_bytes * MEMORY_SHARE:
        calibration = Calibration(is_needed=True)
        reason = f"{in_16_bits}, which the GPU has"
    else:
        calibration = Calibration(True, "cpu", CALIB_BATCHES_ON_CPU)
        published = find_published(checkpoint.id, precision)
        other = f"`--model {published}`" if published else "a ModelOpt checkpoint"
        reason = f"{in_16_bits}, more than the GPU has; slow, and {other} needs none"
    value = f"{calibration.device}, up to {calibration.num_batches} texts"
    return calibration, (Choice(name="calibration", value=value, reason=reason),)


def _why_none(checkpoint: Checkpoint, precision: str, kv_cache_precision: str) -> str | None:
    if checkpoint.quantization is not None:
        return "ModelOpt calibrated the checkpoint already"
    if precision not in ("fp8", "nvfp4") and kv_cache_precision != "fp8":
        return f"{precision} weights need no calibration"
    return None
