"""Checkpoint to OpenVINO IR: load, export, compress, write the payload.

The plan has decided everything. Traps of the libraries are named where they are avoided, and the
payload on disk is compared with the plan afterwards.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import logging
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deepinfer.checkpoint import CONFIG_NAME, GENERATION_CONFIG_NAME, Checkpoint
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.tokenizer_files import write_tokenizer
from deepinfer.errors import BackendError, BuildError
from deepinfer.manifest import PAYLOAD_DIR, TOKENIZER_DIR

logger = logging.getLogger(__name__)

LIBRARIES = (
    "openvino",
    "openvino-genai",
    "openvino-tokenizers",
    "optimum-intel",
    "nncf",
    "torch",
    "transformers",
)
EXPORT_DIR = ".export"
MODEL_NAME = "openvino_model.xml"
TOKENIZER_MODEL_NAME = "openvino_tokenizer.xml"
DETOKENIZER_MODEL_NAME = "openvino_detokenizer.xml"
TASK = "text-generation-with-past"
ELEMENT_TYPES = {
    "fp32": ("f32",),
    "fp16": ("f16",),
    "bf16": ("bf16",),
    "int8": ("u8", "i8"),
    "int4": ("u4", "i4"),
}
# Norms, biases and routers keep their type under every precision.
MIN_APPLIED_SHARE = 0.9


def read_versions(plan: BuildPlan) -> dict[str, str]:
    """The version of each library that compiles, without importing any; any CPU will do.

    Raises BackendError when one is not installed.
    """
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise BackendError(
                f"compiling for the CPU needs {name}, which is not installed",
                hint="pip install 'deepinfer[openvino-build]'",
            ) from None
    return versions


def compile_checkpoint(
    plan: BuildPlan, checkpoint: Checkpoint, folder: Path, progress: Progress
) -> None:
    """Write `payload/` and `tokenizer/` into the empty `folder`. Takes seconds to many minutes.

    Raises BuildError when the libraries cannot compile the checkpoint.
    """
    export_dir = folder / EXPORT_DIR
    payload_dir = folder / PAYLOAD_DIR
    payload_dir.mkdir()
    with progress.phase("load", f"libraries, and weights as {plan.export_precision}"):
        _switch_off_telemetry()
        _switch_off_progress_bars()
        model = _load(plan, checkpoint)
    with progress.phase("export", "tracing the model into OpenVINO's graph"):
        _export(plan, model, export_dir)
    del model
    gc.collect()
    with progress.phase("compress", _describe_compression(plan)):
        compressed = _compress(plan, export_dir / MODEL_NAME)
    with progress.phase("write", "payload and tokenizer"):
        import openvino

        # Compressing to fp16 would round RoPE's frequencies too.
        openvino.save_model(compressed, payload_dir / MODEL_NAME, compress_to_fp16=False)
        del compressed
        shutil.rmtree(export_dir)
        check_payload(plan, checkpoint, payload_dir / MODEL_NAME)
        write_tokenizer(checkpoint, folder / TOKENIZER_DIR, plan.trust_remote_code)
        _write_configs(checkpoint, payload_dir)
        _convert_tokenizer(folder / TOKENIZER_DIR, payload_dir)


def check_payload(plan: BuildPlan, checkpoint: Checkpoint, path: Path) -> None:
    """Raise BuildError unless the weights on disk are whole and of the plan's precision."""
    ir = read_ir(path)
    if ir.weight_file_bytes < ir.needed_bytes:
        raise BuildError(
            f"the payload's weights are cut short: {ir.weight_file_bytes:,} bytes of "
            f"{ir.needed_bytes:,}",
            hint="is the disk full?",
        )
    # Tied or not, the embedding stays at eight bits where the layers have four.
    expected = checkpoint.num_parameters
    if plan.precision == "int4":
        expected -= checkpoint.num_embedding_parameters
    applied = sum(ir.elements_by_type[name] for name in ELEMENT_TYPES[plan.precision])
    if applied < MIN_APPLIED_SHARE * expected:
        raise BuildError(
            f"only {applied:,} of {expected:,} weights became {plan.precision}",
            hint="choose another `--precision`, and please report this",
        )


def _switch_off_telemetry() -> None:
    # OpenVINO's converter and NNCF report each use unless a file in the home folder declines; this
    # declines without leaving a file there.
    checker = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
    declined = checker.ConsentCheckResult.DECLINED
    checker.OptInChecker.check = lambda self, *args, **kwargs: declined


def _switch_off_progress_bars() -> None:
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_progress_bars()
    transformers_logging.disable_progress_bar()


def _load(plan: BuildPlan, checkpoint: Checkpoint) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=plan.trust_remote_code
    )
    if not getattr(config, "quantization_config", True):
        # Empty, it means nothing, but transformers refuses it for the method that it lacks.
        del config.quantization_config
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model, report = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        config=config,
        dtype=dtypes[plan.export_precision],
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=plan.trust_remote_code,
        output_loading_info=True,
    )
    # The library would fill tensors that are missing with random numbers.
    for kind in ("missing_keys", "mismatched_keys"):
        for key in sorted(map(str, report[kind])):
            raise BuildError(
                f"the checkpoint has no usable tensor `{key}`", hint="download the checkpoint again"
            )
    if plan.export_precision == "fp16" and checkpoint.precision != "fp16":
        _refuse_overflow(model)
    return model


