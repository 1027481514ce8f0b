"""Reads a stream of server-sent events as little as can be, so that the client is not the limit.

An event costs a search for the field that carries text; JSON is parsed once a stream, for the
usage. It takes bytes however they are cut, lines that end in LF or CRLF, and comments between
events. As every OpenAI-compatible server does, an event is expected to be one line of data.
"""

from __future__ import annotations

import re
from array import array
from collections import deque
from typing import Any

import msgspec

# What a field is that carries output, and is not empty. A quote within a text is escaped, so that
# no text can look like a field.
COMPLETION_OUTPUT = re.compile(rb'"text": ?"[^"]')
CHAT_OUTPUT = re.compile(rb'"(?:content|reasoning_content|reasoning|arguments)": ?"[^"]')
USAGE_MARK = b'"completion_tokens"'
ERROR_MARK = b'"error"'
NUM_KEPT_LINES = 4  # the usage is in the last event, or before a finish and `[DONE]`
MAX_LINE_BYTES = 16 * 2**20


class EventReader:
    """What has come of one stream so far. Times are the caller's, in seconds."""

    def __init__(self, output: re.Pattern[bytes]) -> None:
        self.output_at: array[float] = array("d")  # of each event that carried output
        self.is_done = False
        self._find_output = output.search
        self._tail = b""
        self._last: deque[bytes] = deque(maxlen=NUM_KEPT_LINES)
        self._error_line = b""

    def feed(self, data: bytes, at: float) -> None:
        """Take the next piece of the body. Raises ValueError when a line has no end."""
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
            else:
                self._note(line)

    def finish(self, at: float) -> None:
        """The body is over; a last line may have had no line break."""
        if self._tail:
            self.feed(b"\n", at)

    @property
    def usage(self) -> dict[str, int] | None:
        """The last that was said, which is at the end of a stream or nowhere."""
        lines = (line for line in reversed(self._last) if USAGE_MARK in line)
        usages = (read_usage(line[len(b"data:") :]) for line in lines)
        return next((usage for usage in usages if usage is not None), None)

    @property
    def error_code(self) -> str | None:
        """Of an error that came within the stream."""
        if not self._error_line:
            return None
        return read_error_code(self._error_line[len(b"data:") :])

    def _note(self, line: bytes) -> None:
        """An event without output: an error, the end, or nothing of interest."""
        if ERROR_MARK in line:
            self._error_line = line
        elif line.startswith((b"data: [DONE]", b"data:[DONE]")):
            self.is_done = True


def read_usage(body: bytes) -> dict[str, int] | None:
    """`usage` of an answer or an event, its numbers only; None when there is none."""
    usage = _member(body, "usage")
    if not isinstance(usage, dict):
        return None
    return {key: value for key, value in usage.items() if isinstance(value, int)}


def read_error_code(body: bytes) -> str | None:
    """What an error calls itself, as `code` or `type`; None when there is no error."""
    error = _member(body, "error")
    if isinstance(error, dict):
        return str(error.get("code") or error.get("type") or "unnamed")
    return "unnamed" if error else None


def read_error_message(body: bytes) -> str:
    """The sentence of an error for people, or what there is of it."""
    error = _member(body, "error")
    said = error.get("message") if isinstance(error, dict) else error or _member(body, "message")
    return " ".join(str(said or body[:200].decode(errors="replace")).split())


def _member(body: bytes, key: str) -> Any:
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return document.get(key) if isinstance(document, dict) else None
