"""Files of strangers: engines, checkpoints and recipes that are not what they should be."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deepinfer
from deepinfer.__main__ import main
from deepinfer.backends.simulated import SimulatedBackend
from deepinfer.checkpoint import read_checkpoint
from deepinfer.compiler.options import read_options
from deepinfer.compiler.staging import open_staging
from deepinfer.config import ServeConfig
from deepinfer.config_layers import read_config_file
from deepinfer.errors import BuildError, CheckpointError, ConfigError, EngineError
from deepinfer.manifest import MANIFEST_NAME, find_damage, read_engine
from deepinfer.server.choice import choose_engines
from deepinfer.server.keys import read_keys
from deepinfer.server.tls import open_tls
from deepinfer.text.folder import TokenizerFolder
from deepinfer.weights import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, read_weights
from tests.engines import make_simulated_engine

DEEP_JSON = '{"a":' * 100_000
LONG_NUMBER = "9" * 5_000
SAMPLE_DIR = Path(deepinfer.__file__).parent / "sample"
DEADLINE_S = 60

# engine.json

WRONG: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "no date": (("build", "created_at"), "yesterday", "build.created_at"),
    "a date without a zone": (("build", "created_at"), "2026-01-01T00:00:00", "build.created_at"),
    "a date before dates": (
        ("build", "created_at"),
        "0001-01-01T00:00:00+00:00",
        "build.created_at",
    ),
    "a month too many": (
        ("build", "created_at"),
        "2026-13-01T00:00:00+00:00",
        "build.created_at",
    ),
    "a version that is none": (("backend", "version"), "1\n2", "backend.version"),
    "no version": (("build", "deepinfer_version"), "", "build.deepinfer_version"),
    "a vocabulary beyond memory": (("tokens", "vocab_size"), 10**12, "tokens.vocab_size"),
    "an end beyond the vocabulary": (("tokens", "eos_token_ids"), [512], "tokens"),
    "an end below it": (("tokens", "eos_token_ids"), [-1], "tokens"),
    "a GPU that is none": (("target",), {"kind": "gpu", "name": "x", "capability": "x"}, "target"),
    "a kind that is none": (("target", "kind"), "tpu", "target.kind"),
    "a CPU's library for a GPU": (
        ("backend", "name"),
        "tensorrt-llm",
        "must be gpu for the backend tensorrt-llm",
    ),
    "a limit beyond counting": (("limits", "max_seq_len"), 10**30, "limits.max_seq_len"),
    "a number of 5,000 digits": (("limits", "max_batch_size"), 10**4_000, "limits.max_batch_size"),
    "a file elsewhere": (
        ("files",),
        {"../secret": {"size_bytes": 1, "sha256": "0" * 64}},
        "within the engine's folder",
    ),
    "an absolute file": (
        ("files",),
        {"/etc/passwd": {"size_bytes": 1, "sha256": "0" * 64}},
        "within the engine's folder",
    ),
    "a negative time": (("build", "duration_s"), -1, "build.duration_s"),
}


@pytest.mark.parametrize(("path", "value", "place"), WRONG.values(), ids=WRONG.keys())
def test_wrong_value_in_a_manifest_is_refused_by_its_place(
    tmp_path: Path, path: tuple[str, ...], value: Any, place: str
) -> None:
    make_simulated_engine(tmp_path)
    document = json.loads((tmp_path / MANIFEST_NAME).read_text())
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(EngineError) as raised:
        read_engine(tmp_path)
    assert place in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize(
    "settings",
    [
        {"load_ms": 10**12},
        {"step_us": -1},
        {"tokens_per_block": 0},
        {"num_blocks": "many"},
        {"script": "1 2 x"},
        {"scrip": "1"},
    ],
    ids=str,
)
def test_wrong_setting_of_a_simulated_engine_is_refused_by_name(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    engine = make_simulated_engine(tmp_path, settings=settings)
    with pytest.raises(EngineError, match=next(iter(settings))):
        SimulatedBackend.load(engine)


@pytest.mark.parametrize("text", [DEEP_JSON, "[" * 100_000, LONG_NUMBER], ids=lambda t: t[:5])
def test_manifest_that_nests_without_end_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(EngineError, match="damaged"):
        read_engine(tmp_path)


@pytest.mark.parametrize("command", ["list", "inspect", "verify"])
def test_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path: Path, command: str) -> None:
    (tmp_path / "engine").mkdir()
    os.mkfifo(tmp_path / "engine" / MANIFEST_NAME)
    names = [] if command == "list" else ["engine"]
    done = subprocess.run(
        [*(sys.executable, "-m", "deepinfer", "engines", command), *names]
        + ["--engine-dir", str(tmp_path)],
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.startswith(b"error: ")


def test_pipe_in_the_place_of_a_tokenizer_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer_config.json")
    assert TokenizerFolder(tmp_path).config == {}


# What the manifest does not list

ADDED: dict[str, Callable[[Path, Path], object]] = {
    "a file": lambda path, _: path.write_text("{}"),
    "a link out": lambda path, secret: path.symlink_to(secret),
    "a link to a folder": lambda path, secret: path.symlink_to(secret.parent),
    "a link to nothing": lambda path, _: path.symlink_to("nowhere"),
    "a pipe": lambda path, _: os.mkfifo(path),
}


@pytest.mark.parametrize("place", ["tokenizer/special_tokens_map.json", "payload/x", "x"])
@pytest.mark.parametrize("add", ADDED.values(), ids=ADDED.keys())
def test_what_the_manifest_does_not_list_is_damage(
    tmp_path: Path,
    place: str,
    add: Callable[[Path, Path], object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    secret = tmp_path / "elsewhere" / "secret.json"
    secret.parent.mkdir()
    secret.write_text('{"bos_token": "a secret"}')
    engine = make_simulated_engine(tmp_path / "engines" / "engine")
    add(engine.path / place, secret)
    assert list(find_damage(engine, with_digests=False)) == [f"{place} is not in the manifest"]
    assert main(["engines", "verify", "engine", "--engine-dir", str(tmp_path / "engines")]) == 1
    assert place in capsys.readouterr().out
    with pytest.raises(EngineError, match="is not in the manifest"):  # as `serve` does
        choose_engines(tmp_path / "engines", None)


def test_folder_with_nothing_in_it_is_no_damage(tmp_path: Path) -> None:
    engine = make_simulated_engine(tmp_path)
    (tmp_path / "payload" / "empty").mkdir()
    assert not list(find_damage(engine, with_digests=True))


# Checkpoints


def write_header(path: Path, header: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    "header",
    [DEEP_JSON.encode(), b"[" * 100_000, LONG_NUMBER.encode(), b'{"a":{"shape":[1e999]}}'],
    ids=["objects", "arrays", "a number", "infinity"],
)
def test_safetensors_header_that_is_none_is_damage(tmp_path: Path, header: bytes) -> None:
    write_header(tmp_path / WEIGHTS_NAME, header)
    with pytest.raises(CheckpointError, match="header"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "a/../../b", "x\x00y"], ids=ascii
)
def test_index_names_no_file_outside_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / WEIGHTS_INDEX_NAME).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        DEEP_JSON,
        f'{{"architectures": ["LlamaForCausalLM"], "hidden_size": {LONG_NUMBER}}}',
        f'{{"architectures": ["LlamaForCausalLM"], "hidden_size": {"9" * 4_000}}}',
        '{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "rope_theta": 1'
        + "0" * 4_000
        + "}",
    ],
    ids=["deep", "5,000 digits", "4,000 digits", "a large theta"],
)
def test_configuration_of_a_checkpoint_that_is_none_is_one_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert main(["build", "--dry-run", "--model", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and "internal" not in lines[0] and len(lines) <= 2
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


# YAML of recipes and of the configuration

WRONG_YAML = {
    "deep": "model: " + "[" * 50_000,
    "5,000 digits": f"max_seq_len: {LONG_NUMBER}",
    "a day that is none": "revision: 2026-02-31",
    "controls": "model: \x1b[2J",
}


@pytest.mark.parametrize("text", WRONG_YAML.values(), ids=WRONG_YAML.keys())
def test_recipe_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        read_options(recipe, {})


@pytest.mark.parametrize("text", WRONG_YAML.values(), ids=WRONG_YAML.keys())
def test_configuration_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server:\n  " + text.replace("max_seq_len", "port").replace("revision", "port"))
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_config_file(file)


# Where an engine is written to


@pytest.mark.parametrize("folder", ["file/engines", "a" * 300], ids=["below a file", "too long"])
def test_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()

    def on_wait() -> None:
        raise AssertionError

    with pytest.raises(BuildError, match="cannot write to") as raised:
        with open_staging(tmp_path / folder / "engine", on_wait):
            raise AssertionError
    assert raised.value.hint is not None and "--output" in raised.value.hint


def test_name_that_no_file_system_takes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "sample", "--dry-run", "--output", str(tmp_path)]
    assert main(["build", *options, "--name", "a" * 300]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert "cannot be the name" in error and "200" in hint
    assert main(["build", *options, "--name", "a" * 200]) == 0


def test_model_with_a_long_name_gets_an_engine_name_that_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for last in "xy":
        folder = tmp_path / ("a" * 240 + last)
        shutil.copytree(SAMPLE_DIR, folder)
        options = ["--model", str(folder), "--dry-run", "--json", "--output", str(tmp_path)]
        assert main(["build", *options]) == 0
        names.append(json.loads(capsys.readouterr().out)["name"])
    assert names[0] != names[1] and max(map(len, names)) <= 200


# Files that keep a server's secrets


@pytest.mark.parametrize(("mode", "warns"), [(0o606, True), (0o602, True), (0o604, False)])
def test_key_file_that_everybody_writes_to_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key")
    file.chmod(mode)
    read_keys(ServeConfig.model_validate({"server": {"api_key_file": file}}))
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == warns
    assert not warns or str(file) in warned[0].getMessage()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key, both of this test alone."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(key), "-out", str(chain)]
    subprocess.run(
        ["openssl", "req", "-x509", *options, "-subj", "/CN=localhost", *files],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return chain, key


@pytest.mark.parametrize("has_own_file", [True, False], ids=["a file", "in the certificate's"])
@pytest.mark.parametrize(("mode", "warns"), [(0o604, True), (0o640, False)])
def test_private_key_that_everybody_reads_is_warned_of(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    certificate: tuple[Path, Path],
    mode: int,
    warns: bool,
    has_own_file: bool,
) -> None:
    chain, key = certificate
    if not has_own_file:
        chain.write_text(chain.read_text() + key.read_text())
    (key if has_own_file else chain).chmod(mode)
    open_tls(chain, key if has_own_file else None)
    warned = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == warns
