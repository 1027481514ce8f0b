"""The configuration classes of the library that have fields and little else."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import pydantic

from tests.contract.double.record import entry, message, recorded
from tests.contract.double.shapes import make_dataclass, make_enum, make_model

QuantAlgo = make_enum("QuantAlgo")
CapacitySchedulerPolicy = make_enum("CapacitySchedulerPolicy")
ContextChunkingPolicy = make_enum("ContextChunkingPolicy")
BatchingType = make_enum("BatchingType")
WaitingQueuePolicy = make_enum("WaitingQueuePolicy")
KVCacheType = make_enum("KVCacheType")
SpeculativeDecodingMode = make_enum("SpeculativeDecodingMode")

KV_CACHE_QUANT_ALGO_LIST = [QuantAlgo[n] for n in recorded("quantization")["kv_cache_quant_algos"]]


class _Plugins(pydantic.BaseModel):
    """Reads "auto" as the base dtype, and takes "enable" and "disable"."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value == "auto" and not name.startswith("_"):
            return super().__getattribute__(recorded("plugin_config")["auto_resolves_to"])
        return value

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def convert_enable_disable(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        aliases = recorded("plugin_config")["string_aliases"]
        if not isinstance(value, str) or value not in aliases:
            return value
        is_flag = cls.model_fields[str(info.field_name)].annotation is bool
        return aliases[value] if is_flag or aliases[value] else None

    def validate_for(self, sm: int) -> None:
        """Raise for what the plugins of the data-centre chip of that family do not have."""
        if sm != 100:
            return
        for name in recorded("plugin_config")["refused_on_sm_100"]:
            if getattr(self, name):
                raise NotImplementedError(message("plugin_refused", name=name, sm=sm))


class _Build(pydantic.BaseModel):
    def update_kv_cache_type(self, model_architecture: str) -> None:
        del model_architecture  # only those without attention have another kind
        if getattr(self, "kv_cache_type", None) is None:
            self.kv_cache_type = KVCacheType.PAGED

    @classmethod
    def from_json_file(cls, config_file: str | Path) -> Any:
        return cls(**json.loads(Path(config_file).read_text(encoding="utf-8")))


class _Calibration(pydantic.BaseModel):
    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Any:
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump()


class _PeftCache(pydantic.BaseModel):
    @pydantic.model_validator(mode="after")
    def refuse_prefetch_dir(self) -> Any:
        if getattr(self, "lora_prefetch_dir", None) is not None:
            raise ValueError(message("lora_prefetch_dir"))
        return self


class _Quantization:
    """Whether a checkpoint has to be calibrated for this, and by which flow."""

    @property
    def _requires_calibration(self) -> bool:
        algorithm, kv_algorithm = _algorithms(self)
        plain = recorded("quantization")["requires"]["weights_without_calibration"]
        weights: bool = algorithm not in (None, QuantAlgo.NO_QUANT, *plain)
        return weights or kv_algorithm is not None

    @property
    def _requires_modelopt_quantization(self) -> bool:
        algorithm, kv_algorithm = _algorithms(self)
        if algorithm is None:
            return bool(kv_algorithm == QuantAlgo.FP8)
        return algorithm in recorded("quantization")["requires"]["modelopt"]


class _LoraRequest:
    __slots__ = ()

    def __post_init__(self) -> None:
        path = getattr(self, "lora_path", "")
        if path and not Path(path).exists():
            raise ValueError(message("lora_path", path=path))


def _algorithms(config: Any) -> tuple[Any, Any]:
    return config.quant_algo, config.kv_cache_quant_algo


LoraConfig = make_model("LoraConfig")
PluginConfig = make_model("PluginConfig", _Plugins)
BuildConfig = make_model("BuildConfig", _Build)
CalibConfig = make_model("CalibConfig", _Calibration)
QuantConfig = make_dataclass("QuantConfig", _Quantization)
KvCacheConfig = make_model("KvCacheConfig")
DynamicBatchConfig = make_model("DynamicBatchConfig")
SchedulerConfig = make_model("SchedulerConfig")
ExtendedRuntimePerfKnobConfig = make_model("ExtendedRuntimePerfKnobConfig")
PeftCacheConfig = make_model("PeftCacheConfig", _PeftCache)
LoRARequest = make_dataclass("LoRARequest", _LoraRequest)


def make_error(name: str) -> type[Exception]:
    record = entry("errors", name)
    bases = {"RuntimeError": RuntimeError, "ValueError": ValueError}
    made = type(name, (bases[record["base"]],), {})
    made.__module__ = record["homes"][0]
    return made


RequestError = make_error("RequestError")
CppExecutorError = make_error("CppExecutorError")

MODEL_MAP = {
    name: type(name, (), {"__module__": "tensorrt_llm.models"})
    for name in [*recorded("models")["read"], *recorded("models")["inferred"]]
}


def as_enum(kind: enum.EnumMeta, value: str | None) -> Any:
    return None if value is None else kind[value]
