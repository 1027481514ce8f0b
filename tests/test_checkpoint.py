"""What is read from a Hugging Face folder, and how a damaged one is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepinfer.checkpoint import digest_source, read_chat_templates, read_checkpoint
from deepinfer.errors import CheckpointError, UnreadableModel
from tests.checkpoints import CHAT_TEMPLATE, VOCAB_SIZE, make_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), dtype="bfloat16", vocab_padding=16)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sharded"), sharded=True, tied=True)


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a value of None removes its key."""
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value.update(changes)
    kept = {key: item for key, item in value.items() if item is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def test_dimensions_and_weights_are_read(llama: Path) -> None:
    checkpoint = read_checkpoint(llama)
    dims = checkpoint.dims
    assert checkpoint.architecture == "LlamaForCausalLM"
    assert (dims.hidden_size, dims.num_layers, dims.num_kv_heads, dims.head_dim) == (64, 2, 2, 16)
    assert dims.vocab_size == VOCAB_SIZE + 16
    assert checkpoint.precision == "bf16"
    assert not checkpoint.is_tied
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3 + 2 * 64
    assert checkpoint.num_parameters == 2 * layer + 64 + 2 * 400 * 64
    assert checkpoint.num_embedding_parameters == 2 * 400 * 64
    assert checkpoint.weights.num_bytes == 2 * checkpoint.num_parameters


def test_sharded_and_tied_weights_are_counted_once(sharded: Path) -> None:
    checkpoint = read_checkpoint(sharded)
    assert len(checkpoint.weights.files) > 1
    assert checkpoint.is_tied
    assert checkpoint.num_embedding_parameters == VOCAB_SIZE * 64


def test_lm_head_that_is_tied_by_configuration_does_not_count(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert read_checkpoint(folder).num_embedding_parameters == 400 * 64


def test_experts_are_counted(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(make_checkpoint(tmp_path, "qwen3_moe"))
    assert checkpoint.dims.num_experts == 4
    assert checkpoint.dims.expert_intermediate_size == 64
    assert checkpoint.weights.expert_parameters == 2 * 4 * 3 * 64 * 64


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        pytest.param(7, 1, None, (7,), id="one-in-generation-config"),
        pytest.param([7, 9], 1, None, (7, 9), id="list-in-generation-config"),
        pytest.param(None, 5, None, (5,), id="only-in-config"),
        pytest.param(None, [5, 6], None, (5, 6), id="list-in-config"),
        pytest.param(7, None, "<|im_end|>", (4, 7), id="end-of-turn-from-tokenizer"),
        pytest.param(7, None, {"content": "<|im_end|>"}, (4, 7), id="end-of-turn-as-object"),
        pytest.param([7, 7, 4], None, "<|im_end|>", (4, 7), id="no-doubles"),
        pytest.param([7, 100_000], None, None, (7,), id="beyond-the-vocabulary"),
        pytest.param(None, None, None, (), id="none"),
        pytest.param(None, None, "<|no such token|>", (), id="token-without-id"),
    ],
)
def test_every_end_token_is_found(
    llama: Path,
    copy_of: Callable[[Path], Path],
    generation: object,
    config: object,
    tokenizer: object,
    expected: tuple[int, ...],
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "generation_config.json", eos_token_id=generation)
    edit_json(folder / "config.json", eos_token_id=config)
    edit_json(folder / "tokenizer_config.json", eos_token=tokenizer)
    assert read_checkpoint(folder).eos_token_ids == expected


def test_end_token_is_found_without_tokenizer_json(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    edit_json(
        folder / "tokenizer_config.json",
        eos_token="<e>",
        added_tokens_decoder={"2": {"content": "<e>"}},
    )
    assert 2 in read_checkpoint(folder).eos_token_ids


@pytest.mark.parametrize(
    "place",
    [
        "chat_template.jinja",
        "tokenizer_config.json",
        "tokenizer_config.json:named",
        "chat_template.json",
    ],
)
def test_chat_template_is_found_wherever_it_is(tmp_path: Path, place: str) -> None:
    folder = make_checkpoint(tmp_path, chat_template_place=place)
    assert read_chat_templates(folder)["default"] == CHAT_TEMPLATE
    assert read_checkpoint(folder).has_chat_template


def test_named_template_is_a_part_of_the_checkpoint(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    without = digest_source(read_checkpoint(folder))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert read_chat_templates(folder) == {"default": CHAT_TEMPLATE, "tool_use": "tools"}
    assert digest_source(read_checkpoint(folder)) != without


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "tool_use"},
        {"template": "x"},
        "tool_use",
        {"name": "../../outside", "template": "x"},
        {"name": "", "template": "x"},
    ],
)
def test_named_template_that_cannot_be_kept_is_refused(
    llama: Path, copy_of: Callable[[Path], Path], entry: object
) -> None:
    folder = copy_of(llama)
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=[entry])
    with pytest.raises(CheckpointError, match="chat template|`chat_template`"):
        read_checkpoint(folder)


