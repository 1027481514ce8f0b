"""Requests on connections of their own, held open: for benchmarks of what those cost."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
from served import Server, connect, read_gauges

NUM_CONNECTING = 100  # connections that are opened at a time
POLL_S = 0.01
DEADLINE_S = 120.0
BODY = {"prompt": "a b c", "ignore_eos": True}


class Held:
    """One request on a connection of its own, whose answer is read to its end or not at all."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def send(cls, url: str, max_tokens: int, *, is_stream: bool = True) -> Held:
        where = httpx.URL(url)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        data = json.dumps({**BODY, "stream": is_stream, "max_tokens": max_tokens}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)
        )
        return cls(reader, writer)

    async def read_end(self) -> None:
        await self._reader.readuntil(b"data: [DONE]")
        self.leave()

    async def read_start(self) -> None:
        await self._reader.readuntil(b"data: ")

    def leave(self) -> None:
        self._writer.close()


async def send_many(url: str, count: int, max_tokens: int) -> list[Held]:
    free = asyncio.Semaphore(NUM_CONNECTING)

    async def send() -> Held:
        async with free:
            return await Held.send(url, max_tokens)

    return list(await asyncio.gather(*(send() for _ in range(count))))


async def wait_for(http: httpx.AsyncClient, gauge: str, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (await read_gauges(http))[gauge] != count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{gauge} never was {count}")
        await asyncio.sleep(POLL_S)


async def warm(server: Server) -> None:
    """What the first requests and the first look at the metrics leave behind is not counted."""
    async with connect(server) as http:
        await read_gauges(http)
        for held in await send_many(server.url, 2, max_tokens=4):
            await held.read_end()
