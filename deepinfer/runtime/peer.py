"""The engine process's side of its connection to one API process; it never waits for the other."""

from __future__ import annotations

import socket

from deepinfer.engine import Load
from deepinfer.generation import TokenChunk
from deepinfer.runtime import wire

RECEIVE_BYTES = 1 << 20


class Peer:
    """One connected API process: what it has sent so far, and what it has yet to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.chunks: list[TokenChunk] = []  # not sent yet
        self.known_load: Load | None = None
        self.is_watched_for_writing = False
        self._reader = wire.FrameReader()
        self._outgoing = bytearray()

    @property
    def has_outgoing(self) -> bool:
        return bool(self._outgoing)

    def receive(self) -> list[wire.ToEngine] | None:
        """The messages that have arrived, or None when the other side is gone."""
        try:
            data = self.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        return [wire.decode_to_engine(body) for body in self._reader.feed(data)]

    def send(self, message: wire.FromEngine) -> None:
        """Queue a message and write what the socket takes now; never waits for the other side."""
        self._outgoing += wire.encode(message)
        self.flush()

    def flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self.connection.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            # The next receive sees the closed connection and forgets this peer.
            self._outgoing.clear()
