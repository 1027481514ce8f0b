"""A real `deepinfer serve` process on a real port; its engine repeats the prompt."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from deepinfer.manifest import TOKENIZER_DIR, EngineFolder
from tests.engines import make_simulated_engine
from tests.text import samples

MODEL_ID = "test/echo"
ENGINE_NAME = "echo.simulated"
CONTEXT_LENGTH = 4096
MAX_WAITING = 64  # of the server that most tests share
DEADLINE_S = 60.0  # where a test fails; a busy machine takes long to start a server
LOAD_MS = 2_500  # of an engine that is asked while it loads: more than the application takes
# No end-of-sequence token in it: the engine repeats the prompt, and would stop there.
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)


def make_echo_engine(
    folder: Path,
    *,
    name: str = ENGINE_NAME,
    model_id: str = MODEL_ID,
    chat_template: str | None = CHAT_TEMPLATE,
    max_batch_size: int = 8,
    max_seq_len: int = CONTEXT_LENGTH,
    **settings: str | int | bool,
) -> EngineFolder:
    """An engine that answers with the prompt's own tokens and then ends."""
    tokenizer = samples.byte_level()
    (folder / TOKENIZER_DIR).mkdir(parents=True)
    tokenizer.save(str(folder / TOKENIZER_DIR / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": chat_template}
    (folder / TOKENIZER_DIR / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return make_simulated_engine(
        folder,
        name=name,
        model_id=model_id,
        settings=settings,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_ids=(tokenizer.token_to_id("</s>"),),
    )


def count_tokens(text: str) -> int:
    return len(samples.byte_level().encode(text).ids)


class ServerProcess:
    """The process, and everything that it has said on stderr."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deepinfer", "serve", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._lines: list[str] = []
        self._has_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def log(self) -> str:
        with self._changed:
            return "".join(self._lines)

    @property
    def url(self) -> str:
        return self.wait_for_log(r"listening on (https?://\S+)")[1]

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for_log(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """The match that came as the `count`-th one; fails when the process ends before it."""
        with self._changed:
            found: list[re.Match[str]] = []

            def has_come() -> bool:
                found[:] = re.finditer(pattern, "".join(self._lines))
                return len(found) >= count or self._has_ended

            self._changed.wait_for(has_come, DEADLINE_S)
            assert len(found) >= count, f"no {pattern!r} in:\n" + "".join(self._lines)
            return found[count - 1]

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def wait_ready(self) -> str:
        """The base URL, once the engine is loaded."""
        return self.wait_for_log(r"Base URL +(https?://\S+)/v1")[1]

    def wait_for_request(self, request_id: str) -> str:
        """The line that the log has for a request once it has ended."""
        return self.wait_for_log(rf".*request_id={request_id}\n")[0]

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        code = self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return code

    def close(self) -> None:
        if self._process.poll() is None:
            self.signal()
            self.signal()
            try:
                self._process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(DEADLINE_S)
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


@contextmanager
def starting(
    engine_dir: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server that may not be ready yet, on a free port."""
    arguments = ["--engine-dir", str(engine_dir), "--port", "0", *options]
    server = ServerProcess(arguments, environment)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def serving(
    engine_dir: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    with starting(engine_dir, *options, environment=environment) as server:
        server.wait_ready()
        yield server


@contextmanager
def client_of(server: ServerProcess, **options: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S, **options) as client:
        yield client


def read_events(response: httpx.Response) -> Iterator[str]:
    """The data of each event of a stream, as it comes."""
    for line in response.iter_lines():
        if line:
            assert line.startswith("data: "), line
            yield line.removeprefix("data: ")


def raw_request(fields: Mapping[str, object], request_id: str) -> bytes:
    """A completion request as it goes over the wire."""
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
