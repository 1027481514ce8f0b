"""TrtLlmArgs: the recorded fields, and the validators in their recorded order."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pydantic

from tests.contract.double.build import Parallel
from tests.contract.double.checkpoint import read_hf_config
from tests.contract.double.configs import BuildConfig, CalibConfig, QuantConfig
from tests.contract.double.log import logger
from tests.contract.double.machine import first_card, get_sm_version
from tests.contract.double.plan import read_config
from tests.contract.double.record import message, recorded
from tests.contract.double.shapes import make_model

RUNTIME_LIMITS = (
    "max_batch_size",
    "max_num_tokens",
    "max_seq_len",
    "max_input_len",
    "max_beam_width",
)
CLAMPED_LIMITS = ("max_batch_size", "max_num_tokens")


class _ModelFormatKind(enum.Enum):
    HF = 0
    TLLM_CKPT = 1
    TLLM_ENGINE = 2


def get_model_format(model_dir: str | Path) -> _ModelFormatKind:
    """What a folder holds, by its config.json. Raises ValueError."""
    folder = Path(model_dir)
    if not (folder / "config.json").exists():
        raise ValueError(message("no_config_json", folder=model_dir))
    kind = _ModelFormatKind.HF
    try:
        config = read_config(folder)
        if "pretrained_config" in config and "build_config" in config:
            kind = _ModelFormatKind.TLLM_ENGINE
            BuildConfig(**config["build_config"])
        elif "architecture" in config and "dtype" in config:
            kind = _ModelFormatKind.TLLM_CKPT
        else:
            read_hf_config(folder)
    except Exception as error:
        raise ValueError(message("format_not_loaded", kind=kind, error=error)) from error
    return kind


class _Arguments(pydantic.BaseModel):
    """The validators; the fields that they speak of come from the record."""

    _model_format: _ModelFormatKind = pydantic.PrivateAttr(default=_ModelFormatKind.HF)
    _pretrained_config: dict[str, Any] | None = pydantic.PrivateAttr(default=None)
    _convert_checkpoint_options: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)

    @pydantic.field_validator("dtype", check_fields=False)
    @classmethod
    def validate_dtype(cls, value: str) -> str:
        first_card()
        if value == "bfloat16" and get_sm_version() < 80:
            raise RuntimeError(message("no_bfloat16"))
        return value

    @pydantic.model_validator(mode="after")
    def run_validators_in_order(self) -> Any:
        for name in recorded("llm_args")["validator_order"]:
            getattr(self, name)()
        return self

    @property
    def parallel(self: Any) -> Parallel:
        return Parallel(
            self.tensor_parallel_size, self.pipeline_parallel_size, self.context_parallel_size
        )

    @property
    def model_format(self) -> _ModelFormatKind:
        return self._model_format

    def init_build_config(self: Any) -> None:
        if self.build_config is None:
            given = {name: getattr(self, name) for name in RUNTIME_LIMITS}
            set_ones = {name: value for name, value in given.items() if value is not None}
            self.build_config = BuildConfig(**set_ones)
        self.calib_config = self.calib_config or CalibConfig()
        self.quant_config = self.quant_config or QuantConfig()

    def validate_build_config_with_runtime_params(self: Any) -> None:
        for name in RUNTIME_LIMITS:
            value, built = getattr(self, name), getattr(self.build_config, name)
            if value is None or built is None:
                continue
            if name in CLAMPED_LIMITS and value > built:
                logger.warning(message("limit_clamped", name=name, value=value, built=built))
                setattr(self, name, built)
            elif name not in CLAMPED_LIMITS and value != built:
                logger.warning(message("limit_overridden", name=name, value=value, built=built))

    def validate_build_config_remaining(self: Any) -> None:
        plugins = self.build_config.plugin_config
        if self.fast_build and self.quant_config.quant_algo == "FP8":
            plugins.manage_weights = True
        if self.parallel.world_size == 1:
            plugins.nccl_plugin = None
        if self.enable_lora:
            plugins.lora_plugin = "auto"
        if self.max_beam_width is None:
            self.max_beam_width = self.build_config.max_beam_width

    def validate_speculative_config(self: Any) -> None:
        kind = type(self.speculative_config).__name__
        accepted = recorded("llm_args")["speculative_configs"]
        if self.speculative_config is not None and kind not in accepted:
            raise ValueError(message("speculative_config", kind=kind))

    def validate_model_format_misc(self: Any) -> None:
        """Learn what the model is; an engine brings its own BuildConfig, after the limits above."""
        if not Path(self.model).is_dir():
            return
        self._model_format = get_model_format(self.model)
        if self._model_format is not _ModelFormatKind.TLLM_ENGINE:
            return
        logger.warning(message("build_config_ignored"))
        config = read_config(Path(self.model))
        self._pretrained_config = config["pretrained_config"]
        self.build_config = BuildConfig(**config["build_config"])
        self._take_parallel_of_engine(config["pretrained_config"]["mapping"])

    def _take_parallel_of_engine(self: Any, mapping: dict[str, int]) -> None:
        fields = {
            "tp": "tensor_parallel_size",
            "pp": "pipeline_parallel_size",
            "cp": "context_parallel_size",
        }
        for name, field in fields.items():
            wanted, built = getattr(self, field), mapping[f"{name}_size"]
            if wanted not in (1, built):
                raise ValueError(
                    message("parallel_mismatch", name=name, wanted=wanted, built=built)
                )
            setattr(self, field, built)

    def setup_embedding_parallel_mode(self: Any) -> None:
        mode = self.embedding_parallel_mode
        if mode not in recorded("llm_args")["embedding_parallel_modes"]:
            raise ValueError(message("embedding_parallel_mode", value=mode))
        self._convert_checkpoint_options = {
            "use_parallel_embedding": mode != "NONE",
            "embedding_sharding_dim": int(mode == "SHARDING_ALONG_HIDDEN"),
        }

    def validate_enable_build_cache(self: Any) -> None:
        """The double keeps no cache of builds; asking for one is allowed, and it never hits."""

    def validate_kv_cache_dtype(self: Any) -> None:
        assert self.kv_cache_config.dtype == "auto", message("kv_cache_dtype")


TrtLlmArgs = make_model("TrtLlmArgs", _Arguments)
