"""Engine files as TensorRT would leave them: tied to its version and to the GPU's family.

`rank<r>.engine` is a header that names both, and filler; `config.json` is what the library writes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.contract.double.log import logger
from tests.contract.double.machine import get_sm_version
from tests.contract.double.record import assumed, message

MAGIC = b"ftrt"
FILLER_BYTES = 4096


@dataclass(frozen=True)
class PlanHeader:
    tensorrt: str
    sm: int
    rank: int
    world_size: int
    weight_bytes: int  # on this rank
    calibration_texts: int  # 0 when nothing was calibrated


def write_plan(path: Path, header: PlanHeader) -> None:
    text = json.dumps(asdict(header)).encode()
    filler = hashlib.sha256(text).digest() * (FILLER_BYTES // 32)
    path.write_bytes(MAGIC + len(text).to_bytes(4, "little") + text + filler)


def read_plan(path: Path, tensorrt_version: str) -> PlanHeader:
    """Deserialise a rank's engine. Raises RuntimeError with what TensorRT and the executor say."""
    if not path.exists():
        raise RuntimeError(message("no_engine_file", path=path))
    header = _parse(path.read_bytes())
    if header is None:
        raise RuntimeError(message("not_deserialized"))
    if header.tensorrt != tensorrt_version:
        tags = {"current": _tag(tensorrt_version), "built": _tag(header.tensorrt)}
        raise _plan_error("version_tag", **tags)
    sm = get_sm_version()
    if header.sm != sm:
        raise _plan_error("incompatible_device", current=_compute(sm), built=_compute(header.sm))
    return header


def read_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def _parse(data: bytes) -> PlanHeader | None:
    size = int.from_bytes(data[4:8], "little")
    if data[:4] != MAGIC or len(data) != 8 + size + FILLER_BYTES:
        return None
    return PlanHeader(**json.loads(data[8 : 8 + size]))


def _plan_error(name: str, /, **values: object) -> RuntimeError:
    detail = message(name, **values)
    logger.error("%s", detail)
    short = message("not_deserialized")
    return RuntimeError(f"{detail}\n{short}" if assumed("plan_error_names_both_sides") else short)


def _tag(version: str) -> int:
    """A number that differs when the version does, as TensorRT's own tags."""
    return int("".join(part.zfill(2) for part in version.split(".")[:3]))


def _compute(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"
