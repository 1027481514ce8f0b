"""What the front tells its workers, over the pipe that is their standard input.

First what they are to serve, then what changes. Keys travel as digests and on no command line. The
frames are those of the runtime's wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec

from deepinfer.config import LimitsSection, ServeConfig
from deepinfer.engine import EngineOptions
from deepinfer.generation import LoraAdapter
from deepinfer.manifest import read_engine
from deepinfer.runtime.lives import Lives
from deepinfer.runtime.wire import HEADER
from deepinfer.server.keys import Key
from deepinfer.server.names import EngineNames
from deepinfer.server.offer import Offer, OfferedEngine
from deepinfer.serving_limits import with_max_seq_len

# Which keys there are is the front's business; it says so when that changes.
NOT_FOR_WORKERS = {"server": {"api_key", "api_key_file"}}


class EngineOrder(msgspec.Struct, frozen=True):
    path: str
    options: EngineOptions
    listed_names: tuple[str, ...]
    unlisted_names: tuple[str, ...]
    socket_path: str
    lives: Lives  # so far

    @property
    def offered(self) -> OfferedEngine:
        """Raises EngineError when the folder is there no more."""
        names = EngineNames(self.listed_names, self.unlisted_names)
        engine = with_max_seq_len(read_engine(Path(self.path)), self.options.max_seq_len)
        return OfferedEngine(engine, self.options, names)


class KeyOrder(msgspec.Struct, frozen=True):
    name: str
    digest: bytes
    limits: dict[str, int | None]

    @classmethod
    def of(cls, key: Key) -> Self:
        return cls(key.name, key.digest, key.limits.model_dump())

    @property
    def key(self) -> Key:
        return Key(self.name, self.digest, LimitsSection.model_validate(self.limits))


class Orders(msgspec.Struct, frozen=True, tag="orders"):
    """Serve this. `worker` is a number that no other worker of this server has or had."""

    worker: int
    folder: str  # that all workers share
    config: str
    engines: tuple[EngineOrder, ...]
    adapters: tuple[tuple[int, LoraAdapter], ...]
    keys: tuple[KeyOrder, ...]

    @property
    def offer(self) -> Offer:
        return Offer(tuple(order.offered for order in self.engines), self.adapters)


class KeysChanged(msgspec.Struct, frozen=True, tag="keys"):
    keys: tuple[KeyOrder, ...]


class LivesChanged(msgspec.Struct, frozen=True, tag="lives"):
    """`engine` is its place among those of the orders."""

    engine: int
    lives: Lives


FromFront = Orders | KeysChanged | LivesChanged

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[FromFront] = msgspec.msgpack.Decoder(FromFront)


def encode(message: FromFront) -> bytes:
    """One whole frame."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> FromFront:
    return _decoder.decode(body)


def describe_keys(keys: Iterable[Key]) -> tuple[KeyOrder, ...]:
    return tuple(KeyOrder.of(key) for key in keys)


def describe_config(config: ServeConfig) -> str:
    return config.model_dump_json(exclude=NOT_FOR_WORKERS)
