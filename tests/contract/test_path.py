"""The whole path on the double, as a user goes it: build, inspect, serve, ask, and be refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from deepinfer.manifest import EngineFolder, EngineManifest, read_engine, write_manifest
from tests.contract.double.guided import REFUSED_MARK
from tests.contract.installing import RTX_5090, double_environment, make_double_root
from tests.fake_nvml import GIB, Card
from tests.server.serving import DEADLINE_S, client_of, read_events, serving, starting
from tests.server.test_bad_requests import assert_error

RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB, (8, 9))
BANNER = "[TensorRT-LLM] TensorRT-LLM version"  # which the library prints when it is imported
FAULT_TOKEN = 777


@dataclass(frozen=True)
class Machine:
    """A machine with recorded cards, on which commands run in processes of their own."""

    root: Path
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **double_environment(self.root, **self.options)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deepinfer", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_double_root(tmp_path_factory.mktemp("double"))


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of engines with the sample, compiled for an RTX 5090."""
    folder = tmp_path_factory.mktemp("engines")
    done = Machine(root).run("build", "--model", "sample", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert "sm_120" in done.stdout and "fp8" in done.stdout
    return folder


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> EngineFolder:
    """A copy that a test may change."""
    (folder,) = (path for path in built.iterdir() if not path.name.startswith("."))
    return read_engine(Path(shutil.copytree(folder, tmp_path / folder.name)))


def test_sample_is_built_for_the_gpu_that_is_here(built: Path, root: Path) -> None:
    (folder,) = (path for path in built.iterdir() if not path.name.startswith("."))
    manifest = read_engine(folder).manifest
    assert folder.name == "sample.fp8.sm120"
    assert (manifest.precision, manifest.kv_cache_precision) == ("fp8", "fp8")
    assert manifest.target.name == "NVIDIA GeForce RTX 5090"
    assert {"tensorrt", "cuda", "driver"} <= manifest.backend.libraries.keys()
    assert len(manifest.tokens.eos_token_ids) == 2
    names = set(manifest.files)
    assert {"payload/rank0.engine", "tokenizer/generation_config.json"} <= names
    assert not [name for name in names if "timing" in name or "model.cache" in name]
    again = Machine(root).run("build", "--model", "sample", "--output", str(built))
    assert "is up to date" in again.stdout, again.stderr


def test_sdk_is_answered_and_the_gpu_is_named(built: Path, root: Path) -> None:
    machine = Machine(root)
    with (
        serving(built, environment=machine.environment) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", timeout=DEADLINE_S) as sdk,
        client_of(server) as http,
    ):
        health = http.get("/health").json()
        assert (health["status"], health["gpus"], health["nvidia_5090"]) == ("healthy", 1, True)
        (gpu,) = http.get("/v1/gpu/info").json()["gpus"]
        assert (gpu["name"], gpu["compute_capability"]) == ("NVIDIA GeForce RTX 5090", "12.0")
        assert gpu["is_nvidia_5090"] is True and gpu["driver_version"] == "580.126.20"
        answer = sdk.chat.completions.create(
            model="sample", messages=[{"role": "user", "content": "Tell me a story"}], max_tokens=9
        )
        assert answer.usage is not None and answer.usage.completion_tokens <= 9
        forced = sdk.completions.create(
            model="sample",
            prompt="a",
            max_tokens=3,
            temperature=0,
            logit_bias={"300": 100},
            extra_body={"ignore_eos": True},
        )
        text = forced.choices[0].text
        assert text and text == text[: len(text) // 3] * 3, "the forced token, three times"


def test_engine_is_served_with_a_lower_limit_than_was_compiled(built: Path, root: Path) -> None:
    lowered = ("--max-seq-len", "64")
    prompt = list(range(10, 20))
    with (
        serving(built, *lowered, environment=Machine(root).environment) as server,
        client_of(server) as http,
    ):
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 64
        refused = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 55})
        message = assert_error(refused, 400, "context_length_exceeded", "prompt")
        assert "maximum context length is 64" in message
        body = {"prompt": prompt, "ignore_eos": True}
        answer = http.post("/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == 54


def test_more_than_was_compiled_is_refused_before_the_engine_is_started(
    built: Path, root: Path
) -> None:
    (folder,) = (path for path in built.iterdir() if not path.name.startswith("."))
    compiled = read_engine(folder).manifest.limits.max_seq_len
    options = ("--max-seq-len", str(compiled + 1))
    with starting(built, *options, environment=Machine(root).environment) as server:
        assert server.wait() == 1
    error, hint = server.log.splitlines()
    assert error.startswith("error: engine `sample.fp8.sm120` was compiled for ")
    assert f"{compiled:,} tokens; `engine.max_seq_len` is {compiled + 1:,}" in error
    assert f"`deepinfer build --model sample --max-seq-len {compiled + 1}`" in hint
    assert f"`--max-seq-len {compiled}`" in hint


def test_executor_that_dies_is_started_again(built: Path, root: Path) -> None:
    machine = Machine(root, {"executor_fault_token": FAULT_TOKEN})
    fatal = {"prompt": [FAULT_TOKEN], "max_tokens": 3}
    with serving(built, environment=machine.environment) as server, client_of(server) as http:
        assert http.post("/v1/completions", json=fatal).status_code == 503
        server.wait_for_log(r"engine `sample.fp8.sm120` loaded in", count=3)
        assert http.post("/v1/completions", json={"prompt": [5], "max_tokens": 3}).is_success


def test_request_that_fails_ends_alone(built: Path, root: Path) -> None:
    machine = Machine(root, {"request_fault_token": FAULT_TOKEN})
    body = {"prompt": [5], "max_tokens": 200, "ignore_eos": True, "stream": True}
    with serving(built, environment=machine.environment) as server, client_of(server) as http:
        with http.stream("POST", "/v1/completions", json=body) as response:
            events = read_events(response)
            next(events)
            failed = http.post("/v1/completions", json={"prompt": [FAULT_TOKEN], "max_tokens": 3})
            assert failed.status_code == 500
            assert failed.json()["error"]["code"] == "internal_error"
            assert list(events)[-1] == "[DONE]"


LOADED = r"engine `sample.fp8.sm120` loaded in"
LASTING = {"prompt": [5], "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}


def test_broken_gpu_is_a_restart_and_what_ran_goes_on(built: Path, root: Path) -> None:
    machine = Machine(root, {"sticky_fault_token": FAULT_TOKEN, "iteration_ms": 5.0})
    fatal = {"prompt": [FAULT_TOKEN], "max_tokens": 3}
    with serving(built, environment=machine.environment) as server, client_of(server) as http:
        whole = http.post("/v1/completions", json={**LASTING, "stream": False}).json()
        with http.stream("POST", "/v1/completions", json=LASTING) as response:
            events = read_events(response)
            first = next(events)
            # It breaks each engine that it is tried in, and no other request is told of it.
            assert http.post("/v1/completions", json=fatal).status_code == 503
            *rest, done = events
        assert done == "[DONE]"
        texts = [json.loads(event)["choices"][0]["text"] for event in (first, *rest)]
        assert "".join(texts) == whole["choices"][0]["text"]
        server.wait_for_log(LOADED, count=3)
        assert "illegal memory access" in server.log
        assert http.post("/v1/completions", json={"prompt": [5], "max_tokens": 3}).is_success
        assert http.get("/health").json()["status"] == "healthy"


def test_output_that_cannot_be_read_ends_one_request_only(built: Path, root: Path) -> None:
    machine = Machine(root, {"bad_output_token": FAULT_TOKEN, "iteration_ms": 5.0})
    bad = {"prompt": [FAULT_TOKEN], "max_tokens": 300, "ignore_eos": True}
    with serving(built, environment=machine.environment) as server, client_of(server) as http:
        with http.stream("POST", "/v1/completions", json=LASTING) as response:
            events = read_events(response)
            next(events)
            failed = http.post("/v1/completions", json=bad)
            assert failed.status_code == 500
            assert failed.json()["error"]["code"] == "internal_error"
            assert list(events)[-1] == "[DONE]"
        assert len(re.findall(LOADED, server.log)) == 1


def test_wrong_grammar_is_its_client_s_and_its_neighbour_goes_on(built: Path, root: Path) -> None:
    machine = Machine(root, {"iteration_ms": 5.0})
    wrong = {"prompt": [6], "guided_grammar": f'root ::= "a"  {REFUSED_MARK}', "max_tokens": 9}
    with serving(built, environment=machine.environment) as server, client_of(server) as http:
        whole = http.post("/v1/completions", json={**LASTING, "stream": False}).json()
        with http.stream("POST", "/v1/completions", json=LASTING) as response:
            events = read_events(response)
            first = next(events)
            refused = http.post("/v1/completions", json=wrong)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "guided_grammar"
            *rest, done = events
        assert done == "[DONE]"
        texts = [json.loads(event)["choices"][0]["text"] for event in (first, *rest)]
        assert "".join(texts) == whole["choices"][0]["text"]
        assert len(re.findall(LOADED, server.log)) == 1


def test_log_probabilities_of_concurrent_requests_streamed_and_plain(
    built: Path, root: Path
) -> None:
    body = {"max_tokens": 24, "ignore_eos": True, "temperature": 0, "logprobs": 0}
    with (
        serving(built, environment=Machine(root).environment) as server,
        client_of(server) as http,
        ThreadPoolExecutor(8) as pool,
    ):

        def plain(prompt: int) -> list[float]:
            answer = http.post("/v1/completions", json={**body, "prompt": [prompt]})
            assert answer.is_success, answer.text
            scores: list[float] = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
            return scores

        def streamed(prompt: int) -> list[float]:
            scores: list[float] = []
            asked = {**body, "prompt": [prompt], "stream": True}
            with http.stream("POST", "/v1/completions", json=asked) as response:
                for event in read_events(response):
                    if event == "[DONE]":
                        return scores
                    (choice,) = json.loads(event)["choices"]
                    scores += (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]
            raise AssertionError("the stream has no end")

        prompts = range(20, 28)
        alone = list(map(plain, prompts))
        assert all(len(scores) == 24 and max(scores) < 0 for scores in alone)
        assert len({tuple(scores) for scores in alone}) == len(alone)
        assert list(pool.map(plain, prompts)) == alone
        assert list(pool.map(streamed, prompts)) == alone
        assert len(re.findall(LOADED, server.log)) == 1


def test_engine_that_gathers_logits_loads_and_answers_with_alternatives(
    root: Path, tmp_path: Path
) -> None:
    machine = Machine(root)
    flags = ("--model", "sample", "--output", str(tmp_path), "--gather-logits")
    done = machine.run("build", *flags)
    assert done.returncode == 0, done.stderr
    asked = {"messages": [{"role": "user", "content": "Tell me"}], "max_tokens": 6}
    asked |= {"logprobs": True, "top_logprobs": 3, "ignore_eos": True}
    with (
        serving(tmp_path, environment=machine.environment) as server,
        client_of(server) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = list(
            pool.map(lambda _: http.post("/v1/chat/completions", json=asked).json(), range(4))
        )
        for answer in answers:
            content = answer["choices"][0]["logprobs"]["content"]
            assert len(content) == answer["usage"]["completion_tokens"] == 6
            for token in content:
                ranked = [entry["logprob"] for entry in token["top_logprobs"]]
                assert len(ranked) == 3 and ranked == sorted(ranked, reverse=True)
                assert token["logprob"] == ranked[0]


def change(engine: EngineFolder, **changes: Any) -> None:
    manifest = EngineManifest.model_validate(engine.manifest.model_dump() | changes)
    write_manifest(engine.path, manifest)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an engine for sm_89 on sm_120": (
        {"target": {"kind": "gpu", "name": "NVIDIA GeForce RTX 4090", "capability": "sm_89"}},
        {},
        "was built for sm_89; this GPU is sm_120",
    ),
    "an engine for sm_120 on sm_89": (
        {},
        {"cards": [RTX_4090]},
        "was built for sm_120; this GPU is sm_89",
    ),
    "a machine without a GPU": ({}, {"cards": []}, "this machine has no NVIDIA GPU"),
    "an engine for two GPUs on one": (
        {"parallelism": {"tensor_parallel_size": 1, "pipeline_parallel_size": 2}},
        {},
        "was built for 2 GPUs of sm_120; this machine has 1",
    ),
    "an old driver": ({}, {"driver_version": "550.54.14"}, "needs NVIDIA driver 580 or later"),
}


@pytest.mark.parametrize("manifest, machine, message", REFUSALS.values(), ids=REFUSALS)
def test_engine_that_cannot_run_here_is_refused_before_anything_heavy_loads(
    engine: EngineFolder,
    root: Path,
    manifest: dict[str, Any],
    machine: dict[str, Any],
    message: str,
) -> None:
    change(engine, **manifest)
    options = {"cards": [RTX_5090], **machine}
    refuse(engine, Machine(root, options), message)


def test_another_tensorrt_is_refused(engine: EngineFolder, tmp_path: Path) -> None:
    other = make_double_root(tmp_path / "double", tensorrt_version="10.13.3.9")
    refuse(engine, Machine(other), "was built with TensorRT 10.14.1; 10.13.3.9 is installed")


def test_truncated_rank_is_refused(engine: EngineFolder, root: Path) -> None:
    rank = engine.payload_dir / "rank0.engine"
    rank.write_bytes(rank.read_bytes()[:100])
    refuse(engine, Machine(root), "rank0.engine has 100 bytes")


def refuse(engine: EngineFolder, machine: Machine, message: str) -> str:
    """The server ends with one line and a hint, and never imported the library. Returns its log."""
    with starting(engine.path, environment=machine.environment) as server:
        assert server.wait() == 1
    (error,) = (line for line in server.log.splitlines() if line.startswith("error: "))
    assert message in error
    assert "\nhint: " in server.log and "Traceback" not in server.log
    assert BANNER not in server.log
    return server.log


# What a container is like whose process was not started by a shell: versions, and no libraries.
WITHOUT_LIBRARIES = {"has_tensorrt_libraries": False}
LOADER_WAYS_OUT = ("LD_LIBRARY_PATH", "ldconfig", "build/ngc/build.sh")


def test_build_without_tensorrt_s_libraries_is_one_line(root: Path, tmp_path: Path) -> None:
    machine = Machine(root, WITHOUT_LIBRARIES)
    done = machine.run("build", "--model", "sample", "--output", str(tmp_path / "engines"))
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: TensorRT cannot be loaded") and "libnvinfer.so.10" in error
    assert hint.startswith("hint: ") and all(way in hint for way in LOADER_WAYS_OUT)
    assert "Traceback" not in done.stderr and BANNER not in done.stdout + done.stderr


def test_engine_without_tensorrt_s_libraries_is_refused(engine: EngineFolder, root: Path) -> None:
    log = refuse(engine, Machine(root, WITHOUT_LIBRARIES), "libnvinfer.so.10")
    (hint,) = (line for line in log.splitlines() if line.startswith("hint: "))
    assert all(way in hint for way in LOADER_WAYS_OUT)


def test_doctor_says_that_tensorrt_s_libraries_are_missing(root: Path, tmp_path: Path) -> None:
    done = Machine(root, WITHOUT_LIBRARIES).run("doctor", "--json", "--engine-dir", str(tmp_path))
    findings = {one["topic"]: one for one in json.loads(done.stdout)["findings"]}
    assert "libnvinfer.so.10" in findings["TensorRT"]["seen"]
    assert all(way in findings["TensorRT"]["advice"] for way in LOADER_WAYS_OUT)
    assert findings["TensorRT-LLM"]["status"] == "ok"  # which is what its metadata says


@pytest.fixture(scope="module")
def untried(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """With a release that has compiled engines and that nothing is checked against."""
    folder = tmp_path_factory.mktemp("untried")
    return Machine(make_double_root(folder, tensorrt_llm_version="1.1.0"))


def test_untried_release_builds_and_serves_only_for_who_allows_it(
    untried: Machine, tmp_path: Path
) -> None:
    flags = ("build", "--model", "sample", "--output", str(tmp_path))
    refused = untried.run(*flags)
    assert refused.returncode == 1
    error, hint = refused.stderr.splitlines()[-2:]
    assert "1.2.1" in error and "1.1.0" in error
    assert "--allow-untried-release" in hint
    done = untried.run(*flags, "--allow-untried-release")
    assert done.returncode == 0, done.stderr
    assert "warning: TensorRT-LLM 1.1.0 is untried" in done.stderr
    (folder,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
    refuse(read_engine(folder), untried, "works with TensorRT-LLM 1.2.1; 1.1.0 is installed")
    with (
        serving(folder, "--allow-untried-release", environment=untried.environment) as server,
        client_of(server) as http,
    ):
        assert http.post("/v1/completions", json={"prompt": [5], "max_tokens": 3}).is_success
        assert "TensorRT-LLM 1.1.0 is untried" in server.log


def test_recipe_and_environment_allow_an_untried_release_as_well(
    untried: Machine, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: sample\nallow_untried_release: true\n")
    output = tmp_path / "engines"
    done = untried.run("build", "--recipe", str(recipe), "--output", str(output))
    assert done.returncode == 0, done.stderr
    environment = {**untried.environment, "DEEPINFER_ENGINE_ALLOW_UNTRIED_RELEASE": "true"}
    with serving(output, environment=environment) as server, client_of(server) as http:
        assert http.get("/health").json()["status"] == "healthy"


@pytest.fixture
def no_gpu(root: Path) -> Iterator[Machine]:
    yield Machine(root, {"cards": []})


def test_build_for_a_card_that_is_not_here_is_refused_before_the_download(
    no_gpu: Machine, tmp_path: Path
) -> None:
    flags = ("--model", "sample", "--target", "rtx5090", "--output", str(tmp_path / "engines"))
    done = no_gpu.run("build", *flags)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "RTX 5090" in error or "sm_120" in error
    assert BANNER not in done.stdout + done.stderr
    assert not (tmp_path / "engines").exists() or not list((tmp_path / "engines").iterdir())


def test_plan_for_a_card_that_is_not_here_needs_nothing(no_gpu: Machine, tmp_path: Path) -> None:
    flags = ("--model", "sample", "--target", "rtx5090", "--output", str(tmp_path / "engines"))
    done = no_gpu.run("build", *flags, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["precision"], plan["target"]["capability"]) == ("fp8", "sm_120")
    assert plan["roofline"] is not None
