"""Parts of a response written at once, and the client that is not read from meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message

from deepinfer.errors import EngineUnavailable
from deepinfer.generation import TokenChunk, Usage
from deepinfer.runtime.handle import GenerationHandle
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta
from deepinfer.server.protocol import OUTLET_KEY, Outlet, find_outlet
from deepinfer.server.record import RECORD_KEY, RequestRecord
from tests.server.serving import DEADLINE_S
from tests.server.sources import PlainWriter, ScriptedSource


class Cycle:
    """What an outlet knows of the response that it belongs to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.flow = SimpleNamespace(write_paused=False)
        self.transport = SimpleNamespace(write=self.written.append)
        self.disconnected = False
        self.chunked_encoding = True


class PushedCall:
    """A source whose pieces are a call's tokens, as numbers."""

    usage = Usage(1, 1)
    is_over = False

    def __init__(self, call: GenerationHandle) -> None:
        self._call = call

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        yield [Delta(0, "first", None)]

    async def push(self, sink: Callable[[list[Delta]], bool]) -> None:
        def take(chunks: list[TokenChunk]) -> bool:
            return sink([Delta(0, str(token), None) for c in chunks for token in c.token_ids])

        await self._call.push(take)


def outlet_of(cycle: Cycle) -> Outlet:
    return Outlet(cast(Any, cycle))


def test_part_is_written_as_a_chunk() -> None:
    cycle = Cycle()
    assert outlet_of(cycle).try_write(b"data: seventeen\n\n")
    assert cycle.written == [b"11\r\ndata: seventeen\n\n\r\n"]


def test_part_of_a_response_that_the_connection_ends_is_written_as_it_is() -> None:
    cycle = Cycle()
    cycle.chunked_encoding = False
    outlet = outlet_of(cycle)
    outlet.has_bare_parts = True
    assert outlet.try_write(b"data: seventeen\n\n")
    assert cycle.written == [b"data: seventeen\n\n"]


@pytest.mark.parametrize("obstacle", ["paused", "disconnected", "not chunked"])
def test_part_that_cannot_go_at_once_is_left_to_the_caller(obstacle: str) -> None:
    cycle = Cycle()
    cycle.flow.write_paused = obstacle == "paused"
    cycle.disconnected = obstacle == "disconnected"
    cycle.chunked_encoding = obstacle != "not chunked"
    assert not outlet_of(cycle).try_write(b"x")
    assert cycle.written == []


def test_another_server_has_no_outlet() -> None:
    assert not find_outlet({"type": "http"})(b"x")


async def test_what_a_lagging_client_has_yet_to_be_sent_comes_before_the_failure() -> None:
    cycle, sent, call = Cycle(), list[bytes](), GenerationHandle()
    cycle.flow.write_paused = True

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def fail_after_a_token() -> None:
        await asyncio.sleep(0)  # until it is poured
        call.deliver(TokenChunk("r", (7,)))
        call.flush()
        call.fail(EngineUnavailable("It ended"))

    stream = await open_stream(PushedCall(call), PlainWriter(), DEADLINE_S)
    scope = {"type": "http", RECORD_KEY: RequestRecord("r"), OUTLET_KEY: outlet_of(cycle)}
    failing = asyncio.create_task(fail_after_a_token())
    await stream(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    await failing
    bodies = [body for body in sent if body]
    assert bodies[:2] == [b"first", b"7"] and b"It ended" in bodies[2]


async def test_client_that_lags_is_waited_for_and_nothing_is_lost() -> None:
    cycle, sent = Cycle(), list[bytes]()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        cycle.flow.write_paused = False  # it has caught up

    async def lag() -> None:
        cycle.flow.write_paused = True

    deltas = [[Delta(0, text, None)] for text in "12345"]
    source = ScriptedSource(*deltas[:2], lag, *deltas[2:])
    stream = await open_stream(source, PlainWriter(), DEADLINE_S)
    scope = {"type": "http", RECORD_KEY: RequestRecord("r"), OUTLET_KEY: outlet_of(cycle)}
    await stream(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert cycle.written == [b"1\r\n2\r\n", b"1\r\n4\r\n", b"1\r\n5\r\n"]
    assert [body for body in sent if body][:2] == [b"1", b"3"]
