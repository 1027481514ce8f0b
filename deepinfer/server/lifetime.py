"""One server's life: listen, load, serve, drain, end.

The API answers from the first moment, so that a client sees how far the loading is. A signal ends
it: no more work is taken, running requests have some time to finish, a second signal takes that
time away. SIGHUP reads the file with the keys again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Generator

import uvicorn

from deepinfer import precedence
from deepinfer.errors import BackendError
from deepinfer.runtime.client import EngineClient
from deepinfer.server.app import create_app
from deepinfer.server.listen import BACKLOG
from deepinfer.server.loop_watch import LoopWatch
from deepinfer.server.protocol import bounded_protocol
from deepinfer.server.state import ServerState

logger = logging.getLogger(__name__)

# Longer than common clients keep idle connections, so that it is they who close them.
KEEP_ALIVE_S = 75
SWITCH_INTERVAL_S = 0.001  # Python's own is 5 ms, by which each turn of the event loop may be late
# For responses to reach their readers once every generation has ended.
FLUSH_TIMEOUT_S = 5


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Of the loop that a server runs in; None is Python's own."""
    try:
        import uvloop
    except ImportError:  # there is none for PyPy
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals alone: what they mean is decided here, not there."""
        yield


class StopSignals:
    """Counts the requests to stop: the first one drains, the second one does not wait."""

    def __init__(self, state: ServerState) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._state = state

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        if self.first.is_set():
            logger.warning("%s again: ending now", number.name)
            self.second.set()
            return
        timeout_s = self._state.config.server.shutdown_timeout_s
        logger.info("%s: running requests have %g s to finish", number.name, timeout_s)
        self._state.is_draining = True
        self.first.set()


def _reload_keys_on_hangup(state: ServerState) -> None:
    """Without a file there is nothing to read, and the signal means what it does everywhere."""
    if state.config.server.api_key_file is not None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, state.keys.reload, state.config)


async def serve(
    state: ServerState,
    listener: socket.socket,
    announce: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> None:
    """Run until a signal comes and all is drained; call `announce` when the engines are ready.

    Raises BackendError when no engine can be loaded; of several, those that can are served.
    """
    started_at = time.monotonic()
    if any(engine.manifest.target.kind == "cpu" for engine in state.engines):
        precedence.give_way()
    # Bodies and grammars are read in threads: so long does one of them keep the lock of Python.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    signals = StopSignals(state)
    signals.install()
    _reload_keys_on_hangup(state)
    # Engines load in processes of their own, beside the making of the application.
    for engine in state.engines:
        await engine.client.start()
    server = _make_server(state, tls)
    keep_for_good()
    watch = LoopWatch(state.meter.loop_lag)
    watch.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    serving.add_done_callback(lambda _: signals.first.set())
    try:
        await _load_and_wait(state, signals, announce, started_at)
    finally:
        await _drain(state, signals)
        server.should_exit = True
        server.force_exit = signals.second.is_set()
        await serving
        watch.stop()
    logger.info("stopped")


def _make_server(state: ServerState, tls: ssl.SSLContext | None) -> _HttpServer:
    config = uvicorn.Config(
        create_app(state),
        http=bounded_protocol(state.config.server.receive_timeout_s),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=FLUSH_TIMEOUT_S,
    )
    config.load()
    config.ssl = tls  # uvicorn itself takes files only
    return _HttpServer(config)


def keep_for_good() -> None:
    """Spare the collections to come what there is by now: modules, schemas, routes, tokenizers.

    Else each full one stops the process to go through them, in the middle of streams.
    """
    gc.collect()
    gc.freeze()


async def _load_and_wait(
    state: ServerState, signals: StopSignals, announce: Callable[[], None], started_at: float
) -> None:
    """Call `announce` when the started engines are ready; return when a signal has come.

    `started_at` is by the monotonic clock, for the log to say how long it took.
    """
    loading = asyncio.create_task(_load(state, started_at))
    stopping = asyncio.create_task(signals.first.wait())
    try:
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            announce()
            await stopping
    finally:
        loading.cancel()
        stopping.cancel()


async def _load(state: ServerState, started_at: float) -> None:
    clients = [engine.client for engine in state.engines]
    failures = await asyncio.gather(*map(_wait_ready, clients))
    first_failure = failures[0]
    if first_failure is not None and all(failures):
        raise first_failure
    for client, failure in zip(clients, failures, strict=True):
        if failure is not None:
            logger.error("engine `%s` is not served: %s", client.manifest.name, _whole(failure))
    logger.info("ready after %.1f s", time.monotonic() - started_at)


async def _wait_ready(client: EngineClient) -> BackendError | None:
    try:
        await client.wait_ready()
    except BackendError as error:
        return error
    return None


def _whole(error: BackendError) -> str:
    return error.message if error.hint is None else f"{error.message}; {error.hint}"


async def _drain(state: ServerState, signals: StopSignals) -> None:
    has_requests = signals.first.is_set()
    state.is_draining = True
    timeout_s = state.config.server.shutdown_timeout_s if has_requests else 0
    closing = asyncio.create_task(close_engines(state, timeout_s))
    hurrying = asyncio.create_task(signals.second.wait())
    await asyncio.wait((closing, hurrying), return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if closing.done():
        closing.result()
        return
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await close_engines(state, 0)


async def close_engines(state: ServerState, timeout_s: float) -> None:
    await asyncio.gather(*(engine.client.close(timeout_s) for engine in state.engines))
