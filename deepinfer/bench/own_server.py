"""A `deepinfer serve` of the benchmark's own: on a free port, and ended when it is done with."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepinfer.bench.client import BenchClient
from deepinfer.bench.connection import ConnectionEnded
from deepinfer.bench.target import parse_url
from deepinfer.errors import BenchError

LOAD_TIMEOUT_S = 600.0
END_TIMEOUT_S = 30.0
POLL_S = 0.1
MAX_KEPT_LINES = 50
LISTENING = re.compile(r"listening on (http://\S+)")


@contextmanager
def own_server(engine_dir: Path, engine: str | None, options: tuple[str, ...]) -> Iterator[str]:
    """The URL of a server that is ready. Raises BenchError when it does not get there."""
    model = ["--model", engine] if engine else []
    process = subprocess.Popen(
        [sys.executable, "-m", "deepinfer", "serve", "--engine-dir", str(engine_dir)]
        + ["--port", "0", "--log-format", "json", *model, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = _Log(process)
    try:
        yield _wait_ready(process, log)
    finally:
        _end(process)
        log.close()


class _Log:
    """Reads what the server says, so that it never waits for a reader, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.url: str | None = None
        self.lines: deque[str] = deque(maxlen=MAX_KEPT_LINES)
        assert process.stderr is not None
        self._pipe = process.stderr
        self._has_url = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_url(self) -> str | None:
        """None when the server ended first."""
        self._has_url.wait(LOAD_TIMEOUT_S)
        return self.url

    def close(self) -> None:
        self._thread.join()
        self._pipe.close()

    def _read(self) -> None:
        for line in self._pipe:
            message = _message(line)
            self.lines.append(message)
            if found := LISTENING.search(message):
                self.url = found[1]
                self._has_url.set()
        self._has_url.set()


def _message(line: str) -> str:
    """What a line of the log says; the last words of a process are text and not JSON."""
    try:
        document = json.loads(line)
    except ValueError:
        return line.strip()
    return str(document.get("message", "")) if isinstance(document, dict) else line.strip()


def _wait_ready(process: subprocess.Popen[str], log: _Log) -> str:
    url = log.wait_url()
    end_at = time.monotonic() + LOAD_TIMEOUT_S
    while url is not None and process.poll() is None and time.monotonic() < end_at:
        if asyncio.run(_is_ready(url)):
            return url
        time.sleep(POLL_S)
    _end(process)
    log.close()
    said = [line for line in log.lines if line]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
    reason = errors[-1] if errors else said[-1] if said else "it said nothing"
    raise BenchError(
        f"the server did not become ready: {reason}", hint=hints[-1] if hints else None
    )


async def _is_ready(url: str) -> bool:
    try:
        status, _ = await BenchClient(parse_url(url), timeout_s=10).fetch("GET", "/health")
    except (OSError, TimeoutError, ConnectionEnded):
        return False
    return status == 200


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
