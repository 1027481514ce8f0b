"""Starts the engine process, notices when it ends, and starts it again.

The supervisor makes the listening socket, in a directory that only this user can enter, and hands
it to each engine process in turn: whoever connects while none is there waits in the socket's
backlog and is served by the next one, so nothing has to be polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping

import msgspec

from deepinfer import logs, tasks
from deepinfer.engine import EngineOptions
from deepinfer.manifest import EngineFolder
from deepinfer.temp_folders import TempFolder

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.25
STABLE_AFTER_S = 60.0  # an engine that lived this long is restarted at once again
STOP_TIMEOUT_S = 5.0
# Words of the names of variables that hold what is nobody's business but the API process's.
SECRET_WORDS = {
    *("KEY", "KEYS", "APIKEY", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD"),
    *("PASSPHRASE", "CREDENTIAL", "CREDENTIALS", "AUTHORIZATION", "COOKIE"),
}
DESCRIPTORS_PER_START = 6  # pipes to the process, and that by which it says that it runs
BACKLOG = 16


class EngineSupervisor:
    """One engine's process, over all its lives.

    `on_exit` is called each time it ends without having been asked to, or cannot be started again,
    with what happened, the id of the process that was, and whether a signal has ended it; it
    returns how many seconds the next start may be put off at most, or None for no next one.
    """

    def __init__(
        self,
        engine: EngineFolder,
        options: EngineOptions,
        on_exit: Callable[[str, int | None, bool], float | None],
    ) -> None:
        self.engine = engine
        self.options = options
        self.num_starts = 0
        self._on_exit = on_exit
        self._folder = TempFolder()
        # Of what an engine process, and those that it starts, put down and may not live to remove.
        self._scratch = self._folder.path / "tmp"
        self.socket_path = self._folder.path / "engine.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.socket_path))
        self._listener.listen(BACKLOG)
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the engine process that runs now."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    async def start(self) -> None:
        """Start the first process and return at once."""
        await self._spawn()
        name = "the engine's supervisor"
        self._watcher = tasks.start(tasks.keep_running(name, self._watch), name)

    def kill(self) -> None:
        """End the process that runs now by force; another one is started."""
        if self.pid is not None and self._process is not None:
            self._process.kill()

    async def close(self) -> None:
        """End the process, by force if it does not end by itself, and remove the socket."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._process is not None:
            await self._stop(self._process)
        self._listener.close()
        self._folder.close()

    async def _spawn(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)  # of the one before
        self._scratch.mkdir()
        _require_descriptors()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deepinfer.runtime.host"),
            *("--engine", str(self.engine.path)),
            *("--listen-fd", str(self._listener.fileno())),
            *("--options", msgspec.json.encode(self.options).decode()),
            *("--log-level", logging.getLevelName(logging.getLogger().getEffectiveLevel())),
            *("--log-format", logs.active_format()),
            stdin=asyncio.subprocess.PIPE,  # its closing tells the engine that we are gone
            pass_fds=(self._listener.fileno(),),
            start_new_session=True,  # Ctrl-C in the terminal is for the server to handle
            env={**engine_environment(os.environ), "TMPDIR": str(self._scratch)},
        )
        self.num_starts += 1
        logger.info("engine process %d started", self._process.pid)

    async def _watch(self) -> None:
        backoff_s = 0.0
        fault = "the engine process cannot be started"
        while True:
            started_at = time.monotonic()
            pid, was_killed = None, False
            if self._process is not None:
                pid, status = self._process.pid, await self._process.wait()
                was_killed = status < 0
                fault = f"the engine process ended with status {status}"
            max_backoff_s = self._on_exit(fault, pid, was_killed)
            if max_backoff_s is None:
                logger.error("%s", fault)
                return
            if time.monotonic() - started_at > STABLE_AFTER_S:
                backoff_s = 0.0
            pause_s = min(backoff_s, max_backoff_s)
            logger.error("%s; starting it again in %g s", fault, pause_s)
            await asyncio.sleep(pause_s)
            backoff_s = min(max(2 * backoff_s, FIRST_BACKOFF_S), max_backoff_s)
            self._process = None
            try:
                await self._spawn()
            except Exception as error:  # there may be no memory or no file descriptors for it now
                fault = f"the engine process cannot be started: {error}"

    async def _stop(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            logger.warning("engine process %d does not end by itself; killing it", process.pid)
            process.kill()
            await process.wait()


def _require_descriptors() -> None:
    """Raise OSError when there are too few for a process, of which uvloop does not say why."""
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS_PER_START:
            opened += os.pipe()
    finally:
        for descriptor in opened:
            os.close(descriptor)


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the environment an engine process gets: no keys and tokens, which it has no use for.

    Its libraries are native code that works on what strangers have sent. What the configuration
    says comes to it as options.
    """
    return {
        name: value
        for name, value in environment.items()
        # A number is a setting, of tokens to generate for instance.
        if SECRET_WORDS.isdisjoint(name.upper().split("_")) or value.isdecimal()
    }
