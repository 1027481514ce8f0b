"""What `--model` may say, and the hub's answers in one line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import requests

from deepinfer.compiler import source
from deepinfer.compiler.progress import Progress
from deepinfer.compiler.source import fetch_weights, find_checkpoint
from deepinfer.errors import CheckpointError
from tests.checkpoints import make_adapter, make_checkpoint
from tests.compiler.fake_hub import COMMIT, FakeHub, serve_hub

MODEL = "somebody/tiny-llama"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Large enough that the weights' bytes would be seen among those of their headers.
    folder = tmp_path_factory.mktemp("llama")
    return make_checkpoint(folder, vocab_padding=8000, sharded=True, dtype="bfloat16")


@pytest.fixture
def hub(llama: Path) -> Iterator[FakeHub]:
    with serve_hub(FakeHub({MODEL: llama})) as hub:
        yield hub


def run_build(
    hub: FakeHub | None, cache: Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",  # the discard port: nobody answers
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        **environment,
    }
    env.pop("HF_TOKEN", None)
    return subprocess.run(
        [sys.executable, "-m", "deepinfer", "build", *flags],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_folder_is_read(llama: Path) -> None:
    checkpoint = find_checkpoint(str(llama))
    assert (checkpoint.id, checkpoint.source) == (llama.name, str(llama))
    assert checkpoint.has_weights


@pytest.fixture
def cached(llama: Path, tmp_path: Path) -> Path:
    """A repository in the hub's cache, with a snapshot that is current and one that is not."""
    repository = tmp_path / "models--somebody--tiny-llama"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("a" * 40)).symlink_to(llama)
    (repository / "snapshots" / ("b" * 40)).mkdir()
    return repository


def test_folder_of_the_hub_cache_is_read_at_its_current_snapshot(cached: Path) -> None:
    checkpoint = find_checkpoint(str(cached))
    assert checkpoint.id == "somebody/tiny-llama"
    assert checkpoint.source == str(cached)
    assert checkpoint.folder == cached / "snapshots" / ("a" * 40)
    assert checkpoint.has_weights


def test_snapshot_of_the_hub_cache_has_the_id_of_its_repository(cached: Path, llama: Path) -> None:
    snapshot = cached / "snapshots" / ("b" * 40)
    for path in llama.iterdir():
        (snapshot / path.name).symlink_to(path)
    checkpoint = find_checkpoint(str(snapshot))
    assert (checkpoint.id, checkpoint.folder) == ("somebody/tiny-llama", snapshot)


def test_id_without_an_organisation_is_read_from_the_hub_cache(cached: Path) -> None:
    moved = cached.rename(cached.parent / "models--gpt2")
    assert find_checkpoint(str(moved)).id == "gpt2"


def test_only_snapshot_of_the_hub_cache_needs_no_ref(cached: Path) -> None:
    (cached / "refs" / "main").unlink()
    (cached / "snapshots" / ("b" * 40)).rmdir()
    assert find_checkpoint(str(cached)).id == "somebody/tiny-llama"


@pytest.mark.parametrize("ref", [None, "c" * 40, "../../elsewhere"])
def test_folder_of_the_hub_cache_without_a_current_snapshot_is_refused(
    cached: Path, ref: str | None
) -> None:
    (cached / "refs" / "main").unlink()
    if ref is not None:
        (cached / "refs" / "main").write_text(ref)
    with pytest.raises(CheckpointError, match="refs/main") as refused:
        find_checkpoint(str(cached))
    assert "--model somebody/tiny-llama" in (refused.value.hint or "")


def test_sample_is_read_from_the_package(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "SAMPLE_DIR", llama)
    assert find_checkpoint("sample").id == "sample"


