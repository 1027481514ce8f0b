"""The benchmark's HTTP client: requests to an OpenAI-compatible server, and how each one ended.

It parses as little as possible, so that the client is not the limit: httptools splits HTTP, an
event costs one search for the field that carries text, and JSON is parsed once per stream.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from deepinfer import __version__
from deepinfer.errors import ConfigError

Route = Literal["completions", "chat"]
PATHS: dict[Route, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
PORTS = {"http": 80, "https": 443}

# A field that carries output and is not empty. A quote within a text is escaped, so no text can
# look like a field.
COMPLETION_OUTPUT = re.compile(rb'"text": ?"[^"]')
CHAT_OUTPUT = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments)": ?"[^"]')
USAGE_MARK = b'"completion_tokens"'
ERROR_MARK = b'"error"'
NUM_KEPT_LINES = 4  # the usage is in the last event, or before a finish reason and `[DONE]`
MAX_LINE_BYTES = 16 * 2**20

CountedBy = Literal["usage", "events", "nothing"]


class Prompt(msgspec.Struct, frozen=True):
    """The text or token ids of one request, and the maximum length of its answer."""

    content: str | tuple[int, ...]
    max_tokens: int


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The server to measure and how to ask it. It holds the API key: never print or store it."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    base_path: str = ""
    api_key: str | None = None
    model: str = ""
    route: Route = "completions"
    is_streaming: bool = True
    with_usage: bool = True  # request the usage at the end of a stream
    ignores_eos: bool = False
    extra: dict[str, Any] = {}  # fields to add to every request body

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base_path}"

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self.scheme == "https" else None

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Greedy, so that two runs request the same work; `extra` overrides every other field."""
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": prompt.max_tokens,
            "temperature": 0,
            "stream": self.is_streaming,
        }
        if self.route == "chat":
            fields["messages"] = [{"role": "user", "content": prompt.content}]
        else:
            fields["prompt"] = prompt.content
        if self.is_streaming and self.with_usage:
            fields["stream_options"] = {"include_usage": True}
        if self.ignores_eos:
            fields["ignore_eos"] = True
        return fields | self.extra

    def request(self, prompt: Prompt) -> bytes:
        return self.render("POST", PATHS[self.route], self.body(prompt))

    def render(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> bytes:
        """A whole HTTP/1.1 request."""
        body = b"" if fields is None else msgspec.json.encode(fields)
        default = self.port == PORTS[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.base_path}{path} HTTP/1.1",
            f"Host: {host}" if default else f"Host: {host}:{self.port}",
            f"User-Agent: deepinfer-bench/{__version__}",
            "Accept: text/event-stream, application/json",
            f"Content-Length: {len(body)}",
        ]
        if body:
            lines.append("Content-Type: application/json")
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def parse_url(url: str) -> Target:
    """The target at a base URL, with or without `/v1`. Raises ConfigError."""
    hint = "give the server's address, such as `http://127.0.0.1:8000`"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"`{url}` is not a URL", hint=hint) from None
    if parts.scheme not in PORTS or not parts.hostname:
        raise ConfigError(f"`{url}` is not a URL of http or https", hint=hint)
    if parts.query or parts.fragment or parts.username:
        raise ConfigError(f"`{url}` holds more than an address", hint=hint)
    return Target(
        scheme="https" if parts.scheme == "https" else "http",
        host=parts.hostname,
        port=port or PORTS[parts.scheme],
        base_path=parts.path.rstrip("/").removesuffix("/v1").rstrip("/"),
    )


