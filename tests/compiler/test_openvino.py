"""Real compilations of tiny checkpoints: what the payload holds, bit by bit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest

from deepinfer.backends.openvino import OpenVinoBackend
from deepinfer.checkpoint import read_checkpoint
from deepinfer.device import read_machine
from deepinfer.engine import EngineOptions
from deepinfer.generation import GenerationRequest, SamplingParams
from deepinfer.manifest import EngineFolder, find_damage
from deepinfer.serving_limits import with_max_seq_len
from deepinfer.text.chat_template import ChatTemplate
from tests.checkpoints import ARCHITECTURES, CHAT_TEMPLATE, TEXT, VOCAB_SIZE, make_checkpoint
from tests.compiler.compiling import build, build_engine, read_constants, read_json

Array = numpy.ndarray[Any, Any]

ROPE_FREQUENCIES = 1.0 / 10_000.0 ** (numpy.arange(0, 16, 2, dtype=numpy.float32) / 16)
WIDENED_NAMES = ("norm", ".gate.weight")  # norms and the routers of experts are computed in f32


@pytest.fixture(scope="module")
def bf16_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("bf16-llama"), dtype="bfloat16")


@pytest.fixture(scope="module")
def fp32_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fp32-llama"), sharded=True)


BuildBf16 = Callable[..., tuple[Path, EngineFolder]]


@pytest.fixture(scope="module")
def build_bf16(tmp_path_factory: pytest.TempPathFactory) -> BuildBf16:
    """A bf16 checkpoint of an architecture and its engine, made once."""

    @cache
    def make(architecture: str, sliding_window: int | None = None) -> tuple[Path, EngineFolder]:
        folder = tmp_path_factory.mktemp(architecture)
        checkpoint = make_checkpoint(
            folder / "checkpoint", architecture, dtype="bfloat16", sliding_window=sliding_window
        )
        return checkpoint, build_engine(checkpoint, folder, "bf16")

    return make


def read_tensors(checkpoint: Path, dtype: str) -> dict[str, Array]:
    """Every tensor of a checkpoint, converted to `dtype`; bf16 as its bits."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        tensors.update(load_file(path))
    kinds = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    converted = {name: tensor.to(kinds[dtype]) for name, tensor in tensors.items()}
    if dtype == "bf16":
        return {name: tensor.view(torch.uint16).numpy() for name, tensor in converted.items()}
    return {name: tensor.numpy() for name, tensor in converted.items()}


