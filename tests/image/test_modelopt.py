"""The real ModelOpt of the image, fed as TensorRT-LLM 1.2.1 feeds it with what a build gives it.

TensorRT-LLM's own `quantize_and_export` asks for a GPU first. What it then does with ModelOpt is
done here step by step, on the CPU: load through transformers with `trust_remote_code=True`, read
the texts from the `text` column of the train split, pad and cut them, run the model over them, and
export a TensorRT-LLM checkpoint. What that says of itself is held against what `check_payload`
expects of the engine.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler.build_log import BuildLog
from deepinfer.compiler.calibration import read_calibration_texts, write_calibration_folder
from deepinfer.compiler.options import BuildOptions
from deepinfer.compiler.plan import make_plan
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.source_links import link_checkpoint
from deepinfer.compiler.targets import resolve_target
from deepinfer.device import read_machine
from tests.checkpoints import make_checkpoint
from tests.contract.double.configs import MODEL_MAP, QuantConfig

NUM_TEXTS = 4
# What TensorRT-LLM calls the kind of a model when it hands it to ModelOpt, by architecture.
MODEL_TYPES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "phi3": "phi3",
    "gemma3": "gemma3",
    "granite": "granite",
}
FORMATS = {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG"}
CASES = [
    *((architecture, "fp8") for architecture in MODEL_TYPES),
    ("llama", "nvfp4"),
    ("qwen3", "nvfp4"),
]


@dataclass(frozen=True)
class Exported:
    plan: BuildPlan
    config: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def quantization(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["quantization"]
        return found


class _Config:
    """Stands for `PretrainedConfig` of the library, as far as ModelOpt asks it.

    What it says of quantisation is what ModelOpt hands over, through the recorded QuantConfig:
    a key that 1.2.1 does not know is a TypeError there as well.
    """

    def __init__(self, **values: Any) -> None:
        self._values = values

    @classmethod
    def from_hugging_face(
        cls, hf_config_or_dir: Any, dtype: str, mapping: Any, quant_config: Any
    ) -> _Config:
        return cls(
            architecture=hf_config_or_dir.architectures[0],
            dtype=dtype,
            num_hidden_layers=hf_config_or_dir.num_hidden_layers,
            mapping=mapping,
            quantization=dataclasses.asdict(quant_config),
        )

    def to_dict(self) -> dict[str, Any]:
        return self._values


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of TensorRT-LLM that ModelOpt imports to write a configuration."""
    models, modeling_utils = ModuleType("models"), ModuleType("modeling_utils")
    model = type("Model", (), {"config_class": _Config})
    models.MODEL_MAP = dict.fromkeys(MODEL_MAP, model)  # type: ignore[attr-defined]
    QuantConfigOfDict = type(
        "QuantConfig", (QuantConfig,), {"from_dict": classmethod(lambda cls, values: cls(**values))}
    )
    modeling_utils.QuantConfig = QuantConfigOfDict  # type: ignore[attr-defined]
    modeling_utils.Mapping = type(  # type: ignore[attr-defined]
        "Mapping", (), {"from_dict": staticmethod(dict)}
    )
    # ModelOpt asks for the card to choose a kernel; a torch for the CPU fails instead of saying no.
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (0, 0))
    monkeypatch.setitem(sys.modules, "tensorrt_llm", ModuleType("tensorrt_llm"))
    monkeypatch.setitem(sys.modules, "tensorrt_llm.models", models)
    monkeypatch.setitem(sys.modules, "tensorrt_llm.models.modeling_utils", modeling_utils)


def export(
    folder: Path, checkpoint_dir: Path, architecture: str, precision: str, kv_cache: str = "fp8"
) -> Exported:
    """Quantise and export as the library does with what a build of ours gives it."""
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    checkpoint = read_checkpoint(checkpoint_dir)
    options = BuildOptions(
        model=str(checkpoint_dir),
        target="rtx5090",
        precision=precision,
        kv_cache_precision=kv_cache,
        max_seq_len=256,
    )
    plan = make_plan(resolve_target("rtx5090", read_machine(), 2**40), checkpoint, options)
    settings = plan.tensorrt_llm
    assert settings is not None and settings.needs_calibration
    source = link_checkpoint(
        checkpoint, folder / "source", trust_remote_code=False, needs_pad_token=True
    )
    model = AutoModelForCausalLM.from_pretrained(
        str(source), torch_dtype=getattr(torch, settings.dtype), trust_remote_code=True
    ).eval()
    texts = read_calibration_texts(None)[:NUM_TEXTS]
    batches = encode(source, write_calibration_folder(texts, folder / "texts"), settings)
    quantizers = copy.deepcopy(getattr(mtq, FORMATS[precision]))
    if settings.kv_cache_quant_algo is not None:
        quantizers["quant_cfg"].update(mtq.FP8_KV_CFG["quant_cfg"])

    def calibrate(*_: Any) -> None:
        for batch in batches:
            model(input_ids=batch)

    with torch.no_grad():
        mtq.quantize(model, quantizers, forward_loop=calibrate)
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            model,
            MODEL_TYPES[architecture],
            getattr(torch, settings.dtype),
            export_dir=str(folder / "exported"),
            inference_tensor_parallel=1,
            inference_pipeline_parallel=1,
        )
    config = json.loads((folder / "exported" / "config.json").read_text(encoding="utf-8"))
    if settings.kv_cache_quant_algo is None:  # as the library corrects what ModelOpt writes
        config["quantization"]["kv_cache_quant_algo"] = None
    return Exported(plan, config, load_file(folder / "exported" / "rank0.safetensors"))


