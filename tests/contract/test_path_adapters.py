"""LoRA on the double: build an engine that takes adapters, serve it, choose one by `model`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from deepinfer.adapter import read_adapter
from deepinfer.backends.tensorrt_llm import TensorRtLlmBackend
from deepinfer.engine import EngineOptions
from deepinfer.errors import UnsupportedParameter
from deepinfer.generation import GenerationRequest, LoraAdapter, SamplingParams
from deepinfer.manifest import EngineFolder, find_engines
from tests.checkpoints import make_adapter, make_checkpoint
from tests.contract.installing import installed_double
from tests.contract.loading import loader_on
from tests.contract.test_path import Machine
from tests.server.serving import DEADLINE_S, ServerProcess, client_of, serving, starting


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base") / "llama", dtype="bfloat16")


@pytest.fixture(scope="module")
def story(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "story", base, rank=4)


def build(machine: Machine, base: Path, output: Path, *flags: str) -> EngineFolder:
    limits = ("--max-seq-len", "128", "--max-batch-size", "4", "--target", "rtx5090")
    done = machine.run("build", "--model", str(base), "--output", str(output), *limits, *flags)
    assert done.returncode == 0, done.stderr
    (engine,) = find_engines(output)
    return engine


@pytest.fixture(scope="module")
def machine(double_root: Path) -> Machine:
    return Machine(double_root)


@pytest.fixture(scope="module")
def engine(machine: Machine, base: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineFolder:
    flags = ("--max-lora-rank", "8", "--max-loras", "2")
    return build(machine, base, tmp_path_factory.mktemp("engines"), *flags)


@pytest.fixture(scope="module")
def server(engine: EngineFolder, machine: Machine, story: Path) -> Iterator[ServerProcess]:
    adapters = ("--lora", f"one={story}", "--lora", f"two={story}")
    with serving(engine.path, *adapters, environment=machine.environment) as process:
        yield process


def test_engine_says_which_adapters_it_takes(engine: EngineFolder) -> None:
    lora = engine.manifest.lora
    assert engine.path.name == "llama.fp8.sm120.lora8"
    assert lora is not None and (lora.max_rank, lora.max_loras, lora.num_layers) == (8, 2, 2)
    assert lora.module_shapes["down_proj"] == (64, 128)


def test_each_adapter_answers_for_itself(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=DEADLINE_S) as sdk:

        def ask(model: str) -> tuple[str, str]:
            answer = sdk.completions.create(
                model=model,
                prompt="a",
                max_tokens=12,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            return answer.model, answer.choices[0].text

        answers = dict(map(ask, ("llama", "one", "two")))
        assert answers.keys() == {"llama", "one", "two"}
        assert len(set(answers.values())) == 3, (
            "the double folds an adapter's number into its state"
        )
        assert dict(map(ask, ("two", "one", "llama"))) == answers
        parents = {model.id: (model.model_extra or {})["parent"] for model in sdk.models.list()}
        assert parents == {"llama": None, "one": "llama", "two": "llama"}


def test_server_refuses_what_the_engine_cannot_take(
    engine: EngineFolder, machine: Machine, base: Path, tmp_path: Path
) -> None:
    large = make_adapter(tmp_path / "large", base, rank=16)
    options = ("--lora", f"large={large}")
    with starting(engine.path, *options, environment=machine.environment) as process:
        assert process.wait() == 1
    assert "error: adapter `large` has rank 16; the engine was built for at most 8" in process.log
    assert "hint: rebuild it with `--max-lora-rank 16`" in process.log


def test_engine_without_the_plugin_refuses_by_name(
    double_root: Path, machine: Machine, base: Path, story: Path, tmp_path: Path
) -> None:
    plain = build(machine, base, tmp_path)
    options = ("--lora", f"story={story}")
    with starting(plain.path, *options, environment=machine.environment) as process:
        assert process.wait() == 1
    assert f"error: engine `{plain.manifest.name}` was built to take no adapters" in process.log
    request = GenerationRequest(
        request_id="r",
        prompt_token_ids=(20,),
        sampling=SamplingParams(max_tokens=2),
        adapter=LoraAdapter(name="story", id=1, path=str(story)),
    )
    with installed_double(double_root):
        backend = TensorRtLlmBackend.load(plain, EngineOptions(), lambda *_: None)
        with pytest.raises(UnsupportedParameter, match="takes no adapters"):
            backend.check(request)
        backend.close()


def test_merged_engine_is_one_model_of_its_own(
    machine: Machine, base: Path, story: Path, tmp_path: Path
) -> None:
    merged = build(machine, base, tmp_path, "--lora", str(story))
    record = merged.manifest.adapter
    assert record is not None and record.digest == read_adapter(story).digest
    assert merged.path.name == "llama-story.fp8.sm120"
    assert not [name for name in merged.manifest.files if "merged" in name]
    with serving(merged.path, environment=machine.environment) as server, client_of(server) as http:
        answer: httpx.Response = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.json()["model"] == "story"
        (model,) = http.get("/v1/models").json()["data"]
        assert (model["id"], model["root"], model["parent"]) == ("story", "story", "llama")


def test_library_builds_no_engine_that_adapts_nothing(double_root: Path, hf_folder: Path) -> None:
    with loader_on(double_root) as load, pytest.raises(ValueError, match="lora_target_modules"):
        load(hf_folder, enable_lora=True)