def test_checkpoint_without_chat_template(tmp_path: Path) -> None:
    assert not read_checkpoint(make_checkpoint(tmp_path, chat_template_place="")).has_chat_template


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 128},
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 128}},
        {"rope_scaling": {"type": "su", "original_max_position_embeddings": 128}},
    ],
    ids=["old-keys", "new-keys", "older-name"],
)
def test_rope_that_depends_on_the_length_bounds_the_positions(
    llama: Path, copy_of: Callable[[Path], Path], changes: dict[str, Any]
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", rope_parameters=None)
    edit_json(folder / "config.json", **changes)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.is_length_limited_by_rope
    assert checkpoint.dims.max_position_embeddings == 128


def test_quantised_checkpoint_is_told_apart(llama: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert read_checkpoint(folder).quant_method == "gptq"


@pytest.mark.parametrize("written", ["{}", "null"])
def test_empty_quantization_config_means_that_nothing_is_quantised(
    llama: Path, copy_of: Callable[[Path], Path], written: str
) -> None:
    folder = copy_of(llama)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = json.loads(written)
    (folder / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(folder).quant_method is None


def truncate(path: Path, num_bytes: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(num_bytes)


def name_missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00005.safetensors").unlink()


def name_missing_tensor(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    weight_map["model.extra.weight"] = "model-00002-of-00005.safetensors"
    edit_json(path, weight_map=weight_map)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "shard-cut-in-its-tensors": (
        lambda folder: truncate(folder / "model-00002-of-00005.safetensors", 50_000),
        "is damaged: it has 50,000 bytes of",
        "download the checkpoint again",
    ),
    "shard-cut-in-its-header": (
        lambda folder: truncate(folder / "model-00002-of-00005.safetensors", 100),
        "it ends inside its header, after 100 bytes",
        "download the checkpoint again",
    ),
    "shard-cut-to-nothing": (
        lambda folder: truncate(folder / "model-00002-of-00005.safetensors", 0),
        "it ends inside its header",
        "download the checkpoint again",
    ),
    "shard-not-safetensors": (
        lambda folder: (folder / "model-00002-of-00005.safetensors").write_bytes(
            (20).to_bytes(8, "little") + b"x" * 20
        ),
        "its header is not a safetensors header",
        "download the checkpoint again",
    ),
    "shard-is-a-git-lfs-pointer": (
        lambda folder: (folder / "model-00002-of-00005.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "is a Git LFS pointer",
        "git lfs pull",
    ),
    "shard-missing": (
        name_missing_shard,
        "shard `model-00002-of-00005.safetensors` is named by model.safetensors.index.json and",
        "download the checkpoint again",
    ),
    "tensor-missing": (
        name_missing_tensor,
        "lacks the tensor `model.extra.weight` that the index names",
        "download the checkpoint again",
    ),
    "index-without-map": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "it has no weight_map",
        "download the checkpoint again",
    ),
    "config-not-json": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json` is damaged: it is not JSON",
        "download the checkpoint again",
    ),
    "config-not-an-object": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "it is not a JSON object",
        "download the checkpoint again",
    ),
    "config-missing": (
        lambda folder: (folder / "config.json").unlink(),
        "is not a Hugging Face checkpoint: it has no config.json",
        "give a folder with config.json",
    ),
    "config-without-architecture": (
        lambda folder: edit_json(folder / "config.json", architectures=None),
        "names no architecture",
        "causal language model",
    ),
    "config-without-dimension": (
        lambda folder: edit_json(folder / "config.json", hidden_size=None),
        "the config.json of this LlamaForCausalLM has no `hidden_size`",
        "",
    ),
    "tokenizer-missing": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "has no tokenizer",
        "tokenizer.json",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_refused(
    sharded: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    damage, message, hint = DAMAGE[name]
    folder = copy_of(sharded)
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_pickled_weights_are_refused(llama: Path, copy_of: Callable[[Path], Path]) -> None:
    folder = copy_of(llama)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only as pickle") as caught:
        read_checkpoint(folder)
    assert "safetensors" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("adapter_config.json", "its base model, and the adapter with `--lora`"),
        ("model_index.json", "diffusion pipeline"),
        ("model.gguf", "GGUF"),
    ],
)
def test_other_kinds_of_folder_are_named(tmp_path: Path, file: str, hint: str) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match="not a Hugging Face checkpoint") as caught:
        read_checkpoint(tmp_path)
    assert hint in (caught.value.hint or "")


def test_digest_changes_with_a_weight_and_a_name_but_not_with_a_readme(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    digest = digest_source(read_checkpoint(folder))
    assert digest == digest_source(read_checkpoint(llama))
    (folder / "README.md").write_text("notes")
    assert digest_source(read_checkpoint(folder)) == digest
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    changed = digest_source(read_checkpoint(folder))
    assert changed != digest
    (folder / "chat_template.jinja").rename(folder / "chat_template.json")
    (folder / "chat_template.json").write_text('{"chat_template": "x"}')
    assert digest_source(read_checkpoint(folder)) != changed


def test_digest_covers_code_only_when_it_may_run(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    checkpoint = read_checkpoint(folder)
    without, with_code = digest_source(checkpoint), digest_source(checkpoint, with_code=True)
    (folder / "modeling_custom.py").write_text("x = 1\n")
    assert digest_source(checkpoint) == without
    assert digest_source(checkpoint, with_code=True) != with_code


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("changes", "table", "reach"),
    [
        ({"rope_scaling": YARN}, 512, 2048),
        ({"rope_scaling": YARN, "max_position_embeddings": 2048}, 2048, 2048),
        ({"rope_parameters": {**YARN, "rope_theta": 1e6}}, 512, 2048),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, 512, 1024),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512, 512),
    ],
    ids=["as-qwen-says", "with-positions", "new-keys", "without-original", "not-yarn"],
)
def test_yarn_reaches_its_factor_times_the_original_length(
    llama: Path,
    copy_of: Callable[[Path], Path],
    changes: dict[str, Any],
    table: int,
    reach: int,
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", rope_parameters=None)
    edit_json(folder / "config.json", **changes)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.dims.max_position_embeddings == table
    assert checkpoint.max_positions == reach


def test_rope_is_read_as_transformers_5_writes_it(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    nested = {"rope_type": "default", "rope_theta": 500_000.0}
    edit_json(folder / "config.json", rope_parameters=nested, rope_theta=None)
    rope = read_checkpoint(folder).rope
    assert (rope.type, rope.theta) == ("default", 500_000.0)


@pytest.mark.parametrize(
    ("architecture", "has_bias"), [("llama", False), ("qwen2", True), ("qwen3", False)]
)
def test_biases_of_keys_are_found_in_the_weights(
    tmp_path: Path, architecture: str, has_bias: bool
) -> None:
    folder = make_checkpoint(tmp_path, architecture)
    assert read_checkpoint(folder).has_key_bias is has_bias


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"sliding_window": 128}, 128),
        ({"sliding_window": 128, "use_sliding_window": False}, None),
        ({"sliding_window": 128, "use_sliding_window": True}, 128),
        ({}, None),
    ],
)
def test_sliding_window_counts_where_it_is_used(
    llama: Path, copy_of: Callable[[Path], Path], changes: dict[str, Any], window: int | None
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", **changes)
    assert read_checkpoint(folder).sliding_window == window


def test_missing_dimension_is_reported_with_the_architecture(
    llama: Path, copy_of: Callable[[Path], Path]
) -> None:
    folder = copy_of(llama)
    edit_json(folder / "config.json", max_position_embeddings=None, architectures=["NewForLM"])
    with pytest.raises(UnreadableModel, match="has no `max_position_embeddings`") as caught:
        read_checkpoint(folder)
    assert caught.value.architecture == "NewForLM"
