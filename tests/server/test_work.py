"""How much work a streamed token is, counted and not timed: calls, messages, bytes, memory.

Seconds depend on who else uses the machine; these figures do not. Each is the difference between a
long and a short run of the same streams, so that what a request costs once is no part of it. A
ceiling stands a little above today's figure: who raises one says why.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import uvicorn
import uvloop

from deepinfer.config import ServeConfig
from deepinfer.engine import EngineOptions
from deepinfer.runtime import wire
from deepinfer.runtime.client import EngineClient
from deepinfer.server.app import create_app
from deepinfer.server.engines import EngineCatalog, ServedEngine
from deepinfer.server.names import EngineNames
from deepinfer.server.protocol import bounded_protocol
from deepinfer.server.state import ServerState
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.tokenizer import Tokenizer
from tests.server.serving import DEADLINE_S, MODEL_ID, make_echo_engine, raw_request

NUM_STREAMS = 16
STEP_US = 8_000  # long enough for the API process to be done with a step before the next one
SHORT, LONG = 40, 240  # tokens of each stream
NUM_TOKENS = NUM_STREAMS * (LONG - SHORT)  # that are counted

# Ceilings, with today's figures beside them.
MAX_CALLS_PER_EVENT = 60.0  # 43
MAX_FRAMES_PER_STEP = 1.5  # 1.05: a step, and now and then how busy the engine is
MAX_WIRE_BYTES_PER_TOKEN = 60.0  # 51
MAX_SENT_BYTES_PER_EVENT = 220.0  # 200, with the chunk's size
MAX_KEPT_BLOCKS_PER_EVENT = 0.25  # 0.01


@dataclass
class Work:
    """What the API process's thread has done."""

    calls: int = 0  # of functions, Python's and C's
    frames: int = 0  # messages of the engine
    wire_bytes: int = 0  # of these
    events: int = 0
    sent_bytes: int = 0  # of the bodies that clients have read
    kept_blocks: int = 0  # of memory, at the end

    def minus(self, other: Work) -> Work:
        mine, others = vars(self), vars(other)
        return Work(**{name: mine[name] - others[name] for name in mine})


class Client(threading.Thread):
    """Reads all streams to their ends; a thread of its own, whose work is not counted."""

    def __init__(self, port: int, num_tokens: int, on_end: Callable[[], object]) -> None:
        super().__init__()
        self._port = port
        self._num_tokens = num_tokens
        self._on_end = on_end
        self.received = b""

    def run(self) -> None:
        fields = {"prompt": "a", "ignore_eos": True, "stream": True, "max_tokens": self._num_tokens}
        streams = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(NUM_STREAMS)]
        for number, stream in enumerate(streams):
            stream.settimeout(DEADLINE_S)
            stream.sendall(raw_request(fields, f"work-{number}"))
        for stream in streams:
            received = b""
            while not received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
                received += stream.recv(65_536)
            self.received += received
            stream.close()
        self._on_end()


@contextmanager
def counting_calls(work: Work) -> Iterator[None]:
    """Of this thread. Costs several times what it counts."""

    def count(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            work.calls += 1

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


async def stream_all(server: uvicorn.Server, port: int, num_tokens: int) -> Work:
    """What it takes to send every stream `num_tokens`."""
    work = Work()
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    client = Client(port, num_tokens, lambda: loop.call_soon_threadsafe(ended.set))

    decode_from_engine = wire.decode_from_engine

    def decode(body: bytes) -> wire.FromEngine:
        work.frames += 1
        work.wire_bytes += len(body)
        return decode_from_engine(body)

    with pytest.MonkeyPatch.context() as patch, counting_calls(work):
        patch.setattr(wire, "decode_from_engine", decode)
        client.start()
        await asyncio.wait_for(ended.wait(), DEADLINE_S)
    client.join()
    work.events = client.received.count(b"data: {")
    work.sent_bytes = len(client.received)
    del client.received
    await asyncio.sleep(0.1)  # for the last connections to be forgotten
    gc.collect()
    work.kept_blocks = sys.getallocatedblocks()
    return work


async def measure(folder: Path) -> Work:
    engine = make_echo_engine(folder / "echo", max_batch_size=NUM_STREAMS, step_us=STEP_US)
    client = EngineClient(engine, EngineOptions())
    served = ServedEngine(
        client,
        Tokenizer.load(engine.tokenizer_dir),
        ChatTemplate.load(engine.tokenizer_dir),
        EngineNames((MODEL_ID,)),
    )
    state = ServerState(ServeConfig(), EngineCatalog([served]), lambda: (), ())
    config = uvicorn.Config(
        create_app(state), http=bounded_protocol(10), lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await client.start()
        await asyncio.wait_for(client.wait_ready(), DEADLINE_S)
        serving = asyncio.create_task(server._serve([listener]))
        port = listener.getsockname()[1]
        await stream_all(server, port, SHORT)  # what the first requests leave behind
        short = await stream_all(server, port, SHORT)
        long = await stream_all(server, port, LONG)
        server.should_exit = True
        await serving
        await client.close(0)
    return long.minus(short)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `deepinfer serve` does
        return runner.run(measure(tmp_path_factory.mktemp("engines")))


@pytest.fixture(autouse=True)
def report(work: Work, record_property: Callable[[str, object], None]) -> None:
    """The figures stand in the report of the tests, to be compared over time."""
    for name, value in vars(work).items():
        record_property(name, value)


def test_nearly_every_token_was_an_event_of_its_own(work: Work) -> None:
    """Else the figures are of fewer and larger events than a client sees that keeps up.

    More than one a token is a short run whose events were put together more often.
    """
    assert 0.6 < work.events / NUM_TOKENS < 1.1


def test_an_event_takes_few_calls(work: Work) -> None:
    assert work.calls / work.events < MAX_CALLS_PER_EVENT


def test_an_engine_step_is_one_message_for_all_streams(work: Work) -> None:
    assert work.frames / (LONG - SHORT) < MAX_FRAMES_PER_STEP


def test_a_token_crosses_the_border_in_few_bytes(work: Work) -> None:
    assert work.wire_bytes / NUM_TOKENS < MAX_WIRE_BYTES_PER_TOKEN


def test_an_event_is_sent_in_few_bytes(work: Work) -> None:
    assert work.sent_bytes / work.events < MAX_SENT_BYTES_PER_EVENT


def test_nothing_is_kept_of_a_token_that_was_sent(work: Work) -> None:
    assert work.kept_blocks / work.events < MAX_KEPT_BLOCKS_PER_EVENT