def _refuse_overflow(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise BuildError(
                f"`{name}` has values beyond 65,504, which fp16 cannot hold",
                hint="`--precision bf16`",
            )


def _export(plan: BuildPlan, model: Any, folder: Path) -> None:
    from optimum.exporters.openvino.convert import export_from_model
    from optimum.intel.openvino.configuration import OVConfig

    export_from_model(
        model=model,
        output=folder,
        task=TASK,
        ov_config=OVConfig(dtype="auto"),  # "fp16" would round RoPE's frequencies too
        stateful=True,
        preprocessors=[],  # None would load the tokenizer by the checkpoint's name
        patch_16bit_model=plan.export_precision != "fp32",
        trust_remote_code=plan.trust_remote_code,
    )


def _describe_compression(plan: BuildPlan) -> str:
    if plan.group_size is not None:
        return f"weights to int4 in groups of {plan.group_size}, embedding to int8"
    if plan.precision == "int8":
        return "weights to int8"
    return f"nothing: weights stay {plan.precision}"


def _compress(plan: BuildPlan, path: Path) -> Any:
    """The exported graph with its weights in the plan's precision, not yet on disk."""
    import openvino

    model = openvino.Core().read_model(path)
    if plan.precision in ("int8", "int4"):
        import nncf

        mode, grouping = nncf.CompressWeightsMode.INT8_ASYM, {}
        if plan.group_size is not None:
            mode = nncf.CompressWeightsMode.INT4_ASYM
            grouping = {"group_size": plan.group_size, "ratio": 1.0}
        model = nncf.compress_weights(model, mode=mode, **grouping)
    elif plan.precision != "fp32":
        _narrow_experts(model, ELEMENT_TYPES[plan.precision][0])
    # The exporter notes f16 here, and whoever loads the payload without settings would obey.
    kv_cache_precision = plan.settings["kv_cache_precision"]
    model.set_rt_info(kv_cache_precision, ["runtime_options", "KV_CACHE_PRECISION"])
    return model


def _narrow_experts(model: Any, element_type: str) -> None:
    """Undo the widening to f32 that the exporter applies to all experts of a 16-bit model."""
    import numpy
    import openvino
    from openvino import opset13

    narrow_type = {"f16": openvino.Type.f16, "bf16": openvino.Type.bf16}[element_type]
    for node in model.get_ops():
        is_wide = (
            node.get_type_name() == "Constant" and node.get_element_type().to_string() == "f32"
        )
        if not is_wide or len(node.shape) != 3 or ".experts" not in node.get_friendly_name():
            continue
        values = node.get_data()  # [num_experts, rows, columns]
        narrow = openvino.Tensor(narrow_type, list(values.shape))
        if element_type == "bf16":
            # numpy has no bfloat16; its bits are the upper half of a float32's.
            bits = values.view(numpy.uint32) >> 16
            narrow.data.view(numpy.uint16)[...] = bits.astype(numpy.uint16)
        else:
            narrow.data[...] = values.astype(numpy.float16)
        constant = openvino.op.Constant(narrow)
        constant.set_friendly_name(node.get_friendly_name())
        widened = opset13.convert(constant, "f32")
        node.output(0).replace(widened.output(0))


def _write_configs(checkpoint: Checkpoint, payload_dir: Path) -> None:
    """Write what the executor looks for beside the graph."""
    shutil.copyfile(checkpoint.folder / CONFIG_NAME, payload_dir / CONFIG_NAME)
    # Without any end token the executor refuses every request, even those that ignore it; an id
    # beyond the vocabulary is never generated.
    eos_token_ids = checkpoint.eos_token_ids or (checkpoint.dims.vocab_size,)
    text = json.dumps({"eos_token_id": eos_token_ids})
    (payload_dir / GENERATION_CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def _convert_tokenizer(tokenizer_dir: Path, payload_dir: Path) -> None:
    """Write the tokenizer as a graph, which the executor needs for structured output only."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
        encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:
        # Every kind of tokenizer has its own way to fail here, and plain text needs none of them.
        logger.warning("structured output will not be available: %s", error)
        return
    openvino.save_model(encoder, payload_dir / TOKENIZER_MODEL_NAME)
    openvino.save_model(decoder, payload_dir / DETOKENIZER_MODEL_NAME)


@dataclass(frozen=True)
class IrSummary:
    elements_by_type: Mapping[str, int]  # keyed as the XML writes them: "f32", "bf16", "u8", "u4"
    needed_bytes: int  # that the weights file must have at least
    weight_file_bytes: int


def read_ir(path: Path) -> IrSummary:
    """Sum up the constants of the model whose XML is at `path`; equal ones are stored once."""
    elements: Counter[str] = Counter()
    seen: set[int] = set()
    needed_bytes = 0
    for _, layer in ElementTree.iterparse(path):
        if layer.tag != "layer":
            continue
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            offset, size = int(data.get("offset", 0)), int(data.get("size", 0))
            needed_bytes = max(needed_bytes, offset + size)
            if offset not in seen:
                seen.add(offset)
                shape = [int(part) for part in data.get("shape", "").split(",") if part.strip()]
                elements[data.get("element_type", "")] += math.prod(shape)
        layer.clear()
    return IrSummary(elements, needed_bytes, path.with_suffix(".bin").stat().st_size)
