"""The parent of several API processes: it keeps engines and workers alive, and serves no HTTP.

It decides what is served, owns the sockets, and passes on what it alone knows: how engines live,
which keys there are, that it is time to end. Requests never come by here.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from deepinfer.config import ServeConfig
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.keeper import EngineKeeper
from deepinfer.runtime.lives import Lives
from deepinfer.server.keys import KeyRing
from deepinfer.server.lifetime import (
    FLUSH_TIMEOUT_S,
    StopSignals,
    close_engines,
    load_and_wait,
    start_engines,
)
from deepinfer.server.offer import Offer, OfferedEngine, make_state
from deepinfer.server.orders import (
    EngineOrder,
    KeysChanged,
    LivesChanged,
    Orders,
    describe_config,
    describe_keys,
)
from deepinfer.server.pool import HURRY_TIMEOUT_S, WorkerPool
from deepinfer.server.shared.counts import drop_running
from deepinfer.server.shared.figures import bury
from deepinfer.server.shared.ledger import Ledger
from deepinfer.server.state import ServerState

logger = logging.getLogger(__name__)


class Front:
    """One server with `server.api_workers` API processes. `folder` is for them alone."""

    def __init__(self, config: ServeConfig, offer: Offer, keys: KeyRing, folder: Path) -> None:
        """Raises EngineError for what no worker could load either."""
        self._config = config
        self._offer = offer
        self._keys = keys
        self._folder = folder
        self._ledger = Ledger(folder)
        self._keepers = [EngineKeeper(one.engine, one.options) for one in offer.engines]
        clients = [
            EngineClient(one.engine, one.options, keeper)
            for one, keeper in zip(offer.engines, self._keepers, strict=True)
        ]
        self.state: ServerState = make_state(config, offer, clients, keys=keys)

    async def serve(self, listeners: Sequence[socket.socket], announce: Callable[[], None]) -> None:
        """Run until a signal comes and all is drained, as `lifetime.serve` does."""
        started_at = time.monotonic()
        signals = StopSignals(self.state)
        signals.install()
        pool = WorkerPool(self._config.server.api_workers, listeners, self._make_orders, self._bury)
        self._pass_on_changes(pool)
        running = asyncio.create_task(pool.run())
        running.add_done_callback(lambda _: signals.first.set())
        try:
            await start_engines(self.state)
            await load_and_wait(self.state, signals, announce, started_at)
        finally:
            try:
                await self._end(pool, running, signals)
            finally:
                await close_engines(self.state, 0)
                self._close()
        logger.info("stopped")

    def _make_orders(self, worker: int) -> Orders:
        pairs = zip(self._offer.engines, self._keepers, strict=True)
        return Orders(
            worker=worker,
            folder=str(self._folder),
            config=describe_config(self._config),
            engines=tuple(_order(offered, keeper) for offered, keeper in pairs),
            adapters=self._offer.adapters,
            keys=describe_keys(self._keys),
        )

    def _close(self) -> None:
        self._ledger.close()
        if self.state.tracer is not None:
            self.state.tracer.close()

    def _bury(self, worker: int) -> None:
        try:
            drop_running(self._ledger, worker)
            bury(self._ledger, worker)
        except sqlite3.OperationalError as error:  # a full disk, for instance
            logger.error("what API process %d has counted is not put right: %s", worker, error)

    def _pass_on_changes(self, pool: WorkerPool) -> None:
        def tell_lives(engine: int, lives: Lives) -> None:
            pool.tell(LivesChanged(engine, lives))

        def reload_keys() -> None:
            self._keys.reload(self._config)
            pool.tell(KeysChanged(describe_keys(self._keys)))

        for i, keeper in enumerate(self._keepers):
            keeper.listeners.append(partial(tell_lives, i))
        if self._config.server.api_key_file is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_keys)

    async def _end(
        self, pool: WorkerPool, running: asyncio.Task[None], signals: StopSignals
    ) -> None:
        """Workers drain by themselves, as long as they may; then they are made to end."""
        drain_s = self._config.server.shutdown_timeout_s + FLUSH_TIMEOUT_S + HURRY_TIMEOUT_S
        pool.close()
        hurrying = asyncio.create_task(signals.second.wait())
        await asyncio.wait(
            (running, hurrying), timeout=drain_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurrying.cancel()
        if not running.done():
            pool.hurry()
            await asyncio.wait((running,), timeout=HURRY_TIMEOUT_S)
        pool.kill()
        await running


def _order(offered: OfferedEngine, keeper: EngineKeeper) -> EngineOrder:
    return EngineOrder(
        path=str(offered.engine.path.resolve()),
        options=offered.options,
        listed_names=offered.names.listed,
        unlisted_names=offered.names.unlisted,
        socket_path=str(keeper.socket_path),
        lives=keeper.lives,
    )