class RequestResult(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the client saw it; times are seconds on one clock.

    `started_at` is when the request was due, which may be before it was sent. `output_at` is the
    time of each event with output, as the bytes of an array of doubles: a run may have millions.
    """

    started_at: float
    ended_at: float
    output_at: bytes = b""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    max_tokens: int = 0  # that the request asked for
    counted_by: CountedBy = "nothing"
    error: str | None = None  # a short name; None for a complete answer

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def is_short(self) -> bool:
        """Whether the answer ended before the length that was asked for."""
        return self.output_tokens is not None and self.output_tokens < self.max_tokens

    @property
    def times(self) -> array[float]:
        times: array[float] = array("d")
        times.frombytes(self.output_at)
        return times

    @property
    def num_events(self) -> int:
        return len(self.output_at) // array("d").itemsize

    @property
    def latency_s(self) -> float:
        return self.ended_at - self.started_at

    @property
    def ttft_s(self) -> float | None:
        """Time to the first event with output; None when the answer was not streamed."""
        times = self.times
        return times[0] - self.started_at if times else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive events with output."""
        times = self.times
        return [times[i] - times[i - 1] for i in range(1, len(times))]

    @property
    def mean_itl_s(self) -> float | None:
        """Mean seconds per token after the first; None for fewer than two tokens."""
        times, count = self.times, self.output_tokens or 0
        return (times[-1] - times[0]) / (count - 1) if len(times) > 1 and count > 1 else None


class EventReader:
    """Reads one stream of server-sent events. Times are the caller's, in seconds.

    Takes bytes however they are split, lines that end in LF or CRLF, and comments. An event must be
    one line of data, as it is on every OpenAI-compatible server.
    """

    def __init__(self, output: re.Pattern[bytes]) -> None:
        self.output_at: array[float] = array("d")  # of each event that carried output
        self.is_done = False
        self._find_output = output.search
        self._tail = b""
        self._last: deque[bytes] = deque(maxlen=NUM_KEPT_LINES)
        self._error_line = b""

    def feed(self, data: bytes, at: float) -> None:
        """Read the next piece of the body. Raises ValueError for a line above MAX_LINE_BYTES."""
        lines = (self._tail + data if self._tail else data).split(b"\n")
        self._tail = lines.pop()
        if self._tail and len(self._tail) > MAX_LINE_BYTES:
            raise ValueError("an event has no end")
        for line in lines:
            if line[:5] != b"data:":
                continue
            self._last.append(line)
            if self._find_output(line):
                self.output_at.append(at)
            elif ERROR_MARK in line:
                self._error_line = line
            elif line.startswith((b"data: [DONE]", b"data:[DONE]")):
                self.is_done = True

    def finish(self, at: float) -> None:
        """Read a last line without a line break."""
        if self._tail:
            self.feed(b"\n", at)

    @property
    def usage(self) -> dict[str, int] | None:
        """The last usage in the stream; servers send it at the end or not at all."""
        lines = (line for line in reversed(self._last) if USAGE_MARK in line)
        usages = (read_usage(line[len(b"data:") :]) for line in lines)
        return next((usage for usage in usages if usage is not None), None)

    @property
    def error_code(self) -> str | None:
        """The code of an error event; None without one."""
        if not self._error_line:
            return None
        return read_error_code(self._error_line[len(b"data:") :])


def read_usage(body: bytes) -> dict[str, int] | None:
    """The integers in `usage` of a response body or an event; None when it has no usage."""
    usage = _member(body, "usage")
    if not isinstance(usage, dict):
        return None
    return {key: value for key, value in usage.items() if isinstance(value, int)}


def read_error_code(body: bytes) -> str | None:
    """The `code` or `type` of an error body; None when it is not an error."""
    error = _member(body, "error")
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "unnamed")
    return "unnamed" if error else None


def read_error_message(body: bytes) -> str:
    """The message of an error body, or the start of the body."""
    error = _member(body, "error")
    message = error.get("message") if isinstance(error, dict) else error or _member(body, "message")
    return " ".join(str(message or body[:200].decode(errors="replace")).split())


def _member(body: bytes, key: str) -> Any:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return document.get(key) if isinstance(document, dict) else None


# Called with the status, a piece of the body, and its arrival time by time.perf_counter().
OnBody = Callable[[int, bytes, float], None]


class ConnectionClosed(Exception):
    """The server closed the connection, or broke the protocol, before the response was complete."""

    def __init__(self, code: str, *, has_status: bool) -> None:
        super().__init__(code)
        self.code = code
        self.has_status = has_status  # a part of the response had arrived


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection for one request at a time, reusable while `is_open`."""

    def __init__(self) -> None:
        self.is_open = False
        self.num_exchanges = 0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._has_length = False
        self._keeps_alive = True
        self._at = 0.0
        self._on_body: OnBody | None = None
        self._response: asyncio.Future[int] | None = None

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None) -> HttpConnection:
        """Raises OSError when nothing listens there."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, port, ssl=tls)
        return connection

    async def exchange(self, request: bytes, on_body: OnBody) -> int:
        """Send `request`, wait for the end of its response and return the status.

        Raises ConnectionClosed. Cancelling it closes the connection.
        """
        assert self._transport is not None and self._response is None
        self._response = asyncio.get_running_loop().create_future()
        self._status, self._has_length, self._on_body = 0, False, on_body
        self._transport.write(request)
        try:
            status = await self._response
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._response = self._on_body = None
        self.num_exchanges += 1
        return status

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, only alike.
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError):
            self._fail("broken_http")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        # Without a length and without chunks, the end of the connection is the end of the body.
        if error is None and self._status and not self._has_length:
            self.on_message_complete()
        else:
            self._fail("closed_mid_answer" if self._status else "closed_before_answer")

    # Called by httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None:
            self._on_body(self._status, data, self._at)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._response is not None and not self._response.done():
            self._response.set_result(self._status)

    def _fail(self, code: str) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_exception(ConnectionClosed(code, has_status=bool(self._status)))


