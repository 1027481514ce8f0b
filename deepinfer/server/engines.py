"""The engines that a server offers, each with its text side, and how a client names them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from deepinfer.engine import FAILED
from deepinfer.errors import ModelNotFound
from deepinfer.generation import LoraAdapter
from deepinfer.manifest import EngineManifest
from deepinfer.runtime.client import EngineClient
from deepinfer.server.meter import GenerationMeter
from deepinfer.server.names import EngineNames
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.reasoning import find_reasoning
from deepinfer.text.tokenizer import Tokenizer
from deepinfer.text.tool_calls import ToolFormat
from deepinfer.text.tool_choice import find_evidence, find_tool_format
from deepinfer.validation import MAX_SHOWN_CHARS

MAX_LONG_TEXTS = 2  # tokenized at a time


@dataclass(frozen=True)
class ServedEngine:
    """One engine process and what it takes to speak text with it."""

    client: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    names: EngineNames
    queue_timeout_s: float | None = None
    request_timeout_s: float | None = None
    default_max_tokens: int | None = None  # of requests that set no limit; 0: what fits
    named_tool_format: str | None = None  # by the operator; None: the chat template shows it
    # Of sampling, where a client does not say it and the route's own are not promised.
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    adapter: LoraAdapter | None = None  # that every request of this name is answered with
    meter: GenerationMeter = field(default_factory=GenerationMeter, compare=False)
    # Held while a long text is tokenized, which takes hundreds of bytes for each character.
    tokenizing: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(MAX_LONG_TEXTS), compare=False
    )

    @property
    def manifest(self) -> EngineManifest:
        return self.client.manifest

    @property
    def context_len(self) -> int:
        """Tokens of prompt and answer that a sequence may have, as far as the KV cache goes."""
        max_seq_len, capacity = self.manifest.limits.max_seq_len, self.client.capacity
        if capacity is None:  # not loaded yet
            return max_seq_len
        return min(max_seq_len, capacity.num_tokens - capacity.guesses_per_sequence)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None when the operator has it write none."""
        source = self.chat_template.source(has_tools=True)
        return find_tool_format(source, self.tokenizer.special_texts, self.named_tool_format)

    @cached_property
    def writes_tools_as_text(self) -> bool:
        """Whether tools, calls and results go into ordinary turns, as its template shows none."""
        source = self.chat_template.source(has_tools=True)
        if self.tool_format is ToolFormat.GENERIC:
            return True
        if find_evidence(source, self.tokenizer.special_texts) is not None:
            return False
        return not self.chat_template.abilities(has_tools=True).shows_calls

    @cached_property
    def is_thinking(self) -> bool:
        """Whether answers may begin with a block of reasoning."""
        return find_reasoning(self.chat_template.source(has_tools=False)) is not None

    @property
    def model_id(self) -> str:
        """What answers say; the model's own id unless it is served under another."""
        return self.names.listed[0]

    @property
    def created(self) -> int:
        """When the engine was built, in Unix seconds."""
        return int(datetime.fromisoformat(self.manifest.build.created_at).timestamp())


def with_adapter(engine: ServedEngine, adapter: LoraAdapter) -> ServedEngine:
    """The same process and the same text side, asked for `adapter` by its name."""
    names = EngineNames((adapter.name,))
    return replace(engine, names=names, adapter=adapter, meter=GenerationMeter())


class EngineCatalog:
    """Finds an engine by what a client calls it."""

    def __init__(
        self, engines: Sequence[ServedEngine], adapted: Sequence[ServedEngine] = ()
    ) -> None:
        """`adapted` are some of `engines` once more, under the names of their adapters."""
        assert engines, "a server without an engine has nothing to serve"
        self._engines = tuple(engines)
        self.models = (*self._engines, *adapted)
        self._by_name = {
            name: engine
            for engine in self.models
            for name in (*engine.names.listed, *engine.names.unlisted)
        }

    def __iter__(self) -> Iterator[ServedEngine]:
        return iter(self._engines)

    @property
    def default(self) -> ServedEngine:
        """The one that answers when a client names none: the first that can be loaded."""
        can_load = (engine for engine in self if engine.client.status.phase != FAILED)
        return next(can_load, self._engines[0])

    def find(self, name: str | None) -> ServedEngine:
        """Raises ModelNotFound, which lists the names that exist."""
        if name is None:
            return self.default
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(f"`{known}`" for known in self._listed_names())
            raise ModelNotFound(
                f"There is no model `{name[:MAX_SHOWN_CHARS]}`; this server has {known}",
                param="model",
            ) from None

    def _listed_names(self) -> Iterator[str]:
        return (name for engine in self.models for name in engine.names.listed)
