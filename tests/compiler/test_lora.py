"""`deepinfer build --lora`: the merged engine says what `peft` says, and tells what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from deepinfer.__main__ import main
from deepinfer.adapter import ADAPTER_WEIGHTS_NAME, read_adapter
from deepinfer.backends.openvino import OpenVinoBackend
from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler.lora import merge_adapter
from deepinfer.engine import EngineOptions
from deepinfer.errors import BuildError, UnsupportedParameter
from deepinfer.generation import GenerationRequest, LoraAdapter, SamplingParams
from deepinfer.manifest import EngineFolder, find_engines
from tests.checkpoints import make_adapter, make_checkpoint
from tests.compiler.compiling import build

PROMPT = (20, 31, 42, 53, 64)
NUM_TOKENS = 24
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "rank": 8},
    "patterns": {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.0.*down_proj": 3}},
    "every layer": {
        "target_modules": "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj lm_head".split()
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "llama", sharded=True)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "Story", base)


@pytest.fixture(scope="module")
def engine(
    base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineFolder]:
    output = tmp_path_factory.mktemp("engines")
    assert (
        build(base, output, "--lora", str(adapter), "--precision", "fp32", "--target", "cpu") == 0
    )
    (engine,) = find_engines(output)
    yield engine


def adapted(base: Path, adapter: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
    return PeftModel.from_pretrained(model, adapter).eval()


def logits_of(model: Any, ids: tuple[int, ...] = PROMPT) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_merged_weights_compute_what_peft_computes(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    folder = make_adapter(tmp_path / "adapter", base, **settings)
    merged = merge_adapter(read_checkpoint(base), read_adapter(folder), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(merged.folder, local_files_only=True)
    expected = logits_of(adapted(base, folder))
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base, local_files_only=True))
    assert (expected - plain).abs().max() > 0.1, "the adapter changes something"
    assert (logits_of(model) - expected).abs().max() < 1e-4


def test_merging_keeps_types_and_leaves_other_files_alone(base: Path, tmp_path: Path) -> None:
    half = make_checkpoint(tmp_path / "half", dtype="bfloat16", sharded=True)
    folder = make_adapter(tmp_path / "adapter", half, target_modules=["q_proj"])
    merged = merge_adapter(read_checkpoint(half), read_adapter(folder), tmp_path / "merged")
    files = {path.name: path for path in merged.folder.iterdir()}
    assert files.keys() == {path.name for path in half.iterdir()}
    changed = {name for name, path in files.items() if not path.is_symlink()}
    assert changed and all(name.endswith(".safetensors") for name in changed)
    for name in changed:
        before, after = load_file(half / name), load_file(files[name])
        assert {k: v.dtype for k, v in before.items()} == {k: v.dtype for k, v in after.items()}
        differing = {key for key in before if not torch.equal(before[key], after[key])}
        assert differing == {key for key in before if key.endswith("q_proj.weight")}


def test_engine_answers_as_peft_does(engine: EngineFolder, base: Path, adapter: Path) -> None:
    model = adapted(base, adapter)
    ids = list(PROMPT)
    for _ in range(NUM_TOKENS):
        ids.append(int(logits_of(model, tuple(ids))[-1].argmax()))
    assert generate(engine) == ids[len(PROMPT) :]


def generate(engine: EngineFolder) -> list[int]:
    backend = OpenVinoBackend.load(engine, EngineOptions(kv_cache_bytes=2**26), lambda *_: None)
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    backend.add(GenerationRequest(request_id="r", prompt_token_ids=PROMPT, sampling=sampling))
    found: list[int] = []
    is_over = False
    while not is_over:
        for chunk in backend.step():
            found.extend(chunk.token_ids)
            is_over = chunk.finish_reason is not None
    backend.close()
    return found


def test_engine_says_what_was_merged(
    engine: EngineFolder, base: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = engine.manifest
    record = manifest.adapter
    assert record is not None
    assert engine.path.name == "llama-story.fp32.cpu"
    assert (manifest.model.id, record.base_model_id) == ("Story", "llama")
    assert (record.source, record.rank) == (str(adapter), 4)
    assert record.digest == read_adapter(adapter).digest
    assert not [name for name in manifest.files if "merged" in name]
    capsys.readouterr()
    assert main(["engines", "inspect", engine.path.name, "--engine-dir", str(engine.path)]) == 0
    shown = capsys.readouterr().out
    assert "Story, rank 4, merged" in shown and record.digest in shown
    assert "merged into 6 layers" in shown
    assert main(["engines", "list", "--engine-dir", str(engine.path)]) == 0
    assert "Story on llama" in capsys.readouterr().out


def test_same_adapter_is_up_to_date_and_another_is_not(
    engine: EngineFolder,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ("--precision", "fp32", "--target", "cpu")
    output = engine.path.parent
    assert build(base, output, "--lora", str(adapter), *flags) == 0
    assert "is up to date" in capsys.readouterr().out
    other = make_adapter(tmp_path / "Story", base, seed=2)
    assert build(base, output, "--lora", str(other), *flags, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["name"] != engine.path.name, "both are kept"
    assert plan["digest"] != engine.manifest.build.plan_digest


def test_dry_run_tells_of_the_merge(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(base, tmp_path, "--lora", str(adapter), "--dry-run") == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("adapter")]
    assert "Story, rank 4" in row and "merged into 6 layers" in row
    assert list(tmp_path.iterdir()) == []


def test_adapter_of_another_model_is_one_line_before_anything_loads(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_checkpoint(tmp_path / "other", num_layers=1)
    assert build(other, tmp_path / "engines", "--lora", str(adapter)) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: adapter `Story` does not fit `other`: it has no linear layer")
    assert hint.startswith("hint: give the model that it was trained on")
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-lora-rank", "8"], "`--max-lora-rank` belongs to builds for GPUs"),
        (["--max-loras", "2"], "`--max-loras` belongs to builds for GPUs"),
        (["--lora", "nowhere/to/be/found"], "there is no folder `nowhere/to/be/found`"),
    ],
    ids=["rank", "number", "folder"],
)
def test_options_that_a_cpu_cannot_meet_are_refused(
    base: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build(base, tmp_path, "--target", "cpu", "--dry-run", *flags) == 1
    assert message in capsys.readouterr().err


def test_adapter_that_has_diverged_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS_NAME)
    next(iter(tensors.values()))[0, 0] = float("nan")
    (tmp_path / "bad").mkdir()
    save_file(tensors, tmp_path / "bad" / ADAPTER_WEIGHTS_NAME)
    config = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    (tmp_path / "bad" / "adapter_config.json").write_text(config, encoding="utf-8")
    bad = read_adapter(tmp_path / "bad")
    with pytest.raises(BuildError, match="not finite"):
        merge_adapter(read_checkpoint(base), bad, tmp_path / "merged")


def test_executor_for_cpus_refuses_an_adapter_by_request(engine: EngineFolder) -> None:
    backend = OpenVinoBackend.load(engine, EngineOptions(kv_cache_bytes=2**26), lambda *_: None)
    request = GenerationRequest(
        request_id="r",
        prompt_token_ids=PROMPT,
        sampling=SamplingParams(max_tokens=1),
        adapter=LoraAdapter(name="a", id=1, path="/a"),
    )
    with pytest.raises(UnsupportedParameter, match="takes no adapters by request"):
        backend.check(request)
    backend.close()
