"""What became of one HTTP request: filled in by those who handle it, read when it has ended.

It travels in the ASGI scope, so that middleware and handlers share it without knowing each other.
The log line, the metrics and the trace of a request are made of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Scope

from deepinfer.generation import Usage

if TYPE_CHECKING:
    from deepinfer.server.limits import Allowance

RECORD_KEY = "deepinfer.record"
DIRECT_SEND_KEY = "deepinfer.send"  # the `send` below all middleware of ours


@dataclass(slots=True)
class RequestRecord:
    """Moments are those of the monotonic clock."""

    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    started_at_unix_ns: int = field(default_factory=time.time_ns)
    key_name: str = ""  # of the key that the request came with
    allowance: Allowance | None = None  # of that key; None: nothing is counted
    status: int | None = None
    is_complete: bool = False  # the last byte of the response has been handed over
    is_disconnected: bool = False
    is_stream: bool = False
    model: str | None = None  # that generated, by the name that answers say
    submitted_at: float | None = None
    admitted_at: float | None = None  # to the engine's batch, from its queue
    first_token_at: float | None = None
    last_token_at: float | None = None
    usage: Usage | None = None
    finish_reasons: Sequence[str] = ()
    error_code: str | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def queue_s(self) -> float | None:
        if self.submitted_at is None or self.admitted_at is None:
            return None
        return self.admitted_at - self.submitted_at

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.started_at

    def note_admission(self) -> None:
        self.admitted_at = time.monotonic()

    def note_tokens(self, now: float) -> None:
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now

    def unix_ns(self, moment: float) -> int:
        """A moment of this request as the calendar has it, whatever was done to its clock since."""
        return self.started_at_unix_ns + round((moment - self.started_at) * 1e9)


def record_of(scope: Scope) -> RequestRecord:
    record = scope[RECORD_KEY]
    assert isinstance(record, RequestRecord)
    return record
