"""How a server's log looks, decided in one place: plain lines on stderr, each with its request.

Whoever logs while an HTTP request is handled needs to do nothing for the request's id to be there.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

LINE_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)


class RequestFormatter(logging.Formatter):
    """Ends each line that belongs to a request with the request's id."""

    def __init__(self) -> None:
        super().__init__(LINE_FORMAT, TIME_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        request_id = current_request_id.get()
        return line if request_id is None else f"{line} request_id={request_id}"


class _OurHandler(logging.StreamHandler[TextIO]):
    """Marks the handler that `configure` may replace; those of others are theirs."""


def configure(level: str) -> None:
    """Send everything from `level` up to stderr, once, however often this is called."""
    handler = _OurHandler(sys.stderr)
    handler.setFormatter(RequestFormatter())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _OurHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # uvicorn says at INFO what our own lines say already.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))
