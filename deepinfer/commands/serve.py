"""`deepinfer serve`: engines behind OpenAI-compatible routes.

Every option but two is a key of the configuration, which says what it is for, what it takes and
what it is when nobody says. This module only puts the parts together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import socket
    import ssl

    from deepinfer.config import ServeConfig
    from deepinfer.config_layers import ResolvedConfig
    from deepinfer.engine import EngineOptions
    from deepinfer.manifest import EngineFolder
    from deepinfer.server.keys import KeyRing
    from deepinfer.server.offer import Offer
    from deepinfer.server.state import ServerState


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


def _refuse_removed(path: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def refuse(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            from deepinfer.config_layers import removed_setting

            raise removed_setting(path, f"option `{parameter.opts[0]}`")

    return refuse


@click.command()
@click.option("--engine-dir", cls=ConfigOption, path="engine.engine_dir")
@click.option("--model", cls=ConfigOption, path="engine.model")
@click.option("--served-model-name", cls=ConfigOption, path="engine.served_model_names")
@click.option("--lora", cls=ConfigOption, path="engine.lora", multiple=True)
@click.option("--max-seq-len", cls=ConfigOption, path="engine.max_seq_len")
@click.option("--host", cls=ConfigOption, path="server.host")
@click.option("--port", cls=ConfigOption, path="server.port")
@click.option("--api-key-file", cls=ConfigOption, path="server.api_key_file")
@click.option("--metrics-need-key", cls=ConfigOption, path="server.metrics_need_key")
@click.option("--allowed-host", cls=ConfigOption, path="server.allowed_hosts", multiple=True)
@click.option("--cors-origins", cls=ConfigOption, path="server.cors_origins")
@click.option("--tls-certificate", cls=ConfigOption, path="server.tls_certificate")
@click.option("--tls-key", cls=ConfigOption, path="server.tls_key")
@click.option(
    "--api-workers", hidden=True, expose_value=False, callback=_refuse_removed("server.api_workers")
)
@click.option("--default-max-tokens", cls=ConfigOption, path="server.default_max_tokens")
@click.option("--max-body-bytes", cls=ConfigOption, path="server.max_body_bytes")
@click.option("--receive-timeout", cls=ConfigOption, path="server.receive_timeout_s")
@click.option("--request-timeout", cls=ConfigOption, path="server.request_timeout_s")
@click.option("--queue-timeout", cls=ConfigOption, path="server.queue_timeout_s")
@click.option("--first-byte-timeout", cls=ConfigOption, path="server.first_byte_timeout_s")
@click.option("--stalled-client-timeout", cls=ConfigOption, path="server.stalled_client_timeout_s")
@click.option("--shutdown-timeout", cls=ConfigOption, path="server.shutdown_timeout_s")
@click.option("--result-attachments", cls=ConfigOption, path="server.result_attachments")
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
@click.option("--draft-engine", cls=ConfigOption, path="engine.draft_engine")
@click.option("--draft-tokens", cls=ConfigOption, path="engine.draft_tokens")
@click.option(
    "--allow-untried-release",
    cls=ConfigOption,
    path="engine.allow_untried_release",
    is_flag=True,
    flag_value="true",
    default=None,
)
@click.option("--tool-format", cls=ConfigOption, path="engine.tool_format")
@click.option("--generation-config", cls=ConfigOption, path="engine.generation_config")
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
    import logging

    from deepinfer import logs
    from deepinfer.server.choice import apply_max_seq_len, choose_engines
    from deepinfer.server.guessing import choose_draft
    from deepinfer.server.keys import KeyRing, read_keys
    from deepinfer.server.listen import base_url, is_public, listen
    from deepinfer.server.tls import open_tls

    logs.configure(log_level, config.logging.format)
    logger = logging.getLogger(__name__)
    keys = KeyRing(read_keys(config), config.limits)
    tls = open_tls(config.server.tls_certificate, config.server.tls_key)
    chosen = choose_engines(config.engine.engine_dir, config.engine.model)
    engines = apply_max_seq_len(chosen, config.engine.max_seq_len)
    draft = choose_draft(engines, config.engine)
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

        from deepinfer.server.offer import make_offer

        options = _engine_options(config, draft)
        offer = make_offer(config, engines, options, first_name=chosen[0].manifest.name)
        _serve(config, offer, keys, listener, url, tls)


def _serve(
    config: ServeConfig,
    offer: Offer,
    keys: KeyRing,
    listener: socket.socket,
    url: str,
    tls: ssl.SSLContext | None,
) -> None:
    import asyncio

    from deepinfer.runtime.client import EngineClient
    from deepinfer.server.offer import make_state

    clients = [EngineClient(one.engine, one.options) for one in offer.engines]
    with _timing_tokenizers():
        state = make_state(config, offer, clients, keys=keys)

    from deepinfer.server import lifetime

    announce = partial(_announce, state, url)
    try:
        with asyncio.Runner(loop_factory=lifetime.loop_factory()) as runner:
            runner.run(lifetime.serve(state, listener, announce, tls))
    finally:
        if state.tracer is not None:
            state.tracer.close()


@contextmanager
def _timing_tokenizers() -> Iterator[None]:
    import logging
    import time

    started_at = time.monotonic()
    yield
    logging.getLogger(__name__).info("tokenizers loaded in %.1f s", time.monotonic() - started_at)


def _announce(state: ServerState, url: str) -> None:
    from deepinfer.server.welcome import Address, describe_server
    from deepinfer.terminal import echo

    if state.config.logging.format == "text":  # else stderr is for programs to read
        is_greedy_only = state.config.engine.draft_engine is not None
        address = Address(url, needs_key=bool(state.keys), is_greedy_only=is_greedy_only)
        block = describe_server(state.engines, address)
        echo(block, err=True, nl=False)


def _engine_options(config: ServeConfig, draft: EngineFolder | None) -> EngineOptions:
    from deepinfer.engine import EngineOptions

    kv_cache_gb = config.engine.kv_cache_gb
    return EngineOptions(
        max_seq_len=config.engine.max_seq_len,
        max_waiting=config.engine.max_waiting_requests,
        max_waiting_tokens=config.engine.max_waiting_tokens,
        resume_attempts=config.engine.resume_attempts,
        hang_timeout_s=config.engine.hang_timeout_s,
        kv_cache_bytes=None if kv_cache_gb is None else int(kv_cache_gb * 2**30),
        kv_cache_fraction=config.engine.kv_cache_fraction,
        num_threads=config.engine.num_threads,
        prompt_lookup=config.engine.prompt_lookup,
        draft_engine=None if draft is None else str(draft.path),
        draft_tokens=config.engine.draft_tokens,
        allow_untried_release=config.engine.allow_untried_release,
    )
