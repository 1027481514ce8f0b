"""One of several API processes: `python -m deepinfer.server.worker`, started by the front.

It serves HTTP as a server with one process does. What it shares with the others stands in a folder
that the front has made; the engines are the front's too, and only talked to. The pipe from the
front says what to serve, and by its closing that the front is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepinfer import logs, tasks
from deepinfer.config import ServeConfig
from deepinfer.errors import BackendError, CommandError
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.distant import DistantKeeper
from deepinfer.runtime.gate import SuspectGate
from deepinfer.runtime.wire import FrameReader
from deepinfer.server import lifetime
from deepinfer.server.keys import KeyRing
from deepinfer.server.limits import RateLimiter
from deepinfer.server.metrics import make_collector
from deepinfer.server.offer import make_state
from deepinfer.server.orders import FromFront, KeysChanged, LivesChanged, Orders, decode
from deepinfer.server.shared.counts import SharedCounts
from deepinfer.server.shared.figures import FigureShelf, SharedCollector
from deepinfer.server.shared.ledger import Ledger
from deepinfer.server.shared.responses import SharedResponses
from deepinfer.server.state import ServerState
from deepinfer.server.tls import open_tls

logger = logging.getLogger("deepinfer.server.worker")  # not "__main__", as it is run

STDIN = 0
RECEIVE_BYTES = 1 << 16
SAVE_INTERVAL_S = 1.0
# What has waited in the backlog of a dead worker is to find an engine that is ready; a step of a
# CPU, between two of which engines let clients in, takes seconds at most.
JOIN_TIMEOUT_S = 10.0
# Of what happens to the whole server the front has a line already.
QUIET = {
    "deepinfer.runtime.client": logging.WARNING,
    "deepinfer.server.lifetime": logging.CRITICAL,
}


class FrontPipe:
    """The worker's end of the pipe."""

    def __init__(self) -> None:
        os.set_blocking(STDIN, True)
        self._reader = FrameReader()

    def receive(self) -> list[FromFront]:
        """The messages that have come whole; waits for a part of one. Raises EOFError."""
        data = os.read(STDIN, RECEIVE_BYTES)
        if not data:
            raise EOFError
        return [decode(body) for body in self._reader.feed(data)]


class Worker:
    """What is made of the orders."""

    def __init__(self, orders: Orders, pipe: FrontPipe) -> None:
        config = ServeConfig.model_validate_json(orders.config)
        self._pipe = pipe
        self._folder = Path(orders.folder)
        self._keys = KeyRing([order.key for order in orders.keys], config.limits)
        self._keepers = [
            DistantKeeper(Path(order.socket_path), order.lives) for order in orders.engines
        ]
        self._ledger = Ledger(self._folder)
        self._state = self._make_state(orders, config)

    async def serve(self, listener: socket.socket) -> None:
        """Until the front has it end, or ends itself."""
        state = self._state
        assert state.shelf is not None
        tls = open_tls(state.config.server.tls_certificate, state.config.server.tls_key)
        asyncio.get_running_loop().add_reader(STDIN, self._listen)
        collector = make_collector(state.engines, state.meter, state.shelf)
        name = "the saving of figures"
        saving = tasks.start(tasks.keep_running(name, lambda: _save(collector)), name)
        try:
            await _join([engine.client for engine in state.engines])
            await lifetime.serve(state, listener, lambda: None, tls, are_started=True)
        finally:
            saving.cancel()
            if state.tracer is not None:
                state.tracer.close()
            self._ledger.close()

    def take(self, messages: Iterable[FromFront]) -> None:
        """Act upon what the front says."""
        for message in messages:
            match message:
                case LivesChanged():
                    self._keepers[message.engine].tell(message.lives)
                case KeysChanged():
                    self._keys.replace([order.key for order in message.keys])

    def _make_state(self, orders: Orders, config: ServeConfig) -> ServerState:
        offer = orders.offer
        clients = [
            EngineClient(one.engine, one.options, keeper, SuspectGate(self._folder / f"gate-{i}"))
            for i, (one, keeper) in enumerate(zip(offer.engines, self._keepers, strict=True))
        ]
        return make_state(
            config,
            offer,
            clients,
            keys=self._keys,
            limiter=RateLimiter(SharedCounts(self._ledger, orders.worker)),
            responses=SharedResponses(self._ledger),
            shelf=FigureShelf(self._ledger, orders.worker),
        )

    def _listen(self) -> None:
        try:
            self.take(self._pipe.receive())
        except EOFError:
            self._end_alone()

    def _end_alone(self) -> None:
        """The front was killed. What it would have cleared away holds what clients said."""
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)


async def _join(clients: Sequence[EngineClient]) -> None:
    """Connect to the engines, and wait for those that are ready to say so."""
    for client in clients:
        await client.start()
    ready = [client.wait_ready() for client in clients if client.keeper.lives.is_ready]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*ready), JOIN_TIMEOUT_S)


async def _save(collector: SharedCollector) -> None:
    """A worker that is killed takes no more of its figures with it than those of this interval."""
    while True:
        await asyncio.sleep(SAVE_INTERVAL_S)
        try:
            collector.save()
        except sqlite3.OperationalError as error:  # a full disk, for instance
            logger.error("the other processes do not learn this one's figures: %s", error)


def _make_worker(pipe: FrontPipe) -> Worker:
    messages: list[FromFront] = []
    while not messages:
        messages = pipe.receive()
    orders, *later = messages
    assert isinstance(orders, Orders), "they come first"
    worker = Worker(orders, pipe)
    worker.take(later)
    return worker


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.server.worker")
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening socket")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the front reads keys again, and says so
    logs.configure(arguments.log_level, arguments.log_format, says_process=True)
    if logging.getLogger().level == logging.INFO:
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)
    try:
        worker = _make_worker(FrontPipe())
        with asyncio.Runner(loop_factory=lifetime.loop_factory()) as runner:
            runner.run(worker.serve(socket.socket(fileno=arguments.listen_fd)))
    except (EOFError, BackendError):
        return 1  # the front is gone, or ends for the same reason and says so
    except CommandError as error:
        logger.error("%s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
