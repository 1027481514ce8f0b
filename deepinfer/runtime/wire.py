"""The messages between an API process and an engine process, and their frames.

A frame is the message's length (4 bytes, little-endian) and the message as msgpack. Decoding is
typed, so whatever else arrives is a WireError and never an object of somebody's choosing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import msgspec

from deepinfer.engine import Capacity, Load
from deepinfer.errors import DeepInferError
from deepinfer.generation import GenerationRequest, Grammar, TokenChunk

HEADER = struct.Struct("<I")
# What the decoder raises: for text that is not UTF-8, and for depth, nothing of its own.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
MAX_FRAME_BYTES = 64 * 2**20  # a prompt of a million tokens takes about 5 MB


class WireError(DeepInferError):
    """The other side sent something that is not a message."""


class MessageTooLarge(DeepInferError):
    """The other side would drop the connection, and with it all that runs, for this message."""


# From the API process to the engine process.


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Take these requests, all or none.

    The queue is fair between tenants; of one tenant's requests a lower priority comes first. What
    an engine held when it died is taken again even when the queue is full.

    A grammar may be as large as all else together. One that all requests share is said once, and
    they are without one: `make` and `whole_requests` see to it.
    """

    requests: tuple[GenerationRequest, ...]
    tenant: str = ""
    priority: int = 0
    is_resumed: bool = False
    grammar: Grammar | None = None

    @classmethod
    def make(
        cls,
        requests: Sequence[GenerationRequest],
        tenant: str = "",
        priority: int = 0,
        *,
        is_resumed: bool = False,
    ) -> Submit:
        grammar = requests[0].sampling.grammar if requests else None
        if grammar is None or any(each.sampling.grammar is not grammar for each in requests):
            return cls(tuple(requests), tenant, priority, is_resumed)
        without = tuple(_with_grammar(each, None) for each in requests)
        return cls(without, tenant, priority, is_resumed, grammar)

    @property
    def whole_requests(self) -> tuple[GenerationRequest, ...]:
        if self.grammar is None:
            return self.requests
        return tuple(_with_grammar(each, self.grammar) for each in self.requests)


def _with_grammar(request: GenerationRequest, grammar: Grammar | None) -> GenerationRequest:
    replace = msgspec.structs.replace
    return replace(request, sampling=replace(request.sampling, grammar=grammar))


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget these requests, waiting or running. Unknown ids are not an error."""

    request_ids: tuple[str, ...]


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Say that you are there."""


# From the engine process to the API process.


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a Ping, between two steps. `num_chunks` is what this process has made."""

    num_chunks: int = 0


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A phase of the loading begins; `percent` of it all is done."""

    phase: str
    percent: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine is loaded and takes requests. `pid` tells one process from the next."""

    capacity: Capacity
    load_s: float
    pid: int = 0


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine cannot be loaded, or fails as a whole; the process ends after this."""

    message: str
    hint: str | None = None


class Rejected(msgspec.Struct, frozen=True, tag="rejected"):
    """None of these requests was taken. `code` names a RequestError."""

    request_ids: tuple[str, ...]
    code: str
    message: str
    param: str | None = None
    retry_after_s: int | None = None


class Admitted(msgspec.Struct, frozen=True, tag="admitted"):
    """These requests leave the queue. Sent before the step that they first run in."""

    request_ids: tuple[str, ...]


class Step(msgspec.Struct, frozen=True, tag="step"):
    """The new tokens of every request of this connection after one step."""

    chunks: tuple[TokenChunk, ...]
    load: Load


ToEngine = Submit | Cancel | Ping
FromEngine = Pong | Progress | Ready | Failed | Rejected | Admitted | Step

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One whole frame. Raises MessageTooLarge for what the other side would not read."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise MessageTooLarge(f"a message of {len(body):,} bytes; at most {MAX_FRAME_BYTES:,}")
    return HEADER.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    try:
        return _to_engine.decode(body)
    except UNREADABLE as error:
        raise WireError(f"not a message to an engine: {error}") from error


def decode_from_engine(body: bytes) -> FromEngine:
    try:
        return _from_engine.decode(body)
    except UNREADABLE as error:
        raise WireError(f"not a message from an engine: {error}") from error


class FrameReader:
    """Cuts a byte stream into message bodies, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each body that `data` completes. Raises WireError for one that is too long."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(self._buffer, start)
            if size > MAX_FRAME_BYTES:
                raise WireError(f"a message of {size:,} bytes; at most {MAX_FRAME_BYTES:,}")
            end = start + HEADER.size + size
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + HEADER.size : end])
            start = end
        del self._buffer[:start]
