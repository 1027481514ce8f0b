"""What an operator can decide about a server: every key, its type, bounds, default and purpose.

One frozen model says it all; the command line, the docs and the tests read it from there. A key is
addressed by its path, `server.port`, in the environment by `DEEPINFER_SERVER_PORT`. Where values
come from is for `config_layers.py`; this module knows no file, no command line and no server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from deepinfer.logs import LogFormat

ENVIRONMENT_PREFIX = "DEEPINFER_"

MAX_GUESSES = 16  # of which few are right; each costs a token's computing in every step

ModelName = Annotated[str, Field(min_length=1)]
AdapterText = Annotated[str, Field(min_length=3)]
LogLevel = Literal["debug", "info", "warning", "error"]
# "auto", the formats of `deepinfer.text.tool_calls`, and "none".
ToolFormatName = Literal[
    "auto",
    "hermes",
    "llama3",
    "mistral",
    "mistral-args",
    "qwen3-coder",
    "glm-4.5",
    "generic",
    "none",
]
ResultAttachments = Literal["note", "refuse"]


ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+")


def _check_origin(origin: str) -> str:
    if ORIGIN.fullmatch(origin) is None:
        raise PydanticCustomError(
            "origin", "must be * or an origin as browsers send it, such as https://example.com"
        )
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


# Without a port: a server has one. `*.` stands for any names below.
HOST_NAME = re.compile(
    r"\*|(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*"
)


def _check_host_name(name: str) -> str:
    lower = name.lower()
    if HOST_NAME.fullmatch(lower) is None:
        raise PydanticCustomError(
            "host_name", "must be *, a host name such as deepinfer.internal, or *.example.com"
        )
    return lower


HostName = Annotated[str, AfterValidator(_check_host_name)]


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
    allowed_hosts: tuple[HostName, ...] | None = Field(
        default=None,
        min_length=1,
        description="Host names that a server without a key answers to, besides localhost, "
        "addresses and this machine's name; * is any, *.example.com any below; several are given "
        "by several options, or with commas between them; with a key every name is answered",
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
    default_max_tokens: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="Maximum tokens of an answer whose request sets no limit; 0: what the context "
        "has room for; none: 512 for /v1/completions and /v1/chat/completions, and what the "
        "context has room for on /v1/responses",
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
    first_byte_timeout_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a stream waits for its first token before it starts with a ping; "
        "until then an error has its own status, after that it is an event",
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
    result_attachments: ResultAttachments = Field(
        default="note",
        description="What an image, a sound or a file in a tool's result becomes: a note in its "
        "place, such as [image omitted], or an error 400",
    )

    @field_validator("allowed_hosts", "cors_origins", mode="before")
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
    max_seq_len: int | None = Field(
        default=None,
        ge=2,
        description="Tokens of prompt and answer that a sequence may have; lower than an engine "
        "was built for, or for a CPU engine higher, up to the model's positions; none: as built",
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
        description="Deaths of the engine in a row that a running request outlives without a token "
        "in between: it goes on in the next one; 0 ends it with an error",
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
    prompt_lookup: int = Field(
        default=0,
        ge=0,
        le=MAX_GUESSES,
        description="Tokens that a CPU engine guesses a step from what the text said before; "
        "0: none",
    )
    draft_engine: Path | None = Field(
        default=None,
        description="Folder of a smaller CPU engine with the same tokens, which guesses tokens "
        "for greedy requests; none: no guesses",
    )
    draft_tokens: int = Field(
        default=4, ge=1, le=MAX_GUESSES, description="Tokens that the draft engine guesses a step"
    )
    allow_untried_release: bool = Field(
        default=False,
        description="Run engines for GPUs with another TensorRT-LLM than 1.2.1, the only release "
        "that is tested",
    )
    tool_format: ToolFormatName = Field(
        default="auto",
        description="How the models write calls of tools; auto: as their chat templates show it, "
        "and generic where they show none; generic: tools are described in the system turn; none: "
        "tools are left out of requests",
    )
    generation_config: Literal["auto", "none"] = Field(
        default="auto",
        description="Sampling defaults of /v1/responses and /v1/messages; auto: from the "
        "checkpoint's generation_config.json; none: the route's own",
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
        tuple[HostName, ...]: "NAME,...",
        tuple[AdapterText, ...]: "NAME=FOLDER",
    }
    return names[kind]


def is_secret(field: FieldInfo) -> bool:
    """Whether a key's value is never shown."""
    return SecretStr in get_args(field.annotation)