class ResponseReader:
    """Reads one response: the events of a stream with status 200, otherwise the whole body."""

    def __init__(self, target: Target) -> None:
        self.events = EventReader(
            COMPLETION_OUTPUT if target.route == "completions" else CHAT_OUTPUT
        )
        self.status = 0
        self._is_streaming = target.is_streaming
        self._pieces: list[bytes] = []

    def feed(self, status: int, data: bytes, at: float) -> None:
        self.status = status
        if status == 200 and self._is_streaming:
            self.events.feed(data, at)
        else:
            self._pieces.append(data)

    @property
    def body(self) -> bytes:
        return b"".join(self._pieces)

    @property
    def usage(self) -> dict[str, int]:
        return (self.events.usage if self._is_streaming else read_usage(self.body)) or {}

    @property
    def error(self) -> str | None:
        """A short name for what is wrong with a response that HTTP delivered completely."""
        if self.status != 200:
            code = read_error_code(self.body)
            return f"http_{self.status}" + (f" {code}" if code else "")
        if not self._is_streaming:
            code = read_error_code(self.body)
            return f"answer {code}" if code else None
        if code := self.events.error_code:
            return f"stream {code}"
        is_empty = not self.events.is_done and not self.events.output_at
        return "empty_stream" if is_empty else None


class BenchClient:
    """Sends prompts to one target from one event loop, and reuses idle connections."""

    def __init__(self, target: Target, *, timeout_s: float) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._tls = target.tls
        self._idle: list[HttpConnection] = []

    async def send(self, prompt: Prompt, *, due_at: float | None = None) -> RequestResult:
        """Send `prompt` and wait for the whole response. Errors are results, not exceptions."""
        request = self.target.request(prompt)
        now = time.perf_counter()
        # The loop's timer may fire half a millisecond early, which must not shorten a latency.
        started_at = now if due_at is None else min(due_at, now)
        response = ResponseReader(self.target)
        error = await self._exchange(request, response)
        ended_at = time.perf_counter()
        response.events.finish(ended_at)
        usage, output_at = response.usage, response.events.output_at
        output_tokens = usage.get("completion_tokens")
        counted_by: CountedBy = "usage"
        if output_tokens is None:
            counted_by = "events" if output_at else "nothing"
            output_tokens = len(output_at) if output_at else None
        return RequestResult(
            started_at=started_at,
            ended_at=ended_at,
            output_at=output_at.tobytes(),
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=output_tokens,
            max_tokens=prompt.max_tokens,
            counted_by=counted_by,
            error=error or response.error,
        )

    async def fetch(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request. Raises OSError, ConnectionClosed or TimeoutError."""
        pieces: list[bytes] = []
        async with asyncio.timeout(self._timeout_s):
            connection = await HttpConnection.open(self.target.host, self.target.port, self._tls)
            try:
                status = await connection.exchange(
                    self.target.render(method, path, fields),
                    lambda _status, data, _at: pieces.append(data),
                )
            finally:
                connection.close()
        return status, b"".join(pieces)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, response: ResponseReader) -> str | None:
        """A short name for a failure of the connection; None without one."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response.status = await self._send(request, response)
        except TimeoutError:
            return "timeout"
        except ConnectionClosed as closed:
            return closed.code
        except OSError as failure:
            return (
                "connection_refused" if isinstance(failure, ConnectionRefusedError) else "network"
            )
        return None

    async def _send(self, request: bytes, response: ResponseReader) -> int:
        connection = await self._acquire()
        was_used = connection.num_exchanges > 0
        try:
            status = await connection.exchange(request, response.feed)
        except ConnectionClosed as closed:
            if not was_used or closed.has_status:
                raise
            # The server closed an idle connection just before it was reused.
            connection = await self._open()
            status = await connection.exchange(request, response.feed)
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return status

    async def _acquire(self) -> HttpConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await self._open()

    async def _open(self) -> HttpConnection:
        return await HttpConnection.open(self.target.host, self.target.port, self._tls)