def encode(source: Path, texts_dir: Path, settings: Any) -> list[Any]:
    """Token ids of each text: [1, num_tokens] padded on the left to the longest."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(source),
        model_max_length=settings.calib_max_seq_length,
        padding_side="left",
        trust_remote_code=True,
    )
    assert tokenizer.pad_token is not None
    lines = (texts_dir / "train.jsonl").read_text(encoding="utf-8").splitlines()
    encoded = tokenizer(
        [json.loads(line)["text"] for line in lines],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=settings.calib_max_seq_length,
    )
    return list(encoded["input_ids"].split(1))


@pytest.mark.filterwarnings("ignore")  # the libraries' own, about what they will change one day
@pytest.mark.parametrize(("architecture", "precision"), CASES)
def test_export_is_what_the_payload_check_expects(
    tmp_path: Path, architecture: str, precision: str
) -> None:
    checkpoint_dir = make_checkpoint(tmp_path / "checkpoint", architecture, dtype="bfloat16")
    exported = export(tmp_path, checkpoint_dir, architecture, precision)
    settings = exported.plan.tensorrt_llm
    assert settings is not None
    assert exported.quantization["quant_algo"] == settings.quant_algo
    assert exported.quantization["kv_cache_quant_algo"] == settings.kv_cache_quant_algo == "FP8"
    assert exported.config["mapping"]["tp_size"] == exported.config["mapping"]["pp_size"] == 1
    assert exported.config["dtype"] == settings.dtype
    packed = {"fp8": "torch.float8_e4m3fn", "nvfp4": "torch.uint8"}[precision]
    assert packed in {str(tensor.dtype) for tensor in exported.tensors.values()}
    scales = {
        name: scale for name, scale in exported.tensors.items() if name.endswith("scaling_factor")
    }
    assert all(bool(scale.float().isfinite().all()) for scale in scales.values())
    assert "lm_head" in exported.quantization["exclude_modules"]
    of_cache = [name for name in scales if name.endswith("kv_cache_scaling_factor")]
    assert len(of_cache) == exported.config["num_hidden_layers"]


@pytest.mark.filterwarnings("ignore")
def test_cache_in_bf16_leaves_no_scales_that_count(tmp_path: Path) -> None:
    checkpoint_dir = make_checkpoint(tmp_path / "checkpoint", "qwen2", dtype="bfloat16")
    exported = export(tmp_path, checkpoint_dir, "qwen2", "fp8", "bf16")
    assert exported.quantization["quant_algo"] == "FP8"
    assert exported.quantization["kv_cache_quant_algo"] is None
    assert exported.plan.kv_cache_precision == "bf16"


def test_modelopts_warning_about_large_keys_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint_dir = make_checkpoint(tmp_path / "checkpoint", "qwen2", dtype="bfloat16")
    path = checkpoint_dir / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[0] = 4000.0  # beyond what FP8 holds, as the biases of some Qwen2 checkpoints are
    save_file(tensors, path, metadata={"format": "pt"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = BuildLog.create(tmp_path / "engine")
    with log.capture(), warnings.catch_warnings():
        warnings.simplefilter("always")
        export(tmp_path, checkpoint_dir, "qwen2", "fp8")
    (warning,) = log.accuracy_warnings()
    assert warning.startswith("Large KV activation detected: ")


@pytest.mark.parametrize(
    ("architecture", "rope", "expected"),
    [
        (
            "llama",
            {"rope_type": "default", "rope_theta": 500_000.0},
            {"rope_theta": 500_000.0, "rope_scaling": None},
        ),
        (
            "qwen3",
            {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            {
                "rope_theta": 1e6,
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                },
            },
        ),
        (
            "gemma3",
            {
                "full_attention": {"rope_type": "default", "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
            },
            {"rope_theta": 2e6, "rope_local_base_freq": 5e3},
        ),
    ],
)
def test_rope_as_transformers_5_writes_it_reaches_the_images_transformers(
    tmp_path: Path, architecture: str, rope: dict[str, Any], expected: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    checkpoint_dir = make_checkpoint(tmp_path / "checkpoint", architecture, dtype="bfloat16")
    path = checkpoint_dir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"rope_parameters": rope}
    for name in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
        config.pop(name, None)
    path.write_text(json.dumps(config), encoding="utf-8")
    unaware = AutoConfig.from_pretrained(checkpoint_dir)
    assert unaware.rope_theta != expected["rope_theta"], "the reason is gone"
    linked = link_checkpoint(
        read_checkpoint(checkpoint_dir),
        tmp_path / "linked",
        trust_remote_code=False,
        needs_pad_token=False,
    )
    read = AutoConfig.from_pretrained(linked, trust_remote_code=True)
    assert {name: getattr(read, name) for name in expected} == expected


@pytest.mark.filterwarnings("ignore")
def test_qwen2_moe_cannot_be_quantised_by_this_modelopt(tmp_path: Path) -> None:
    """The reason for which the planner refuses it; it fails when a ModelOpt can."""
    import modelopt.torch.quantization as mtq
    import torch
    from transformers import AutoModelForCausalLM, Qwen2MoeConfig

    config = Qwen2MoeConfig(
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        vocab_size=384,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(AssertionError), torch.no_grad():
        mtq.quantize(
            model,
            copy.deepcopy(mtq.FP8_DEFAULT_CFG),
            forward_loop=lambda *_: model(input_ids=torch.arange(20)[None]),
        )
