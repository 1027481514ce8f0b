"""What the parts of one server share; it is passed to them, and nothing of it is global."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepinfer.config import ServeConfig
from deepinfer.device import Gpu
from deepinfer.errors import ShuttingDown
from deepinfer.server.engines import EngineCatalog
from deepinfer.server.keys import KeyRing
from deepinfer.server.limits import RateLimiter
from deepinfer.server.meter import HttpMeter
from deepinfer.server.responses_api.store import ResponseStore

if TYPE_CHECKING:
    # It needs an extra, and a server without traces does without.
    from deepinfer.server.tracing import RequestTracer

DRAIN_RETRY_S = 5


@dataclass
class ServerState:
    config: ServeConfig
    engines: EngineCatalog
    read_gpus: Callable[[], Sequence[Gpu]]  # asks the driver: call it in a thread
    gpus: Sequence[Gpu]  # as they were when the server started
    keys: KeyRing = field(default_factory=KeyRing)
    limiter: RateLimiter = field(default_factory=RateLimiter)
    is_draining: bool = False
    meter: HttpMeter = field(default_factory=HttpMeter)
    responses: ResponseStore = field(default_factory=ResponseStore)
    tracer: RequestTracer | None = None

    def check_open(self) -> None:
        """Raise ShuttingDown when no more work is taken."""
        if self.is_draining:
            raise ShuttingDown("The server is shutting down", retry_after_s=DRAIN_RETRY_S)
