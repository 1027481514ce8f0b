"""The engines that a server offers, each with its text side, and how a client names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from deepinfer.errors import ModelNotFound
from deepinfer.manifest import EngineManifest
from deepinfer.runtime.client import EngineClient
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from deepinfer.validation import MAX_SHOWN_CHARS


@dataclass(frozen=True)
class ServedEngine:
    """One engine process and what it takes to speak text with it."""

    client: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate

    @property
    def manifest(self) -> EngineManifest:
        return self.client.manifest

    @property
    def model_id(self) -> str:
        return self.manifest.model.id

    @property
    def created(self) -> int:
        """When the engine was built, in Unix seconds."""
        return int(datetime.fromisoformat(self.manifest.build.created_at).timestamp())


class EngineCatalog:
    """Finds an engine by what a client calls it: the model's id or the engine's name."""

    def __init__(self, engines: Sequence[ServedEngine]) -> None:
        assert engines, "a server without an engine has nothing to serve"
        self._engines = tuple(engines)
        self._by_name = {
            name: engine
            for engine in self._engines
            for name in (engine.manifest.name, engine.model_id)
        }

    def __iter__(self) -> Iterator[ServedEngine]:
        return iter(self._engines)

    @property
    def default(self) -> ServedEngine:
        """The one that answers when a client names none."""
        return self._engines[0]

    def find(self, name: str | None) -> ServedEngine:
        """Raises ModelNotFound, which lists the names that exist."""
        if name is None:
            return self.default
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(f"`{known}`" for known in dict.fromkeys(self._model_ids()))
            raise ModelNotFound(
                f"There is no model `{name[:MAX_SHOWN_CHARS]}`; this server has {known}",
                param="model",
            ) from None

    def _model_ids(self) -> Iterator[str]:
        return (engine.model_id for engine in self._engines)
