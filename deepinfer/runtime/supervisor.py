"""Keeps an engine process running: starts it, watches it, and starts it again when it dies.

The launcher makes the listening socket, in a directory that only this user can enter, and hands
it to each engine process in turn: whoever connects while none is there waits in the socket's
backlog and is served by the next one, so nothing has to be polled. The watchdog tells a process
that hangs from one that is slow, and kills it. What the engine itself says comes to the client,
where the supervisor reads it; what becomes of its requests is the client's business.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from deepinfer import logs, tasks
from deepinfer.engine import EngineOptions, EngineStatus, Load
from deepinfer.manifest import EngineFolder
from deepinfer.runtime import wire
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
# Between two starts of an engine that dies again and again: before it is ready, or at its work.
MAX_BACKOFF_S = 30.0
MAX_BACKOFF_AFTER_WORK_S = 1.0
PING_INTERVAL_S = 1.0
# Requests that run for so long without a token, of any of them, will have none.
STUCK_AFTER_S = 600.0
# Loading waits for disks, which takes no processor time.
LOADING_FACTOR = 12


class EngineProcessState(msgspec.Struct, frozen=True):
    """The processes of one engine so far."""

    num_starts: int = 0
    has_been_ready: bool = False  # in any of them
    num_failed: int = 0  # that have ended since one was ready, that one included
    failure: wire.Failed | None = None  # how the last one ended; None while one is ready
    dead_pid: int | None = None  # of the last process that has ended
    cannot_start: bool = False  # the last start has come to nothing by itself

    @property
    def is_ready(self) -> bool:
        return self.has_been_ready and self.failure is None


class SupervisedClient(Protocol):
    """A client as its supervisor sees it."""

    status: EngineStatus
    load: Load
    failure: wire.Failed | None  # what the engine said before it ended
    num_ready: int  # processes that have been ready
    heard_at: float  # when the engine last said anything, by the clock of the event loop
    num_chunks: int  # that the engine had made for anybody when it was last asked

    @property
    def is_connected(self) -> bool: ...

    def ping(self) -> None:
        """Ask the engine whether it is there."""

    def on_state_change(self, state: EngineProcessState) -> None:
        """Take notice of a death."""


class EngineSupervisor:
    """Starts an engine process, and the next one when it has died."""

    def __init__(self, engine: EngineFolder, options: EngineOptions) -> None:
        self._launcher = EngineLauncher(engine, options, self._on_exit)
        self._watchdog = Watchdog(
            options.hang_timeout_s,
            find_activity=self._find_activity,
            ping=self._ping,
            kill=self._launcher.kill,
        )
        self._client: SupervisedClient | None = None
        self._watching: asyncio.Task[None] | None = None
        self._num_ready = 0  # processes that had been ready at the last death
        self._num_failed = 0
        self._failure: wire.Failed | None = None
        self._dead_pid: int | None = None
        self._cannot_start = False  # whether the last start has come to nothing by itself

    @property
    def socket_path(self) -> Path:
        return self._launcher.socket_path

    @property
    def pid(self) -> int | None:
        """The process id of the engine process that runs now."""
        return self._launcher.pid

    @property
    def state(self) -> EngineProcessState:
        client, num_starts = self._client, self._launcher.num_starts
        if client is None:
            return EngineProcessState(num_starts)
        if client.status.is_ready:
            return EngineProcessState(num_starts, has_been_ready=True)
        return self._describe(client)

    def _describe(self, client: SupervisedClient) -> EngineProcessState:
        return EngineProcessState(
            self._launcher.num_starts,
            client.num_ready > 0,
            self._num_failed,
            self._failure,
            self._dead_pid,
            self._cannot_start,
        )

    async def start(self, client: SupervisedClient) -> None:
        """Start the first process and return at once."""
        self._client = client
        await self._launcher.start()
        self._watching = tasks.start(
            tasks.keep_running("the engine's watchdog", self._watchdog.run), "the engine's watchdog"
        )

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self._launcher.close()

    def _find_activity(self) -> EngineActivity | None:
        pid, client = self.pid, self._client
        if pid is None or client is None or not client.is_connected:
            return None
        return EngineActivity(
            pid,
            is_loading=not client.status.is_ready,
            is_busy=client.load.num_running > 0,
            heard_at=client.heard_at,
            num_chunks=client.num_chunks,
        )

    def _ping(self) -> None:
        if self._client is not None:
            self._client.ping()

    def _on_exit(self, fault: str, pid: int | None, was_killed: bool) -> float | None:
        """How long to put off the next start at most; None if the engine never came up at all."""
        client = self._client
        assert client is not None, "no engine is started before its client is known"
        was_ready = client.num_ready > self._num_ready
        self._num_ready = client.num_ready
        self._num_failed = 1 if was_ready else self._num_failed + 1
        self._cannot_start = not was_ready and not was_killed
        self._failure = client.failure or wire.Failed(
            fault, "its last words are in the log above; try again with --log-level DEBUG"
        )
        client.failure = None  # what is said of this activity is not said of the next one
        self._dead_pid = pid or self._dead_pid
        state = self._describe(client)
        client.on_state_change(state)
        if not state.has_been_ready:
            return None
        return MAX_BACKOFF_S if self._num_failed > 1 else MAX_BACKOFF_AFTER_WORK_S


class EngineLauncher:
    """Starts the processes of one engine, one after the other.

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
            *(sys.executable, "-m", "deepinfer.runtime.engine_process"),
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


