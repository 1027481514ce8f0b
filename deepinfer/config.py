"""What an operator decides about a server: defaults < YAML < DEEPINFER_* environment < flags.

One frozen model says every key, its type, its bounds, its default and what it is for; the command
line, the docs and the tests read them from there. A key is addressed by its path, `server.port`,
in the environment by `DEEPINFER_SERVER_PORT`. Each value remembers where it came from, so that a
wrong one is reported at its source. This module knows no command line and no server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from deepinfer.errors import ConfigError
from deepinfer.logs import LogFormat
from deepinfer.validation import describe_rule, show_value, suggest

ENVIRONMENT_PREFIX = "DEEPINFER_"
MASK = "********"
NULL_TAG = "tag:yaml.org,2002:null"

ModelName = Annotated[str, Field(min_length=1)]
AdapterText = Annotated[str, Field(min_length=3)]
LogLevel = Literal["debug", "info", "warning", "error"]
# "auto", the formats of `deepinfer.text.tool_calls`, and "none".
ToolFormatName = Literal[
    "auto", "hermes", "llama3", "mistral", "mistral-args", "qwen3-coder", "glm-4.5", "none"
]


ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+")


def _check_origin(origin: str) -> str:
    if ORIGIN.fullmatch(origin) is None:
        raise PydanticCustomError(
            "origin", "must be * or an origin as browsers send it, such as https://example.com"
        )
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _split_commas(value: object) -> object:
    """Words with commas between them, or a list of words, as a tuple; others are refused later."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return words
    return tuple(word.strip() if isinstance(word, str) else word for word in words)


class ServerSection(Section):
    """Where to listen, and what every request must keep to."""

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one"
    )
    api_key: SecretStr | None = Field(
        default=None, min_length=1, description="Key that clients must send; none: no key is needed"
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with further keys, one a line as `name: key`; read again on SIGHUP",
    )
    metrics_need_key: bool = Field(
        default=True, description="Whether /metrics asks for a key as other routes do"
    )
    cors_origins: tuple[Origin, ...] | None = Field(
        default=None,
        min_length=1,
        description="Origins whose pages may call from a browser, with commas between them; "
        "* is any; none: no page may",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate chain, to serve HTTPS"
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM file with the certificate's key; none: it stands in the certificate's",
    )
    max_body_bytes: int = Field(
        default=8 * 2**20,
        ge=1024,
        description="Largest request body; a larger one is refused with 413",
    )
    receive_timeout_s: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds in which the head of a request must have come, and then its body",
    )
    request_timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a request may take in all; none: as long as it needs",
    )
    queue_timeout_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a request may wait for its turn; none: as long as it takes",
    )
    stalled_client_timeout_s: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a client may leave a stream unread before it is cancelled",
    )
    shutdown_timeout_s: float = Field(
        default=45.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that running requests have to finish after SIGTERM",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_commas(value)


class LimitsSection(Section):
    """What one key may ask of the routes that generate; without keys, what all may together."""

    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Requests that a key may make a minute; more are refused with 429",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that a key may use a minute, of prompts and answers together; more "
        "are refused with 429",
    )
    concurrent_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests of a key that may run or wait at a time; more are refused with 429",
    )


