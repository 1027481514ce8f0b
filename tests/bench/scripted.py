"""A server that sends scripted bytes, well or badly behaved; one list per request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from deepinfer.bench.client import Target, parse_url

OK = b"HTTP/1.1 200 OK\r\n"
STREAM_HEAD = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
HANG = b"<hang>"  # leave the connection open and say nothing more
CUT = b"<cut>"  # close the connection here


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def text_event(text: str, end: bytes = b"\n\n") -> bytes:
    return b"data: " + msgspec.json.encode({"choices": [{"text": text, "index": 0}]}) + end


def usage_event(prompt_tokens: int, completion_tokens: int) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return b"data: " + msgspec.json.encode({"choices": [], "usage": usage}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def stream(*events: bytes) -> list[bytes]:
    """A whole stream, each event in a chunk of its own."""
    return [STREAM_HEAD, *map(chunk, events), b"0\r\n\r\n"]


def whole(body: bytes, status: str = "200 OK") -> list[bytes]:
    return [f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body]


class ScriptedServer:
    def __init__(self, answers: Sequence[Sequence[bytes]]) -> None:
        self.requests: list[bytes] = []  # heads and bodies as they came
        self.num_connections = 0
        self._answers = list(answers)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False when the connection is to be closed."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        pieces = self._answers.pop(0)
        for piece in pieces:
            if piece == HANG:
                await reader.read()  # until the client goes
                return False
            if piece == CUT:
                return False
            writer.write(piece)
            await writer.drain()
        return True


@asynccontextmanager
async def scripted(*answers: Sequence[bytes]) -> AsyncIterator[tuple[ScriptedServer, Target]]:
    """The server and where it is; `answers` are for its requests in order."""
    script = ScriptedServer(answers)
    server = await asyncio.start_server(script.handle, "127.0.0.1", 0)
    try:
        yield script, parse_url(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    finally:
        server.close()
