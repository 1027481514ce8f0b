"""How a server's log looks, decided in one place: plain lines on stderr, each with its request.

Whoever logs while an HTTP request is handled needs to do nothing for the request's id to be there.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

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


def configure(level: str) -> None:
    """Send everything from `level` up to stderr; libraries' own handlers are replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RequestFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # uvicorn says at INFO what our own lines say already.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))