def widen(bits: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return (bits.astype(numpy.uint32) << 16).view(numpy.float32)
    return bits.astype(numpy.float32)


def matrices(values: Array) -> Iterator[Array]:
    """The two-dimensional parts of a constant; experts are stacked in one."""
    flat = values.reshape(-1, *values.shape[-2:]) if values.ndim > 1 else values.reshape(1, 1, -1)
    for matrix in flat:
        yield matrix
        yield matrix.T


def find_missing(engine: EngineFolder, checkpoint: Path, dtype: str) -> list[str]:
    """Tensors of the checkpoint that are not in the payload with exactly their bits."""
    stored = {
        (element_type, matrix.tobytes())
        for element_type, values in read_constants(engine)
        for matrix in matrices(values)
    }
    missing = []
    for name, tensor in read_tensors(checkpoint, dtype).items():
        is_widened = any(part in name for part in WIDENED_NAMES)
        element_type = "f32" if is_widened else dtype
        values = widen(tensor, dtype) if is_widened else tensor
        if (element_type, values.tobytes()) not in stored:
            missing.append(name)
    return missing


def find_rope(engine: EngineFolder) -> list[str]:
    return [
        element_type
        for element_type, values in read_constants(engine)
        if element_type == "f32" and numpy.array_equal(values.ravel(), ROPE_FREQUENCIES)
    ]


def count_elements(engine: EngineFolder) -> Counter[str]:
    counts: Counter[str] = Counter()
    for element_type, values in read_constants(engine):
        counts[element_type] += values.size
    return counts


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_of_two_bytes_stay_bit_exact_and_rope_in_f32(
    build_bf16: BuildBf16, architecture: str
) -> None:
    checkpoint, engine = build_bf16(architecture)
    assert find_missing(engine, checkpoint, "bf16") == []
    assert find_rope(engine)
    weights = engine.manifest.files["payload/openvino_model.bin"].size_bytes
    assert weights < 1.1 * read_checkpoint(checkpoint).weights.num_bytes


def generate(engine: EngineFolder, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy tokens of the engine, all prompts at once, computed in fp32 whatever its settings."""
    settings = {"inference_precision": "f32", "kv_cache_precision": "f32"}
    exact = engine.manifest.backend.model_copy(update={"settings": settings})
    manifest = engine.manifest.model_copy(update={"backend": exact})
    return generate_as_built(EngineFolder(path=engine.path, manifest=manifest), prompts, num_tokens)


def generate_as_built(
    engine: EngineFolder, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    """Greedy tokens of the engine, all prompts at once."""
    backend = OpenVinoBackend.load(engine, EngineOptions(), lambda *_: None)
    greedy = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    for number, prompt in enumerate(prompts):
        backend.add(
            GenerationRequest(
                request_id=str(number), prompt_token_ids=tuple(prompt), sampling=greedy
            )
        )
    answers: list[list[int]] = [[] for _ in prompts]
    num_running = len(prompts)
    while num_running:
        for chunk in backend.step():
            answers[int(chunk.request_id)].extend(chunk.token_ids)
            num_running -= chunk.finish_reason is not None
    backend.close()
    return answers


def generate_by_transformers(
    checkpoint: Path, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        output = model.generate(
            ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False
        )
        answers.append(output[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize(
    ("architecture", "sliding_window"),
    [
        ("mixtral", None),
        ("qwen3_moe", None),
        ("granite", None),
        ("olmo2", None),
        ("smollm3", None),
        ("mistral", 16),
        ("phi3", 16),
    ],
)
def test_every_weight_is_in_its_place(
    build_bf16: BuildBf16, architecture: str, sliding_window: int | None
) -> None:
    """Greedy tokens of a bf16 payload computed in fp32 are those of transformers in float32.

    A wrong place by luck: one token in 384 each, so 192 of them never.
    """
    checkpoint, engine = build_bf16(architecture, sliding_window)
    prompts = [[(7 * i + 11 * k) % VOCAB_SIZE for k in range(10 * i + 8)] for i in range(1, 5)]
    expected = generate_by_transformers(checkpoint, prompts, 48)
    assert generate(engine, prompts, 48) == expected


def scale_rope(**scaling: Any) -> Callable[[Path], None]:
    """Give a checkpoint a RoPE that is scaled from 128 positions to its 512."""

    def edit(checkpoint: Path) -> None:
        config = read_json(checkpoint / "config.json")
        original = {"original_max_position_embeddings": 128, "rope_theta": 10_000.0}
        config["rope_parameters"] = original | scaling
        (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")

    return edit


ANY_LENGTH: dict[str, tuple[str, int | None, Callable[[Path], None] | None]] = {
    "llama": ("llama", None, None),
    "sliding window": ("phi3", 16, None),
    "llama 3's RoPE": (
        "llama",
        None,
        scale_rope(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "YaRN": ("qwen3", None, scale_rope(rope_type="yarn", factor=4.0)),
}


@pytest.mark.parametrize(
    ("architecture", "sliding_window", "edit"), ANY_LENGTH.values(), ids=ANY_LENGTH
)
def test_longest_sequence_of_a_cpu_engine_is_only_a_number(
    tmp_path: Path,
    architecture: str,
    sliding_window: int | None,
    edit: Callable[[Path], None] | None,
) -> None:
    """Built for 32 tokens and served with 400, it is the engine that is built for 400."""
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", architecture, sliding_window=sliding_window
    )
    if edit is not None:
        edit(checkpoint)
    short, long = (
        build_engine(checkpoint, tmp_path / length, "fp32", "--max-seq-len", length)
        for length in ("32", "400")
    )
    raised = with_max_seq_len(short, 400)
    assert raised.manifest.limits == long.manifest.limits
    weights = "payload/openvino_model.bin"
    assert short.manifest.files[weights] == long.manifest.files[weights]
    prompts = [
        [(7 * i + 11 * k) % VOCAB_SIZE for k in range(length)]
        for i, length in enumerate((8, 100, 300))
    ]
    answers = generate(raised, prompts, 100)
    assert answers == generate(long, prompts, 100)
    # The last of them has 400 tokens, where that of the engine as it was built would have ended.
    assert [len(answer) for answer in answers] == [100, 100, 100]
    assert answers == generate_by_transformers(checkpoint, prompts, 100)


def test_model_of_32k_positions_takes_the_first_message_of_an_agent(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", max_position_embeddings=32_768)
    engine = build_engine(checkpoint, tmp_path, "int8")
    assert engine.manifest.limits.max_seq_len == 32_768
    backend = OpenVinoBackend.load(engine, EngineOptions(), lambda *_: None)
    # Sequences share a cache of 4,096 tokens each; four of the longest would need less.
    batch_size = engine.manifest.limits.max_batch_size
    assert batch_size * 4096 > 4 * 32_768
    assert backend.capacity.num_tokens == batch_size * 4096
    prompt = tuple(k % VOCAB_SIZE for k in range(20_419))  # as many tokens as Claude Code sends
    sampling = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    request = GenerationRequest(request_id="x", prompt_token_ids=prompt, sampling=sampling)
    backend.add(request)
    token_ids: list[int] = []
    while len(token_ids) < 4:
        token_ids += [token for chunk in backend.step() for token in chunk.token_ids]
        assert backend.num_used_blocks <= backend.capacity.blocks_for(request.max_total_len)
    backend.close()


def test_checkpoint_without_end_token_runs(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    for name, key in (
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
        ("tokenizer_config.json", "eos_token"),
    ):
        config = read_json(checkpoint / name)
        del config[key]
        (checkpoint / name).write_text(json.dumps(config), encoding="utf-8")
    engine = build_engine(checkpoint, tmp_path, "fp32")
    assert engine.manifest.tokens.eos_token_ids == ()
    assert len(generate(engine, [[5, 6, 7]], 5)[0]) == 5


def test_fp16_checkpoint_stays_bit_exact(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "mixtral", dtype="float16")
    engine = build_engine(checkpoint, tmp_path, "fp16")
    assert find_missing(engine, checkpoint, "f16") == []
    assert find_rope(engine)


def test_fp32_widens_bf16_exactly(bf16_llama: Path, tmp_path: Path) -> None:
    engine = build_engine(bf16_llama, tmp_path, "fp32")
    assert find_missing(engine, bf16_llama, "f32") == []
    assert find_rope(engine)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bf16"), ("fp16", "f16")])
def test_fp32_checkpoint_is_rounded_once(
    fp32_llama: Path, tmp_path: Path, precision: str, dtype: str
) -> None:
    engine = build_engine(fp32_llama, tmp_path, precision)
    assert find_missing(engine, fp32_llama, dtype) == []
    assert find_rope(engine)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights_are_really_small(
    tmp_path: Path, architecture: str, precision: str
) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", architecture, dtype="bfloat16")
    engine = build_engine(checkpoint, tmp_path, precision)
    found = read_checkpoint(checkpoint)
    counts = count_elements(engine)
    assert counts["bf16"] == 0
    expected = found.num_parameters if precision == "int8" else found.num_embedding_parameters
    assert counts["u8"] >= 0.95 * expected
    weights = engine.manifest.files["payload/openvino_model.bin"].size_bytes
    layers = found.num_parameters - found.num_embedding_parameters
    ideal = layers * {"int8": 1.0, "int4": 0.5}[precision] + found.num_embedding_parameters
    assert ideal < weights < 1.25 * ideal
    assert engine.manifest.precision == precision
    groups = engine.manifest.backend.settings["dynamic_quantization_group_size"]
    assert groups == {"int8": 128, "int4": 64}[precision]  # 64 is the largest that divides the rows


@pytest.mark.parametrize(
    ("precision", "kv_cache_precision"),
    [
        ("int8", "fp16"),
        ("int8", "bf16"),
        ("int8", "fp32"),
        ("fp16", "fp32"),
        ("fp32", "fp16"),
    ],
)
def test_every_planned_kv_cache_loads_and_answers(
    bf16_llama: Path, tmp_path: Path, precision: str, kv_cache_precision: str
) -> None:
    if kv_cache_precision == "bf16" and not read_machine().cpu.has_native_bf16:
        pytest.skip("this CPU has no bf16")
    engine = build_engine(
        bf16_llama, tmp_path, precision, "--kv-cache-precision", kv_cache_precision
    )
    assert [len(answer) for answer in generate_as_built(engine, [[5, 6, 7]], 5)] == [5]


def test_tied_embedding_is_stored_once(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tied=True, vocab_padding=2000)
    engine = build_engine(checkpoint, tmp_path, "fp32")
    num_bytes = engine.manifest.files["payload/openvino_model.bin"].size_bytes
    assert num_bytes < 4.1 * read_checkpoint(checkpoint).num_parameters


def test_manifest_says_what_was_built(bf16_llama: Path, tmp_path: Path) -> None:
    engine = build_engine(bf16_llama, tmp_path, "int4", "--max-batch-size", "3")
    manifest = engine.manifest
    assert list(find_damage(engine, with_digests=True)) == []
    assert manifest.model.id == bf16_llama.name
    assert manifest.model.source == str(bf16_llama)
    assert manifest.model.architecture == "LlamaForCausalLM"
    assert (manifest.precision, manifest.kv_cache_precision) == ("int4", "int8")
    assert manifest.limits.max_batch_size == 3
    assert manifest.tokens.eos_token_ids == (1, 4)
    assert manifest.backend.libraries["optimum-intel"]
    assert manifest.build.peak_memory_bytes > 10**8
    assert {choice.name for choice in manifest.build.choices} >= {"group_size", "max_seq_len"}
    assert set(manifest.files) == {
        "payload/config.json",
        "payload/generation_config.json",
        *(f"payload/openvino_model.{suffix}" for suffix in ("xml", "bin")),
        *(f"payload/openvino_tokenizer.{suffix}" for suffix in ("xml", "bin")),
        *(f"payload/openvino_detokenizer.{suffix}" for suffix in ("xml", "bin")),
        "tokenizer/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/generation_config.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }


def test_payload_names_the_cache_precision_of_the_plan(bf16_llama: Path, tmp_path: Path) -> None:
    engine = build_engine(bf16_llama, tmp_path, "bf16", "--kv-cache-precision", "fp32")
    text = (engine.payload_dir / "openvino_model.xml").read_text(encoding="utf-8")
    assert '<KV_CACHE_PRECISION value="f32" />' in text


@pytest.mark.parametrize("place", ["tokenizer_config.json:named", "chat_template.json"])
def test_chat_template_ends_up_in_one_place(tmp_path: Path, place: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", chat_template_place=place)
    engine = build_engine(checkpoint, tmp_path, "fp32")
    template = (engine.tokenizer_dir / "chat_template.jinja").read_text(encoding="utf-8")
    assert template == CHAT_TEMPLATE
    assert "chat_template" not in read_json(engine.tokenizer_dir / "tokenizer_config.json")


@pytest.mark.parametrize("place", ["tokenizer_config.json:named", "additional_chat_templates"])
def test_template_for_tools_is_kept_and_used_with_tools(tmp_path: Path, place: str) -> None:
    is_file = place == "additional_chat_templates"
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint", chat_template_place="chat_template.jinja" if is_file else place
    )
    if is_file:
        (checkpoint / place).mkdir()
        (checkpoint / place / "tool_use.jinja").write_text("tools: " + CHAT_TEMPLATE)
    engine = build_engine(checkpoint, tmp_path, "fp32")
    template = ChatTemplate.load(engine.tokenizer_dir)
    messages = [{"role": "user", "content": "hello"}]
    without_tools = template.render(messages)
    with_tools = template.render(messages, arguments={"tools": [{"type": "function"}]})
    assert with_tools == "tools: " + without_tools
    assert not list(find_damage(engine, with_digests=True))


def test_checkpoint_with_an_empty_quantization_config_is_compiled(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    config = {**read_json(checkpoint / "config.json"), "quantization_config": {}}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert build_engine(checkpoint, tmp_path, "fp32").manifest.precision == "fp32"


def test_older_tokenizer_files_become_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    original = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    original.model.save(str(checkpoint))  # vocab.json and merges.txt
    (checkpoint / "tokenizer.json").unlink()
    config = {"tokenizer_class": "GPT2Tokenizer", "unk_token": None, "eos_token": "<|end|>"}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    engine = build_engine(checkpoint, tmp_path, "fp32")
    converted = Tokenizer.from_file(str(engine.tokenizer_dir / "tokenizer.json"))
    for text in TEXT:
        assert converted.encode(text).ids == original.encode(text).ids


def test_tensor_that_is_missing_is_not_made_up(
    bf16_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = Path(shutil.copytree(bf16_llama, tmp_path / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert build(checkpoint, tmp_path / "engines") == 1
    error = capsys.readouterr().err
    assert "error: the checkpoint has no usable tensor `model.layers.1.mlp.up_proj.weight`" in error
    assert list((tmp_path / "engines").iterdir()) == []


def test_values_that_fp16_cannot_hold_are_refused(
    bf16_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = Path(shutil.copytree(bf16_llama, tmp_path / "checkpoint"))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert build(checkpoint, tmp_path / "engines", "--precision", "fp16") == 1
    error = capsys.readouterr().err
    assert "error: `model.norm.weight` has values beyond 65,504" in error
    assert "hint: `--precision bf16`" in error


CUSTOM_CODE = """
from pathlib import Path
from transformers import LlamaForCausalLM

Path({marker!r}).write_text("ran")

class CustomLlama(LlamaForCausalLM):
    pass
"""


@pytest.mark.parametrize("flags", [[], ["--trust-remote-code"]], ids=["default", "trusted"])
def test_code_of_a_checkpoint_runs_only_when_trusted(
    bf16_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    from transformers import dynamic_module_utils

    modules = str(tmp_path / "modules")
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    checkpoint = Path(shutil.copytree(bf16_llama, tmp_path / "checkpoint"))
    marker = tmp_path / "marker"
    (checkpoint / "custom.py").write_text(CUSTOM_CODE.format(marker=str(marker)), encoding="utf-8")
    config = read_json(checkpoint / "config.json")
    config["auto_map"] = {"AutoModelForCausalLM": "custom.CustomLlama"}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    engine = build_engine(checkpoint, tmp_path, "bf16", *flags)
    assert marker.exists() == bool(flags)
    assert engine.manifest.model.trust_remote_code == bool(flags)
