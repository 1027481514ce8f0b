"""How a server's log looks, decided in one place: lines on stderr, each with its request.

What others say in a message, a field's name or an error's text, cannot end a line or control a
terminal. Whoever logs while an HTTP request is handled needs to do nothing for the request's id to
be there.
A line is text, or one JSON object; whoever has values worth a key of their own hands them over as
`extra=with_fields(...)`, which changes nothing about the text.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, TextIO

from deepinfer.validation import escape_controls

LogFormat = Literal["text", "json"]

LINE_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
FIELDS = "deepinfer_fields"  # of a log record, where no name of the logging module can be

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)


def with_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """What to log as `extra`, so that a JSON line has these keys beside its own."""
    return {FIELDS: fields}


class RequestFormatter(logging.Formatter):
    """Ends each line that belongs to a request with the request's id."""

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT, TIME_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = escape_controls(super().formatMessage(record))
        request_id = current_request_id.get()
        return line if request_id is None else f"{line} request_id={request_id}"

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        """Indented, so that no line of it looks like one of the log."""
        text = escape_controls(super().formatException(ei), keep="\n")
        return textwrap.indent(text, "  ")


class JsonFormatter(logging.Formatter):
    """One object a line; a traceback is a string within it."""

    def format(self, record: logging.LogRecord) -> str:
        own: dict[str, object] = {
            "time": _format_utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = current_request_id.get()
        if request_id is not None:
            own["request_id"] = request_id
        if record.exc_info:
            own["exception"] = self.formatException(record.exc_info)
        # A field may not replace what every line has.
        return json.dumps({**own, **getattr(record, FIELDS, {}), **own}, default=str)


class _OurHandler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure` may replace; those of others are theirs."""


def configure(level: str, format: LogFormat = "text") -> None:
    """Send everything from `level` up to stderr, once, however often this is called."""
    handler = _OurHandler(sys.stderr)
    formatter = JsonFormatter if format == "json" else RequestFormatter
    handler.setFormatter(formatter())
    root = logging.getLogger()
    for old in _our_handlers():
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # uvicorn says at INFO what our own lines say already.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def active_format() -> LogFormat:
    """The format that `configure` has set, for a process that is to log alike."""
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in _our_handlers())
    return "json" if is_json else "text"


def _our_handlers() -> list[_OurHandler]:
    return [old for old in logging.getLogger().handlers if isinstance(old, _OurHandler)]


def _format_utc(created: float) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
    return f"{seconds}.{int(created % 1 * 1000):03d}Z"
