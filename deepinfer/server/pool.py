"""The API processes of a server that has several: started, told things, started again, ended.

Each has its own of the sockets that share the port, and its successor takes over what waits in its
backlog. What workers do is said by the orders, which are made anew for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

from deepinfer import logs
from deepinfer.server.orders import FromFront, Orders, encode

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
MAX_BACKOFF_S = 10.0
STABLE_AFTER_S = 60.0  # a worker that lived this long is started again at once
HURRY_TIMEOUT_S = 5.0  # for workers that have been asked twice


class WorkerPool:
    """`make_orders` is given the number of a new worker, `bury` that of one that has died."""

    def __init__(
        self,
        num_workers: int,
        listeners: Sequence[socket.socket],
        make_orders: Callable[[int], Orders],
        bury: Callable[[int], None],
    ) -> None:
        self._num_workers = num_workers
        self._listeners = listeners
        self._make_orders = make_orders
        self._bury = bury
        self._numbers = itertools.count(1)
        self._processes: dict[int, asyncio.subprocess.Process] = {}  # by the worker's number
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Keep every worker alive until `close`, and return when the last one has ended."""
        async with asyncio.TaskGroup() as group:
            for place in range(self._num_workers):
                listener = self._listeners[place % len(self._listeners)]
                group.create_task(self._keep(listener))

    def tell(self, message: FromFront) -> None:
        """Every worker hears of it."""
        for process in self._processes.values():
            _write(process, message)

    def close(self) -> None:
        """Have the workers drain and end, and start no more."""
        self._closing.set()
        self._signal(signal.SIGTERM)

    def hurry(self) -> None:
        """After `close`: have them end now."""
        # Another signal than the first, with which it might become one.
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def _keep(self, listener: socket.socket) -> None:
        backoff_s = 0.0
        while not self._closing.is_set():
            started_at = time.monotonic()
            await self._run_one(listener)
            if time.monotonic() - started_at > STABLE_AFTER_S:
                backoff_s = 0.0
            await self._pause(backoff_s)
            backoff_s = min(max(2 * backoff_s, FIRST_BACKOFF_S), MAX_BACKOFF_S)
        # Nobody is to wait in a backlog that nobody will serve.
        listener.close()

    async def _run_one(self, listener: socket.socket) -> None:
        try:
            process = await _spawn(listener)
        except OSError as error:  # too many processes, for instance
            logger.error("an API process cannot be started: %s", error.strerror or error)
            return
        number = next(self._numbers)
        self._processes[number] = process
        _write(process, self._make_orders(number))
        logger.info("API process %d started", process.pid)
        if self._closing.is_set():  # while it was started
            self._signal(signal.SIGTERM)
        status = await process.wait()
        del self._processes[number]
        self._bury(number)
        if not self._closing.is_set():
            logger.error("API process %d ended with status %d", process.pid, status)

    async def _pause(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), timeout_s)
        except TimeoutError:
            return

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


async def _spawn(listener: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deepinfer.server.worker"),
        *("--listen-fd", str(listener.fileno())),
        *("--log-level", logging.getLevelName(logging.getLogger().getEffectiveLevel())),
        *("--log-format", logs.active_format()),
        stdin=asyncio.subprocess.PIPE,  # its closing tells the worker that we are gone
        pass_fds=(listener.fileno(),),
        start_new_session=True,  # Ctrl-C in the terminal is for the front to pass on
    )


def _write(process: asyncio.subprocess.Process, message: FromFront) -> None:
    assert process.stdin is not None
    if not process.stdin.is_closing():
        process.stdin.write(encode(message))
