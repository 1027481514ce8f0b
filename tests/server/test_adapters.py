"""`--lora`: adapters are models of their own names, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.errors import CheckpointError, CommandError, ConfigError, EngineError
from deepinfer.generation import LoraAdapter
from deepinfer.manifest import EngineFolder, EngineManifest, LoraLimits, write_manifest
from deepinfer.server.adapters import place_adapters
from tests.adapters import LIMITS, write_adapter
from tests.engines import make_simulated_engine
from tests.server.serving import (
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
    starting,
)
from tests.server.test_bad_requests import assert_error


def make_manifest(folder: Path, name: str, lora: LoraLimits | None = LIMITS) -> EngineManifest:
    manifest = make_simulated_engine(folder / name, name=name, model_id=f"test/{name}").manifest
    return manifest.model_copy(update={"lora": lora})


def with_adapters(engine: EngineFolder, lora: LoraLimits = LIMITS) -> EngineFolder:
    manifest = engine.manifest.model_copy(update={"lora": lora})
    write_manifest(engine.path, manifest)
    return engine.model_copy(update={"manifest": manifest})


def test_each_adapter_is_numbered_and_placed(tmp_path: Path) -> None:
    story = write_adapter(tmp_path / "story")
    code = write_adapter(tmp_path / "code", rank=8)
    manifests = [make_manifest(tmp_path, "plain", None), make_manifest(tmp_path, "able")]
    given = [f"story={story}", f" code = {code}"]
    assert place_adapters(given, manifests, ()) == [
        (1, LoraAdapter(name="story", id=1, path=str(story))),
        (1, LoraAdapter(name="code", id=2, path=str(code))),
    ]


def test_of_several_engines_that_fit_the_one_that_was_meant_has_it(tmp_path: Path) -> None:
    manifests = [make_manifest(tmp_path, "one"), make_manifest(tmp_path, "two")]
    unsaid = write_adapter(tmp_path / "unsaid")
    meant = write_adapter(tmp_path / "meant", base_model_name_or_path="other-mirror/Two")
    given = [f"a={unsaid}", f"b={meant}"]
    assert [owner for owner, _ in place_adapters(given, manifests, ())] == [0, 1]


def test_adapter_that_the_first_engine_cannot_take_goes_to_the_next(tmp_path: Path) -> None:
    small = LIMITS.model_copy(update={"max_rank": 2})
    manifests = [make_manifest(tmp_path, "small", small), make_manifest(tmp_path, "large")]
    folder = write_adapter(tmp_path / "adapter", rank=4)
    ((owner, _),) = place_adapters([f"a={folder}"], manifests, ())
    assert owner == 1


REFUSALS: dict[str, tuple[list[str], dict[str, Any], type[CommandError], str]] = {
    "no name": (["{good}"], {}, ConfigError, "does not name an adapter"),
    "no folder": (["a="], {}, ConfigError, "`a=` does not name an adapter"),
    "one name twice": (["a={good}", "a={good}"], {}, ConfigError, "two adapters are called `a`"),
    "name of an engine": (["able={good}"], {}, ConfigError, "it is the name of an engine"),
    "nothing there": (["a=/nowhere"], {}, CheckpointError, "is not an adapter"),
    "rank": (["a={good}"], {"max_rank": 2}, CheckpointError, "rank 4; .* at most 2"),
    "depth": (["a={good}"], {"num_layers": 1}, CheckpointError, "does not fit `test/able`"),
    "width": (["a={wide}"], {}, CheckpointError, "is 64 x 96 in the adapter and 64 x 64"),
    "too many": (
        ["a={good}", "b={good}", "c={good}"],
        {},
        EngineError,
        "engine `able` holds 2 adapters; 3 are given",
    ),
}


@pytest.mark.parametrize(("given", "changes", "kind", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_served_is_refused(
    tmp_path: Path,
    given: list[str],
    changes: dict[str, Any],
    kind: type[CommandError],
    message: str,
) -> None:
    good = write_adapter(tmp_path / "good")
    wide = write_adapter(tmp_path / "wide", width=96)
    manifest = make_manifest(tmp_path, "able", LIMITS.model_copy(update=changes))
    with pytest.raises(kind, match=message) as caught:
        place_adapters([text.format(good=good, wide=wide) for text in given], [manifest], {"able"})
    assert caught.value.hint


@pytest.mark.parametrize(
    ("backend", "message", "hint"),
    [
        (
            "openvino",
            "engine `plain` takes no adapters by request: openvino has none",
            "deepinfer build --model test/plain --lora ",
        ),
        (
            "tensorrt-llm",
            "engine `plain` was built to take no adapters",
            "deepinfer build --model test/plain --max-lora-rank ",
        ),
    ],
)
def test_engine_that_takes_none_is_named_with_the_way_to_one(
    tmp_path: Path, backend: str, message: str, hint: str
) -> None:
    manifest = make_manifest(tmp_path, "plain", None)
    record = manifest.backend.model_copy(update={"name": backend})
    manifest = manifest.model_copy(update={"backend": record})
    with pytest.raises(EngineError) as caught:
        place_adapters([f"a={tmp_path}"], [manifest], ())
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("adapted")
    engine = with_adapters(make_echo_engine(folder / "engine"))
    story = write_adapter(folder / "story")
    code = write_adapter(folder / "code")
    with serving(engine.path, "--lora", f"story={story}", "--lora", f"my/code={code}") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


@pytest.mark.parametrize("model", ["story", "my/code", "test/echo", "echo.simulated", None])
def test_answers_say_the_name_of_the_adapter(client: httpx.Client, model: str | None) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    body = chat if model is None else chat | {"model": model}
    answered_by = model if model in ("story", "my/code") else "test/echo"
    assert client.post("/v1/chat/completions", json=body).json()["model"] == answered_by
    completion = {"prompt": "hi", "max_tokens": 2, **({"model": model} if model else {})}
    assert client.post("/v1/completions", json=completion).json()["model"] == answered_by


def test_adapters_are_listed_with_their_parent(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["root"], model["parent"]) for model in models] == [
        ("test/echo", "test/echo", None),
        ("story", "test/echo", "test/echo"),
        ("my/code", "test/echo", "test/echo"),
    ]
    assert client.get("/v1/models/my/code").json() == models[2]
    message = assert_error(
        client.post("/v1/completions", json={"prompt": "hi", "model": "other"}),
        404,
        "model_not_found",
        "model",
    )
    assert message.endswith("this server has `test/echo`, `story`, `my/code`")


def test_adapter_in_the_body_is_refused(client: httpx.Client) -> None:
    body = {"prompt": "hi", "lora_request": {"lora_name": "story", "lora_int_id": 1}}
    assert_error(
        client.post("/v1/completions", json=body), 400, "unsupported_parameter", "lora_request"
    )


def test_log_and_readiness_are_of_engines(server: ServerProcess, client: httpx.Client) -> None:
    assert "engine `echo.simulated` answers to `story`, `my/code` with adapters" in server.log
    (state,) = client.get("/health/ready").json()["models"]
    assert state["engine"] == "echo.simulated"


def test_server_ends_with_one_line_for_an_engine_that_takes_none(tmp_path: Path) -> None:
    engine = make_echo_engine(tmp_path / "engine")
    with starting(engine.path, "--lora", f"story={tmp_path}") as server:
        assert server.wait() == 1
    assert "error: engine `echo.simulated` takes no adapters by request" in server.log
    assert "Traceback" not in server.log
