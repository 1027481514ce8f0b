"""`deepinfer serve`: engines behind OpenAI-compatible routes.

Every option but two is a key of the configuration, which says what it is for, what it takes and
what it is when nobody says. This module only puts the parts together.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepinfer.config import ServeConfig
    from deepinfer.config_layers import ResolvedConfig
    from deepinfer.engine import EngineOptions
    from deepinfer.manifest import EngineFolder
    from deepinfer.server.adapters import PlacedAdapter
    from deepinfer.server.engines import ServedEngine
    from deepinfer.server.keys import KeyRing
    from deepinfer.server.names import EngineNames
    from deepinfer.server.state import ServerState
    from deepinfer.server.tracing import RequestTracer


class ConfigOption(click.Option):
    """An option whose type, default and help stand in the configuration's model.

    The value stays text here: it is checked with the other layers, and reported by its source.
    """

    def __init__(self, declarations: list[str], *, path: str, **attributes: Any) -> None:
        super().__init__(declarations, **attributes)
        self.path = path

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from deepinfer.config import config_fields, value_hint

        field = config_fields()[self.path]
        default = "" if field.default is None else f"  [default: {field.default}]"
        self.metavar = value_hint(field)
        self.help = f"{field.description}.{default}"
        return super().get_help_record(ctx)


@click.command()
@click.option("--engine-dir", cls=ConfigOption, path="engine.engine_dir")
@click.option("--model", cls=ConfigOption, path="engine.model")
@click.option("--served-model-name", cls=ConfigOption, path="engine.served_model_names")
@click.option("--lora", cls=ConfigOption, path="engine.lora", multiple=True)
@click.option("--host", cls=ConfigOption, path="server.host")
@click.option("--port", cls=ConfigOption, path="server.port")
@click.option("--api-key-file", cls=ConfigOption, path="server.api_key_file")
@click.option("--metrics-need-key", cls=ConfigOption, path="server.metrics_need_key")
@click.option("--cors-origins", cls=ConfigOption, path="server.cors_origins")
@click.option("--tls-certificate", cls=ConfigOption, path="server.tls_certificate")
@click.option("--tls-key", cls=ConfigOption, path="server.tls_key")
@click.option("--max-body-bytes", cls=ConfigOption, path="server.max_body_bytes")
@click.option("--receive-timeout", cls=ConfigOption, path="server.receive_timeout_s")
@click.option("--request-timeout", cls=ConfigOption, path="server.request_timeout_s")
@click.option("--queue-timeout", cls=ConfigOption, path="server.queue_timeout_s")
@click.option("--stalled-client-timeout", cls=ConfigOption, path="server.stalled_client_timeout_s")
@click.option("--shutdown-timeout", cls=ConfigOption, path="server.shutdown_timeout_s")
@click.option("--requests-per-minute", cls=ConfigOption, path="limits.requests_per_minute")
@click.option("--tokens-per-minute", cls=ConfigOption, path="limits.tokens_per_minute")
@click.option("--concurrent-requests", cls=ConfigOption, path="limits.concurrent_requests")
@click.option("--max-waiting-requests", cls=ConfigOption, path="engine.max_waiting_requests")
@click.option("--max-waiting-tokens", cls=ConfigOption, path="engine.max_waiting_tokens")
@click.option("--resume-attempts", cls=ConfigOption, path="engine.resume_attempts")
@click.option("--hang-timeout", cls=ConfigOption, path="engine.hang_timeout_s")
@click.option("--kv-cache-gb", cls=ConfigOption, path="engine.kv_cache_gb")
@click.option("--kv-cache-fraction", cls=ConfigOption, path="engine.kv_cache_fraction")
@click.option("--num-threads", cls=ConfigOption, path="engine.num_threads")
@click.option("--prompt-lookup", cls=ConfigOption, path="engine.prompt_lookup")
@click.option("--tool-format", cls=ConfigOption, path="engine.tool_format")
@click.option("--log-level", cls=ConfigOption, path="logging.level")
@click.option("--log-format", cls=ConfigOption, path="logging.format")
@click.option("--traces", cls=ConfigOption, path="logging.traces")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file with any of these; the environment and options override it.",
)
@click.option(
    "--print-config", "is_print", is_flag=True, help="Print what all sources amount to, and exit."
)
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    config_file: Path | None,
    is_print: bool,
    **options: str | tuple[str, ...] | None,
) -> None:
    """Serve engines behind OpenAI-compatible routes."""
    resolved = _resolve(ctx.command, config_file, options)
    if is_print:
        from deepinfer.config_layers import format_config

        click.echo(format_config(resolved), nl=False)
        return
    is_verbose = bool(ctx.find_root().params.get("is_verbose"))
    _run(resolved.config, log_level="debug" if is_verbose else resolved.config.logging.level)


def _resolve(
    command: click.Command,
    config_file: Path | None,
    options: dict[str, str | tuple[str, ...] | None],
) -> ResolvedConfig:
    from deepinfer.config_layers import Setting, load_config

    flags = [
        Setting(option.path, value, f"option `{option.opts[0]}`")
        for option in command.params
        if isinstance(option, ConfigOption)
        and option.name is not None
        # An option that may be given several times is empty when it is not given.
        and (value := options[option.name]) not in (None, ())
    ]
    return load_config(config_file, os.environ, flags)


def _run(config: ServeConfig, *, log_level: str) -> None:
    import asyncio
    import logging
    import time

    from deepinfer import logs
    from deepinfer.server.choice import check_lookup, choose_engines
    from deepinfer.server.keys import KeyRing, read_keys
    from deepinfer.server.listen import base_url, is_public, listen
    from deepinfer.server.tls import open_tls

    logs.configure(log_level, config.logging.format)
    logger = logging.getLogger(__name__)
    keys = KeyRing(read_keys(config), config.limits)
    tls = open_tls(config.server.tls_certificate, config.server.tls_key)
    engines = choose_engines(config.engine.engine_dir, config.engine.model)
    check_lookup(engines, config.engine.prompt_lookup)
    with listen(
        config.server.host,
        config.server.port,
        stalled_client_timeout_s=config.server.stalled_client_timeout_s,
    ) as listener:
        url = base_url(listener, has_tls=tls is not None)
        logger.info("listening on %s", url)
        if is_public(listener) and not keys:
            logger.warning(
                "ANYONE who can reach %s may use this server: it listens on a public address and "
                "asks for no API key; set server.api_key or --api-key-file, or listen on 127.0.0.1",
                config.server.host,
            )
        started_at = time.monotonic()
        state = _make_state(config, engines, keys)
        logger.info("tokenizers loaded in %.1f s", time.monotonic() - started_at)

        from deepinfer.server import lifetime
        from deepinfer.server.welcome import describe_server

        def announce() -> None:
            if config.logging.format == "text":  # else stderr is for programs to read
                block = describe_server(state.engines, url, needs_key=bool(keys))
                click.echo(block, file=sys.stderr, nl=False)

        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(lifetime.serve(state, listener, announce, tls))
        finally:
            if state.tracer is not None:
                state.tracer.close()


def _open_tracer(config: ServeConfig) -> RequestTracer | None:
    if not config.logging.traces:
        return None
    from deepinfer.errors import ConfigError

    try:
        from deepinfer.server.tracing import open_tracer
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise ConfigError(
            "`logging.traces` needs OpenTelemetry, which is not installed",
            hint="`pip install 'deepinfer[otel]'`, or serve without `--traces`",
        ) from error
    return open_tracer()


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # there is none for PyPy
        return None
    return uvloop.new_event_loop


def _make_state(config: ServeConfig, engines: Sequence[EngineFolder], keys: KeyRing) -> ServerState:
    from deepinfer.device import read_gpus
    from deepinfer.server.adapters import place_adapters
    from deepinfer.server.engines import EngineCatalog
    from deepinfer.server.memory import place_engines
    from deepinfer.server.names import name_engines
    from deepinfer.server.state import ServerState

    placed = place_engines(engines, _engine_options(config))
    aliases = _keep_aliases(config, engines[0], placed[0][0])
    manifests = [engine.manifest for engine, _ in placed]
    names = name_engines(manifests, aliases)
    taken = {name for own in names for name in (*own.listed, *own.unlisted)}
    adapters = place_adapters(config.engine.lora or (), manifests, taken)
    served = [_open(config, *place, own) for place, own in zip(placed, names, strict=True)]
    return ServerState(
        config=config,
        engines=EngineCatalog(served, _adapt(served, adapters)),
        keys=keys,
        read_gpus=read_gpus,
        gpus=read_gpus(),
        tracer=_open_tracer(config),
    )


def _adapt(served: Sequence[ServedEngine], adapters: Sequence[PlacedAdapter]) -> list[ServedEngine]:
    """The engines once more, under the names of their adapters."""
    import logging

    from deepinfer.server.engines import with_adapter

    for i, engine in enumerate(served):
        if names := [f"`{adapter.name}`" for owner, adapter in adapters if owner == i]:
            logging.getLogger(__name__).info(
                "engine `%s` answers to %s with adapters", engine.manifest.name, ", ".join(names)
            )
    return [with_adapter(served[owner], adapter) for owner, adapter in adapters]


def _keep_aliases(config: ServeConfig, asked: EngineFolder, first: EngineFolder) -> tuple[str, ...]:
    """The names given to the first engine; none when it does not fit, or they would move on."""
    import logging

    aliases = config.engine.served_model_names or ()
    if asked is first or not aliases:
        return aliases
    logging.getLogger(__name__).warning(
        "nothing answers to %s, which are names of engine `%s`",
        ", ".join(f"`{alias}`" for alias in aliases),
        asked.manifest.name,
    )
    return ()


def _engine_options(config: ServeConfig) -> EngineOptions:
    from deepinfer.engine import EngineOptions

    kv_cache_gb = config.engine.kv_cache_gb
    return EngineOptions(
        max_waiting=config.engine.max_waiting_requests,
        max_waiting_tokens=config.engine.max_waiting_tokens,
        resume_attempts=config.engine.resume_attempts,
        hang_timeout_s=config.engine.hang_timeout_s,
        kv_cache_bytes=None if kv_cache_gb is None else int(kv_cache_gb * 2**30),
        kv_cache_fraction=config.engine.kv_cache_fraction,
        num_threads=config.engine.num_threads,
        prompt_lookup=config.engine.prompt_lookup,
    )


def _open(
    config: ServeConfig, engine: EngineFolder, options: EngineOptions, names: EngineNames
) -> ServedEngine:
    import logging

    from deepinfer.runtime.client import EngineClient
    from deepinfer.server.engines import ServedEngine
    from deepinfer.text.chat_template import ChatTemplate
    from deepinfer.text.tokenizer import Tokenizer

    tool_format = config.engine.tool_format
    tokenizer = Tokenizer.load(engine.tokenizer_dir)
    chat_template = ChatTemplate.load(engine.tokenizer_dir)
    logger = logging.getLogger(__name__)
    logger.info(
        "engine `%s` answers to %s",
        engine.manifest.name,
        ", ".join(f"`{name}`" for name in (*names.listed, *names.unlisted)),
    )
    if engine.manifest.model.trust_remote_code:
        logger.warning(
            "engine `%s` was built with --trust-remote-code: code of its checkpoint may run in it",
            engine.manifest.name,
        )
    return ServedEngine(
        EngineClient(engine, options),
        tokenizer,
        chat_template,
        names,
        queue_timeout_s=config.server.queue_timeout_s,
        request_timeout_s=config.server.request_timeout_s,
        named_tool_format=None if tool_format == "auto" else tool_format,
    )