@pytest.mark.parametrize("model", ["./none", "/none/at/all", "a/b/c", "~/none", "model name"])
def test_missing_folder_is_refused(model: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        find_checkpoint(model)
    assert "`--model <hub id | folder | sample>`" in (caught.value.hint or "")


def test_file_is_refused(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        find_checkpoint(str(llama / "config.json"))


def test_revision_of_a_folder_is_refused(llama: Path) -> None:
    with pytest.raises(CheckpointError, match="`--revision v1` is for models on the hub"):
        find_checkpoint(str(llama), "v1")


def test_plan_of_a_hub_model_reads_headers_and_not_weights(
    hub: FakeHub, llama: Path, tmp_path: Path
) -> None:
    done = run_build(hub, tmp_path, "--model", MODEL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["model_id"], plan["revision"]) == (MODEL, COMMIT)
    assert plan["num_parameters"] == find_checkpoint(str(llama)).num_parameters
    for path in llama.glob("*.safetensors"):
        # The hub's client asks for the first 100,001 bytes, to have the header in one request.
        assert hub.sent_bytes[path.name] <= 100_001
    embedding = max(llama.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    assert embedding.stat().st_size > 1_000_000


def test_build_of_a_hub_model_downloads_it_once(hub: FakeHub, tmp_path: Path) -> None:
    flags = ["--model", MODEL, "--output", str(tmp_path / "engines"), "--precision", "int8"]
    done = run_build(hub, tmp_path / "cache", *flags)
    assert done.returncode == 0, done.stderr
    assert "download" in done.stderr
    manifest = json.loads((tmp_path / "engines/tiny-llama.int8.cpu/engine.json").read_text())
    assert (manifest["model"]["id"], manifest["model"]["revision"]) == (MODEL, COMMIT)
    hub.sent_bytes.clear()
    again = run_build(hub, tmp_path / "cache", *flags)
    assert "is up to date" in again.stdout
    assert not hub.sent_bytes
    offline = run_build(None, tmp_path / "cache", *flags, HF_HUB_OFFLINE="1")
    assert "is up to date" in offline.stdout, offline.stderr


def test_download_that_does_not_fit_is_refused_before_it_begins(llama: Path) -> None:
    remote = replace(
        find_checkpoint(str(llama)), id=MODEL, revision=COMMIT, folder=Path("/nowhere")
    )
    huge = replace(remote, weights=replace(remote.weights, num_bytes=2**60))
    with pytest.raises(CheckpointError, match="of disk; .* are free") as caught:
        fetch_weights(huge, Progress())
    assert "set HF_HOME" in (caught.value.hint or "")


REFUSALS = {
    "gated": ((403, "GatedRepo"), "is gated", "then `hf auth login`"),
    "private-or-none": ((401, ""), "there is no model `x/y` on the hub, or it is private", "spell"),
    "broken-hub": ((500, ""), "the hub", "again later"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_said_in_one_line(hub: FakeHub, tmp_path: Path, name: str) -> None:
    refusal, message, hint = REFUSALS[name]
    hub.refusals["x/y"] = refusal
    done = run_build(hub, tmp_path, "--model", "x/y", "--dry-run")
    assert done.returncode == 1
    error, hint_line = done.stderr.splitlines()
    assert error.startswith("error: ") and message in error
    assert hint_line.startswith("hint: ") and hint in hint_line


def test_unknown_model_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    done = run_build(hub, tmp_path, "--model", "somebody/none", "--dry-run")
    assert "error: there is no model `somebody/none` on the hub" in done.stderr


def test_unknown_revision_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    done = run_build(hub, tmp_path, "--model", MODEL, "--revision", "v9", "--dry-run")
    assert f"error: `{MODEL}` has no revision `v9`" in done.stderr


def test_repository_with_pickled_weights_only_is_refused(
    hub: FakeHub, llama: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (pickled / name).write_bytes((llama / name).read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    hub.repositories["x/pickled"] = pickled
    done = run_build(hub, tmp_path / "cache", "--model", "x/pickled", "--dry-run")
    assert "error: `x/pickled` has no safetensors" in done.stderr
    assert not hub.sent_bytes["pytorch_model.bin"]


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no-hub", "offline"])
def test_no_network_is_said_in_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    done = run_build(None, tmp_path, "--model", MODEL, "--dry-run", **environment)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"error: `{MODEL}` is not on this machine, and the hub cannot be reached"
    assert "`--model <folder>` here" in hint


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_broken_connection_of_either_http_library_is_one_line(library: str) -> None:
    error = {"httpx": httpx.ConnectError("refused"), "requests": requests.ConnectionError("no")}
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        with source._hub_errors_translated(MODEL, None):
            raise error[library]


def test_adapter_and_base_of_the_hub_are_planned_without_the_weights(
    llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter", llama)
    with serve_hub(FakeHub({MODEL: llama, "somebody/story": adapter})) as hub:
        flags = ("--target", "cpu", "--dry-run", "--json")
        made = run_build(
            hub, tmp_path / "cache", "--model", MODEL, "--lora", "somebody/story", *flags
        )
        assert made.returncode == 0, made.stderr
        plan = json.loads(made.stdout)
        assert plan["name"].startswith("tiny-llama-story.")
        assert (plan["adapter"]["source"], plan["adapter"]["revision"]) == (
            "somebody/story",
            COMMIT,
        )
        weights = sum(path.stat().st_size for path in llama.glob("*.safetensors"))
        sent = sum(count for name, count in hub.sent_bytes.items() if name.startswith("model-"))
        assert sent < weights / 2, "headers only"
        gone = run_build(hub, tmp_path / "cache", "--model", MODEL, "--lora", "some/thing", *flags)
        assert gone.returncode == 1
        assert "there is no model `some/thing` on the hub, or it is private" in gone.stderr