class EngineSection(Section):
    """Which engines to load, and what their processes may take."""

    engine_dir: Path = Field(
        default=Path("engines"), description="One engine, or a folder of engines"
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Engine name or model id, to serve that engine only of a folder of several",
    )
    served_model_names: tuple[ModelName, ...] | None = Field(
        default=None,
        min_length=1,
        description="Names by which clients may call the first engine, with commas between them; "
        "answers say the first name",
    )
    lora: tuple[AdapterText, ...] | None = Field(
        default=None,
        min_length=1,
        description="LoRA adapter as name=folder, for an engine that was built with "
        "--max-lora-rank; requests choose it by its name as `model`; several are given by several "
        "options, or with commas between them",
    )
    max_waiting_requests: int = Field(
        default=1024,
        ge=1,
        description="Sequences that may wait for the engine; more are refused with 429",
    )
    max_waiting_tokens: int = Field(
        default=4_000_000,
        ge=1,
        description="Prompt tokens that may wait for the engine; more are refused with 429",
    )
    resume_attempts: int = Field(
        default=5,
        ge=0,
        description="Deaths of the engine that a running request outlives: it goes on in the next "
        "one; 0 ends it with an error",
    )
    hang_timeout_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without an answer and without computing after which an engine is "
        "killed and started again",
    )
    kv_cache_gb: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Size of the KV cache in GiB, which several engines share; none: what full "
        "batches need and memory allows",
    )
    kv_cache_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Most of the free memory that the KV cache takes; none: 0.6 of a CPU's, "
        "0.9 of a GPU's",
    )
    num_threads: int | None = Field(
        default=None, ge=1, description="CPU threads of each engine; none: every CPU it may use"
    )
    tool_format: ToolFormatName = Field(
        default="auto",
        description="How the models write calls of tools; auto: as their chat templates show it",
    )

    @field_validator("served_model_names", "lora", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return _split_commas(value)


class LoggingSection(Section):
    level: LogLevel = Field(default="info", description="Least severe level that is logged")
    format: LogFormat = Field(
        default="text", description="Lines of text, or one JSON object a line"
    )
    traces: bool = Field(
        default=False,
        description="Send a trace of each request to the OpenTelemetry collector that "
        "OTEL_EXPORTER_OTLP_ENDPOINT names",
    )

    @field_validator("level", "format", mode="before")
    @classmethod
    def _ignore_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value


class ServeConfig(Section):
    """Everything that `deepinfer serve` can be told."""

    server: ServerSection = ServerSection()
    limits: LimitsSection = LimitsSection()
    engine: EngineSection = EngineSection()
    logging: LoggingSection = LoggingSection()


@dataclass(frozen=True)
class Setting:
    """One value that somebody gave, and where: "`--port`", "`configs/cpu.yaml` line 3"."""

    path: str
    value: Any
    source: str


@dataclass(frozen=True)
class ResolvedConfig:
    """The outcome, with the source of each value that is not a default, by path."""

    config: ServeConfig
    sources: Mapping[str, str]


def config_fields() -> dict[str, FieldInfo]:
    """Every key by its path, in the order in which it is written down."""
    return {
        f"{section}.{key}": field
        for section, info in ServeConfig.model_fields.items()
        for key, field in _section_type(info).model_fields.items()
    }


def _section_type(info: FieldInfo) -> type[Section]:
    assert isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    return info.annotation


def environment_name(path: str) -> str:
    """The variable for a key: `server.port` is read from `DEEPINFER_SERVER_PORT`."""
    return ENVIRONMENT_PREFIX + path.replace(".", "_").upper()


def value_hint(field: FieldInfo) -> str:
    """What kind of value a key takes, for help and documentation: "INTEGER", "debug|info"."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    kind = kinds[0] if kinds else field.annotation
    names: dict[Any, str] = {
        str: "TEXT",
        bool: "true|false",
        int: "INTEGER",
        float: "NUMBER",
        Path: "PATH",
        SecretStr: "TEXT",
        tuple[ModelName, ...]: "TEXT,...",
        tuple[Origin, ...]: "ORIGIN,...",
        tuple[AdapterText, ...]: "NAME=FOLDER",
    }
    return names[kind]


def load_config(
    file: Path | None, environment: Mapping[str, str], flags: Iterable[Setting]
) -> ResolvedConfig:
    """Merge the layers and check the outcome. Raises ConfigError, naming the source."""
    from_file = read_config_file(file) if file is not None else ()
    # A later layer replaces what an earlier one says about the same key.
    settings = {
        setting.path: setting
        for layer in (from_file, read_environment(environment), flags)
        for setting in layer
    }
    nested: dict[str, dict[str, Any]] = {}
    for setting in settings.values():
        section, key = setting.path.split(".")
        nested.setdefault(section, {})[key] = setting.value
    try:
        config = ServeConfig.model_validate(nested)
    except ValidationError as error:
        raise _explain(error, settings) from None
    return ResolvedConfig(config, {path: setting.source for path, setting in settings.items()})


def _explain(error: ValidationError, settings: Mapping[str, Setting]) -> ConfigError:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"][:2])
    setting = settings[path]
    given = "" if _is_secret(config_fields()[path]) else f"; {show_value(setting.value)} was given"
    return ConfigError(
        f"{setting.source}: `{path}` {describe_rule(first)}{given}",
        hint=f"{path}: {config_fields()[path].description}",
    )


def read_environment(environment: Mapping[str, str]) -> Iterator[Setting]:
    """The settings in DEEPINFER_* variables. Raises ConfigError for a variable without a key."""
    paths = {environment_name(path): path for path in config_fields()}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in paths:
            raise ConfigError(
                f"unknown environment variable `{name}`",
                hint=suggest(name, paths),
            )
        yield Setting(paths[name], value, f"environment variable `{name}`")


def read_config_file(file: Path) -> list[Setting]:
    """The settings in a YAML file. Raises ConfigError with the line of what is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"cannot read the configuration file `{file}`: {reason}") from error
    try:
        return list(_ConfigFile(file, text).read())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"`{file}`{where}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"`{file}`: not valid YAML: {str(error).splitlines()[0]}") from error


