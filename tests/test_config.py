"""Configuration: which layer wins, and what is said when a value is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepinfer.config import ServeConfig, config_fields, environment_name
from deepinfer.config_layers import Setting, format_config, load_config
from deepinfer.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text)
    return file


def flag(path: str, value: str) -> Setting:
    return Setting(path, value, "option `--x`")


def test_nothing_given_is_the_defaults() -> None:
    resolved = load_config(None, {}, [])
    assert resolved.config == ServeConfig()
    assert resolved.sources == {}


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    file = write(tmp_path, "server: {port: 1, host: 0.0.0.1}\nengine: {model: from-file}\n")
    environment = {"DEEPINFER_SERVER_PORT": "2", "DEEPINFER_SERVER_HOST": "0.0.0.2", "HOME": "/"}
    resolved = load_config(file, environment, [flag("server.port", "3")])
    config = resolved.config
    assert (config.server.port, config.server.host, config.engine.model) == (
        3,
        "0.0.0.2",
        "from-file",
    )
    assert resolved.sources == {
        "server.port": "option `--x`",
        "server.host": "environment variable `DEEPINFER_SERVER_HOST`",
        "engine.model": f"`{file}` line 2",
    }


def test_longest_sequence_is_taken_from_the_last_layer_that_says_it(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {max_seq_len: 512}\n")
    environment = {"DEEPINFER_ENGINE_MAX_SEQ_LEN": "256"}
    command = [flag("engine.max_seq_len", "128")]
    layers = [(None, {}, []), (file, {}, []), (file, environment, []), (file, environment, command)]
    configs = [load_config(*layer).config for layer in layers]
    assert [config.engine.max_seq_len for config in configs] == [None, 512, 256, 128]


def test_null_in_a_file_is_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "server:\nengine: {kv_cache_gb: null}\n")
    assert load_config(file, {}, []).config == ServeConfig()


def test_every_key_can_be_given_in_the_environment() -> None:
    values = {
        "server.host": "h",
        "server.port": "5",
        "server.api_key": "k",
        "server.api_key_file": "f",
        "server.metrics_need_key": "false",
        "server.allowed_hosts": "Box.example, *.internal",
        "server.cors_origins": "https://a.example, http://localhost:3000",
        "server.tls_certificate": "c",
        "server.tls_key": "t",
        "limits.requests_per_minute": "60",
        "limits.tokens_per_minute": "1000",
        "limits.concurrent_requests": "4",
        "server.default_max_tokens": "256",
        "server.max_body_bytes": "2048",
        "server.shutdown_timeout_s": "1.5",
        "engine.engine_dir": "d",
        "engine.model": "m",
        "engine.served_model_names": "a, b",
        "engine.lora": "x=a/b, y=c",
        "engine.max_seq_len": "2048",
        "server.receive_timeout_s": "40",
        "server.request_timeout_s": "30",
        "server.queue_timeout_s": "20",
        "server.first_byte_timeout_s": "3",
        "server.stalled_client_timeout_s": "9",
        "server.result_attachments": "refuse",
        "engine.max_waiting_requests": "6",
        "engine.max_waiting_tokens": "600",
        "engine.resume_attempts": "2",
        "engine.hang_timeout_s": "1.5",
        "engine.kv_cache_gb": "0.5",
        "engine.kv_cache_fraction": "0.75",
        "engine.num_threads": "7",
        "engine.prompt_lookup": "4",
        "engine.draft_engine": "e",
        "engine.draft_tokens": "3",
        "engine.allow_untried_release": "true",
        "engine.tool_format": "glm-4.5",
        "engine.generation_config": "none",
        "logging.level": "DEBUG",
        "logging.format": "JSON",
        "logging.traces": "true",
    }
    assert values.keys() == config_fields().keys()
    environment = {environment_name(path): value for path, value in values.items()}
    config = load_config(None, environment, []).config
    assert config.server.shutdown_timeout_s == 1.5
    assert config.engine.engine_dir == Path("d")
    assert config.server.allowed_hosts == ("box.example", "*.internal")
    assert config.engine.served_model_names == ("a", "b")
    assert config.engine.lora == ("x=a/b", "y=c")
    assert config.logging.level == "debug"
    assert (config.logging.format, config.logging.traces) == ("json", True)
    assert not config.server.metrics_need_key
    assert config.server.api_key is not None
    assert config.server.api_key.get_secret_value() == "k"


WRONG_FILES = {
    "unknown key": ("server:\n  prot: 1\n", "line 2: unknown key `server.prot`", "`server.port`"),
    "unknown section": ("sever:\n  port: 1\n", "line 1: unknown section `sever`", "`server`"),
    "out of range": (
        "server:\n\n  port: 70000\n",
        "line 3: `server.port` must be at most 65,535; `70000` was given",
        "Port to listen on",
    ),
    "wrong type": (
        "server:\n  port: many\n",
        'line 2: `server.port` must be a whole number; `"many"` was given',
        "",
    ),
    "too many guesses": (
        "engine:\n  prompt_lookup: 17\n",
        "line 2: `engine.prompt_lookup` must be at most 16; `17` was given",
        "",
    ),
    "no room for prompt and answer": (
        "engine:\n  max_seq_len: 1\n",
        "line 2: `engine.max_seq_len` must be at least 2; `1` was given",
        "",
    ),
    "not finite": ("engine:\n  kv_cache_gb: .nan\n", "line 2: `engine.kv_cache_gb` must be a", ""),
    "key as a number": ("server:\n  api_key: 12345\n", "line 2: `server.api_key` must be a s", ""),
    "twice": ("server:\n  port: 1\n  port: 2\n", "line 3: `port` is given twice", ""),
    "list": ("- server\n", "line 1: the file must hold keys and values", ""),
    "section is a list": ("server: [1]\n", "line 1: `server` must hold keys and values", ""),
    "not YAML": ("server: [1\n", "line 2: not valid YAML: ", ""),
    "binary": ("\0", ": not valid YAML: unacceptable character", ""),
    "object": ("server:\n  port: !!python/name:os.x 1\n", "line 2: not valid YAML: could not", ""),
}


@pytest.mark.parametrize(
    ("text", "message", "hint"), list(WRONG_FILES.values()), ids=list(WRONG_FILES)
)
def test_wrong_file_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str, hint: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load_config(file, {}, [])
    assert refused.value.message.startswith(f"`{file}`")
    assert message in refused.value.message
    assert "\n" not in refused.value.message
    assert hint in (refused.value.hint or "")


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file .*: No such file"):
        load_config(tmp_path / "absent.yaml", {}, [])


def test_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="`DEEPINFER_SERVER_PROT`") as refused:
        load_config(None, {"DEEPINFER_SERVER_PROT": "1"}, [])
    assert refused.value.hint == "did you mean `DEEPINFER_SERVER_PORT`?"


def test_wrong_value_is_reported_where_it_came_from() -> None:
    with pytest.raises(ConfigError, match="^environment variable `DEEPINFER_SERVER_PORT`: "):
        load_config(None, {"DEEPINFER_SERVER_PORT": "x"}, [])
    with pytest.raises(ConfigError, match="^option `--x`: "):
        load_config(None, {"DEEPINFER_SERVER_PORT": "x"}, [flag("server.port", "-1")])


def test_names_are_a_list_in_a_file_and_divided_by_commas_elsewhere(tmp_path: Path) -> None:
    file = write(tmp_path, "engine: {served_model_names: [a, b/c]}\n")
    assert load_config(file, {}, []).config.engine.served_model_names == ("a", "b/c")
    given = load_config(None, {}, [flag("engine.served_model_names", "a,b/c")])
    assert given.config.engine.served_model_names == ("a", "b/c")
    assert "served_model_names: [a, b/c]  # option" in format_config(given)


@pytest.mark.parametrize("origin", ["example.com", "https://a.example/", "https://", "null"])
def test_wrong_origin_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="`server.cors_origins` must be \\* or an origin"):
        load_config(None, {}, [flag("server.cors_origins", f"https://a.example,{origin}")])


@pytest.mark.parametrize("names", ["", "a,,b", "a,"])
def test_empty_name_is_refused(names: str) -> None:
    with pytest.raises(ConfigError, match="`engine.served_model_names` must not be empty"):
        load_config(None, {}, [flag("engine.served_model_names", names)])


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ServeConfig().server.port = 1  # type: ignore[misc]


SECRET = "do-not-show-this"


def test_secret_is_never_shown(tmp_path: Path) -> None:
    resolved = load_config(None, {"DEEPINFER_SERVER_API_KEY": SECRET}, [])
    assert SECRET not in format_config(resolved) + repr(resolved)
    assert "api_key: '********'  # environment" in format_config(resolved)
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, f"server: {{api_key: [{SECRET}]}}"), {}, [])
    assert SECRET not in refused.value.message + str(refused.value.hint)


def test_printed_configuration_is_read_back_to_the_same(tmp_path: Path) -> None:
    flags = [flag("engine.engine_dir", "a: b # c"), flag("engine.kv_cache_gb", "1.5")]
    resolved = load_config(None, {}, flags)
    file = write(tmp_path, format_config(resolved))
    assert load_config(file, {}, []).config == resolved.config


def test_empty_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="`server.api_key` must not be empty"):
        load_config(None, {"DEEPINFER_SERVER_API_KEY": ""}, [])


def test_default_file_holds_every_key_with_its_default() -> None:
    file = CONFIGS / "default.yaml"
    assert load_config(file, {}, []).config == ServeConfig()
    content = yaml.safe_load(file.read_text())
    paths = [f"{section}.{key}" for section, keys in content.items() for key in keys]
    assert paths == list(config_fields())


@pytest.mark.parametrize("name", ["cpu", "rtx5090"])
def test_shipped_file_is_valid_and_says_something(name: str) -> None:
    assert load_config(CONFIGS / f"{name}.yaml", {}, []).config != ServeConfig()


def test_documentation_names_every_key() -> None:
    text = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    for path, field in config_fields().items():
        assert f"| `{path}` | `{environment_name(path)}` |" in text
        assert str(field.description) in text


def deepinfer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepinfer", "serve", *arguments], capture_output=True, text=True
    )


def test_print_config_shows_sources_and_starts_nothing() -> None:
    run = deepinfer("--print-config", "--config", str(CONFIGS / "cpu.yaml"), "--port", "9000")
    assert run.returncode == 0
    assert "port: 9000  # option --port\n" in run.stdout
    assert "max_waiting_requests: 128  # " in run.stdout
    assert "host: 127.0.0.1  # default\n" in run.stdout
    assert run.stderr == ""


def test_wrong_option_is_one_line_and_a_hint() -> None:
    run = deepinfer("--port", "x")
    assert run.returncode == 1
    assert run.stderr == (
        'error: option `--port`: `server.port` must be a whole number; `"x"` was given\n'
        "hint: server.port: Port to listen on; 0 takes a free one\n"
    )


@pytest.mark.parametrize("given", ["option", "variable", "file"])
def test_number_of_api_processes_is_refused_with_what_to_do(tmp_path: Path, given: str) -> None:
    file = write(tmp_path, "server:\n  api_workers: 2\n")
    options = {"option": ["--api-workers", "2"], "file": ["--config", str(file)], "variable": []}
    variables = {"DEEPINFER_SERVER_API_WORKERS": "2"} if given == "variable" else {}
    run = subprocess.run(
        [sys.executable, "-m", "deepinfer", "serve", "--print-config", *options[given]],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    error, hint = run.stderr.splitlines()
    assert "`server.api_workers` was removed" in error and "load balancer" in hint