@dataclass
class EngineActivity:
    """The activity of the engine that runs now, as far as the watchdog cares."""

    pid: int
    is_loading: bool
    is_busy: bool  # requests run
    heard_at: float  # when it last said anything, by the clock of the event loop
    num_chunks: int  # that it had made when it was last asked


class Watchdog:
    """`find_activity` says what runs and is connected now, `ping` asks it, `kill` ends it."""

    def __init__(
        self,
        hang_timeout_s: float,
        *,
        find_activity: Callable[[], EngineActivity | None],
        ping: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._find_activity = find_activity
        self._ping = ping
        self._kill = kill
        self._pid: int | None = None
        self._num_chunks = 0
        self._heartbeat = Heartbeat(hang_timeout_s, 0)

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            now = loop.time()
            # If it is this process that was stopped, the engine has had nobody to talk to.
            was_away = now - asked_at > 2 * PING_INTERVAL_S
            asked_at = now
            activity = self._find_activity()
            if activity is None:
                self._pid = None
            elif activity.pid != self._pid or was_away:
                self._pid = activity.pid
                self._heartbeat = Heartbeat(self._hang_timeout_s, now)
            else:
                self._check(activity, now)

    def _check(self, activity: EngineActivity, now: float) -> None:
        if activity.heard_at > self._heartbeat.heard_at:
            self._heartbeat.hear(activity.heard_at)
        if activity.num_chunks != self._num_chunks:
            self._num_chunks = activity.num_chunks
            self._heartbeat.advance(now)
        self._ping()
        ticks = read_cpu_ticks(activity.pid)
        fault = self._heartbeat.find_fault(
            now, ticks, is_loading=activity.is_loading, is_busy=activity.is_busy
        )
        if fault is not None:
            logger.error("engine process %d hangs: %s; killing it", activity.pid, fault)
            self._kill()


@dataclass
class Heartbeat:
    """What is known of one engine process. Times are of one monotonic clock."""

    hang_timeout_s: float
    heard_at: float  # when it last said anything
    _ticks: int = 0
    _computed_at: float = 0.0
    _advanced_at: float = 0.0  # when tokens came last, or nothing ran

    def __post_init__(self) -> None:
        self._computed_at = self._advanced_at = self.heard_at

    def hear(self, now: float) -> None:
        self.heard_at = self._computed_at = now

    def advance(self, now: float) -> None:
        """Tokens have come."""
        self._advanced_at = now

    def find_fault(
        self, now: float, cpu_ticks: int | None, *, is_loading: bool, is_busy: bool
    ) -> str | None:
        """What is wrong with the process, or None. `cpu_ticks` is None where nobody can tell."""
        if not is_busy:
            self.advance(now)
        if cpu_ticks is None or cpu_ticks > self._ticks:
            self._ticks = cpu_ticks or 0
            self._computed_at = now
        timeout_s = self.hang_timeout_s * (LOADING_FACTOR if is_loading else 1)
        if now - max(self.heard_at, self._computed_at) > timeout_s:
            return f"it has neither answered nor computed for {timeout_s:g} s"
        if now - self._advanced_at > max(STUCK_AFTER_S, timeout_s):
            return f"its requests have had no token for {STUCK_AFTER_S:g} s"
        return None


def read_cpu_ticks(pid: int) -> int | None:
    """Processor time of a process, in clock ticks; None where the kernel does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return int(fields[11]) + int(fields[12])  # utime, stime; see proc(5)


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
