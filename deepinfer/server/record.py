"""What became of one HTTP request: filled in by those who handle it, read for its log line.

It travels in the ASGI scope, so that middleware and handlers share it without knowing each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import Scope

from deepinfer.generation import Usage

RECORD_KEY = "deepinfer.record"


@dataclass(slots=True)
class RequestRecord:
    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    status: int | None = None
    is_complete: bool = False  # the last byte of the response has been handed over
    is_disconnected: bool = False
    time_to_first_token_s: float | None = None
    usage: Usage | None = None
    finish_reasons: Sequence[str] = ()
    error_code: str | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at


def record_of(scope: Scope) -> RequestRecord:
    record = scope[RECORD_KEY]
    assert isinstance(record, RequestRecord)
    return record
