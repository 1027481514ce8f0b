"""What a server offers: its engines, how they are called, and the adapters beside them.

It is decided once, by the process that starts the engines; whoever answers requests makes a state
of it. Nothing here is started.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepinfer.config import ServeConfig
from deepinfer.device import read_gpus
from deepinfer.engine import EngineOptions
from deepinfer.errors import ConfigError
from deepinfer.manifest import EngineFolder
from deepinfer.runtime.client import EngineClient
from deepinfer.server.adapters import PlacedAdapter, place_adapters
from deepinfer.server.engines import EngineCatalog, ServedEngine, with_adapter
from deepinfer.server.memory import place_engines
from deepinfer.server.names import EngineNames, name_engines
from deepinfer.server.sampling_defaults import read_sampling_defaults
from deepinfer.server.state import ServerState
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.folder import TokenizerFolder
from deepinfer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from deepinfer.server.tracing import RequestTracer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OfferedEngine:
    engine: EngineFolder
    options: EngineOptions
    names: EngineNames


@dataclass(frozen=True)
class Offer:
    engines: tuple[OfferedEngine, ...]
    adapters: tuple[PlacedAdapter, ...]


def make_offer(
    config: ServeConfig,
    engines: Sequence[EngineFolder],
    options: EngineOptions,
    *,
    first_name: str,
) -> Offer:
    """Those of `engines` that fit, with their share of the memory; the log says what is offered.

    `first_name` is the engine that the configuration's aliases are for.
    """
    placed = place_engines(engines, options)
    aliases = _keep_aliases(config, first_name, placed[0][0].manifest.name)
    manifests = [engine.manifest for engine, _ in placed]
    names = name_engines(manifests, aliases)
    taken = {name for own in names for name in (*own.listed, *own.unlisted)}
    adapters = place_adapters(config.engine.lora or (), manifests, taken)
    offered = [OfferedEngine(*place, own) for place, own in zip(placed, names, strict=True)]
    for i, one in enumerate(offered):
        _announce(one, [adapter.name for owner, adapter in adapters if owner == i])
    return Offer(tuple(offered), tuple(adapters))


def make_state(
    config: ServeConfig, offer: Offer, clients: Sequence[EngineClient], **shared: Any
) -> ServerState:
    """The state of a process that serves `offer`, an engine through each client.

    `shared` are its fields that are not this process's own. Raises EngineError for a tokenizer
    that cannot be loaded.
    """
    served = [
        _open(config, one, client) for one, client in zip(offer.engines, clients, strict=True)
    ]
    adapted = [with_adapter(served[owner], adapter) for owner, adapter in offer.adapters]
    return ServerState(
        config=config,
        engines=EngineCatalog(served, adapted),
        read_gpus=read_gpus,
        gpus=read_gpus(),
        tracer=_open_tracer(config),
        **shared,
    )


def _open(config: ServeConfig, offered: OfferedEngine, client: EngineClient) -> ServedEngine:
    tool_format = config.engine.tool_format
    files = TokenizerFolder(offered.engine.tokenizer_dir)
    reads_sampling = config.engine.generation_config == "auto"
    return ServedEngine(
        client,
        Tokenizer.load(offered.engine.tokenizer_dir),
        ChatTemplate.load(offered.engine.tokenizer_dir),
        offered.names,
        queue_timeout_s=config.server.queue_timeout_s,
        request_timeout_s=config.server.request_timeout_s,
        default_max_tokens=config.server.default_max_tokens,
        named_tool_format=None if tool_format == "auto" else tool_format,
        sampling_defaults=(
            read_sampling_defaults(files.generation_config) if reads_sampling else {}
        ),
    )


def _announce(offered: OfferedEngine, adapters: Sequence[str]) -> None:
    manifest, names = offered.engine.manifest, offered.names
    logger.info(
        "engine `%s` answers to %s", manifest.name, _list_names((*names.listed, *names.unlisted))
    )
    if adapters:
        logger.info("engine `%s` answers to %s with adapters", manifest.name, _list_names(adapters))


def _keep_aliases(config: ServeConfig, asked: str, first: str) -> tuple[str, ...]:
    """The names given to the first engine; none when it is not served, or they would move on."""
    aliases = config.engine.served_model_names or ()
    if asked == first or not aliases:
        return aliases
    logger.warning(
        "nothing answers to %s, which are names of engine `%s`",
        _list_names(aliases),
        asked,
    )
    return ()


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _open_tracer(config: ServeConfig) -> RequestTracer | None:
    if not config.logging.traces:
        return None
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