class _ConfigFile:
    """Walks the nodes of a YAML file instead of loading it, to know the line of everything."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = file
        self._loader = yaml.SafeLoader(text)

    def read(self) -> Iterator[Setting]:
        root = self._loader.get_single_node()
        if root is None:
            return
        known = config_fields()
        for section, at, section_node in self._items(root, "the file"):
            if section not in ServeConfig.model_fields:
                self._fail(at, "unknown section", section, ServeConfig.model_fields)
            if section_node.tag == NULL_TAG:
                continue
            for key, at, node in self._items(section_node, f"`{section}`"):
                path = f"{section}.{key}"
                if path not in known:
                    self._fail(at, "unknown key", path, known)
                yield Setting(path, self._loader.construct_object(node, deep=True), at)

    def _items(self, node: yaml.Node, name: str) -> Iterator[tuple[str, str, yaml.Node]]:
        """Each key, where it stands, and the node of its value."""
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{self._at(node)}: {name} must hold keys and values")
        seen: set[str] = set()
        for key_node, value_node in node.value:
            at, key = self._at(key_node), str(key_node.value)
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{at}: a key must be a word")
            if key in seen:
                raise ConfigError(f"{at}: `{key}` is given twice")
            seen.add(key)
            yield key, at, value_node

    def _at(self, node: yaml.Node) -> str:
        return f"`{self._file}` line {node.start_mark.line + 1}"

    def _fail(self, at: str, what: str, name: str, known: Iterable[str]) -> NoReturn:
        raise ConfigError(f"{at}: {what} `{name}`", hint=suggest(name, known))


def format_config(resolved: ResolvedConfig) -> str:
    """The outcome as YAML, each value with its source, secrets masked."""
    lines: list[str] = []
    for path, field in config_fields().items():
        section, key = path.split(".")
        if f"{section}:" not in lines:
            lines.append(f"{section}:")
        value = getattr(getattr(resolved.config, section), key)
        if value is not None and _is_secret(field):
            value = MASK
        source = resolved.sources.get(path, "default").replace("`", "")
        lines.append(f"  {key}: {_to_yaml(value)}  # {source}")
    return "\n".join(lines) + "\n"


def _to_yaml(value: object) -> str:
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).split("\n")[0]


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in get_args(field.annotation)
