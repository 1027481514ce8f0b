"""Several engines behind one server: each by its names, none in another's way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepinfer.manifest import Target, write_manifest
from tests.server.serving import (
    ServerProcess,
    client_of,
    make_echo_engine,
    serving,
    starting,
)
from tests.server.test_bad_requests import assert_error


def make_engines(folder: Path) -> None:
    make_echo_engine(folder / "a", name="a.int4", model_id="test/a")
    newer = make_echo_engine(folder / "b", name="a.int8", model_id="test/a")
    build = newer.manifest.build.model_copy(update={"created_at": "2026-02-01T00:00:00+00:00"})
    write_manifest(newer.path, newer.manifest.model_copy(update={"build": build}))
    make_echo_engine(folder / "c", name="c.int8", model_id="test/c")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("engines")
    make_engines(folder)
    with serving(folder, "--served-model-name", "gpt-4, small") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def ask(client: httpx.Client, model: str | None = None) -> httpx.Response:
    body: dict[str, Any] = {"prompt": "hi"} if model is None else {"prompt": "hi", "model": model}
    return client.post("/v1/completions", json=body)


@pytest.mark.parametrize(
    ("model", "answered_by"),
    [
        (None, "gpt-4"),
        ("gpt-4", "gpt-4"),
        ("small", "gpt-4"),
        ("a.int4", "gpt-4"),
        ("test/a", "test/a"),  # the newer one
        ("a.int8", "test/a"),
        ("test/c", "test/c"),
        ("c.int8", "test/c"),
    ],
)
def test_engine_is_chosen_by_name(
    client: httpx.Client, model: str | None, answered_by: str
) -> None:
    response = ask(client, model)
    assert response.status_code == 200
    assert response.json()["model"] == answered_by


def test_unknown_name_is_refused_with_those_that_are_listed(client: httpx.Client) -> None:
    message = assert_error(ask(client, "other"), 404, "model_not_found", "model")
    assert message.endswith("this server has `gpt-4`, `small`, `test/a`, `test/c`")


def test_every_listed_name_is_a_model(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["data"]
    assert [(m["id"], m["root"], m["engine"]) for m in models] == [
        ("gpt-4", "test/a", "a.int4"),
        ("small", "test/a", "a.int4"),
        ("test/a", "test/a", "a.int8"),
        ("test/c", "test/c", "c.int8"),
    ]
    assert client.get("/v1/models/small").json() == models[1]
    assert client.get("/v1/models/a.int4").json() == models[0]


def test_health_is_of_the_first_and_readiness_of_all(client: httpx.Client) -> None:
    assert client.get("/health").json()["model"] == "gpt-4"
    states = client.get("/health/ready").json()["models"]
    assert [state["engine"] for state in states] == ["a.int4", "a.int8", "c.int8"]
    assert {state["phase"] for state in states} == {"ready"}


def test_log_and_welcome_name_every_engine(server: ServerProcess) -> None:
    assert "engine `a.int4` answers to `gpt-4`, `small`, `a.int4`" in server.log
    assert "engine `a.int8` answers to `test/a`, `a.int8`" in server.log
    assert server.log.count("\nModel      ") == 3


def test_dead_engine_leaves_the_others_alone(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "one", name="one", model_id="test/one")
    two = make_echo_engine(tmp_path / "two", name="two", model_id="test/two")
    with serving(tmp_path) as server, client_of(server) as client:
        pids = [
            int(server.wait_for_log(r"engine process (\d+) started", count=n)[1]) for n in (1, 2)
        ]
        # What there is now cannot be loaded, so this one never comes back.
        write_manifest(two.path, as_tensorrt(two.manifest))
        os.kill(pids[1], signal.SIGKILL)
        while ask(client, "two").status_code == 200:  # until the kernel has told us
            pass
        assert_error(ask(client, "two"), 503, "engine_unavailable", None)
        assert ask(client, "one").status_code == 200
        ready = client.get("/health/ready")
        assert ready.status_code == client.get("/health").status_code == 200
        assert [state["phase"] for state in ready.json()["models"]] == ["ready", "failed"]
        statuses = {m["id"]: m["status"] for m in client.get("/v1/models").json()["data"]}
        assert statuses == {"test/one": "ready", "test/two": "failed"}


def as_tensorrt(manifest: Any) -> Any:
    record = manifest.backend.model_copy(update={"name": "tensorrt-llm"})
    target = Target(kind="gpu", name="any", capability="sm_120")
    return manifest.model_copy(update={"backend": record, "target": target})


def test_engine_that_cannot_be_loaded_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "one", name="one", model_id="test/one")
    two = make_echo_engine(tmp_path / "two", name="two", model_id="test/two")
    write_manifest(two.path, as_tensorrt(two.manifest))
    with serving(tmp_path) as server, client_of(server) as client:
        assert "engine `two` is not served: engine `two` was built for sm_120" in server.log
        assert ask(client, "test/one").status_code == 200
        assert_error(ask(client, "test/two"), 503, "engine_unavailable", None)
        assert client.get("/health/ready").status_code == 200
        assert "Model      test/two" not in server.log


def test_first_engine_that_cannot_be_loaded_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    one = make_echo_engine(tmp_path / "one", name="one", model_id="test/one")
    write_manifest(one.path, as_tensorrt(one.manifest))
    make_echo_engine(tmp_path / "two", name="two", model_id="test/two")
    with serving(tmp_path) as server, client_of(server) as client:
        assert client.get("/health").json()["model"] == "test/two"
        assert client.get("/health/ready").json()["model"] == "test/two"
        assert ask(client).json()["model"] == "test/two"
        assert_error(ask(client, "test/one"), 503, "engine_unavailable", None)


def test_engine_that_ends_without_a_word_is_named(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "one", name="one", model_id="test/one", script="no token id")
    make_echo_engine(tmp_path / "two", name="two", model_id="test/two")
    with serving(tmp_path) as server:
        assert "engine `one` is not served: " in server.log


def test_alias_does_not_move_to_another_model_when_its_own_does_not_fit(tmp_path: Path) -> None:
    huge = make_echo_engine(tmp_path / "huge", name="huge", model_id="test/huge")
    write_manifest(huge.path, huge.manifest.model_copy(update={"kv_bytes_per_token": 10**12}))
    make_echo_engine(tmp_path / "tiny", name="tiny", model_id="test/tiny")
    with serving(tmp_path, "--served-model-name", "gpt-4") as server, client_of(server) as client:
        assert "engine `huge` is not served: it needs " in server.log
        assert "nothing answers to `gpt-4`" in server.log
        assert_error(ask(client, "gpt-4"), 404, "model_not_found", "model")
        assert ask(client).json()["model"] == "test/tiny"


def test_alias_of_another_engine_ends_the_start(tmp_path: Path) -> None:
    make_engines(tmp_path)
    with starting(tmp_path, "--served-model-name", "test/c") as server:
        assert server.wait() == 1
    assert "error: `test/c` cannot be a name of engine `a.int4`" in server.log
    assert "hint: choose another with `--served-model-name`" in server.log
