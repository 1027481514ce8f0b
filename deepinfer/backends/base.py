"""What every backend promises, whatever library is behind it.

1. Token ids in, token ids out; chunks of one request come in order, and exactly the last has a
   finish reason. When that is STOP, the last token id is the EOS or stop token.
2. `cancel` frees the request's part of the KV cache by the end of the next `step`.
3. A fault of one request ends that request only, with a chunk whose reason is ERROR, whatever the
   library raised. When the device or the library is gone, `step` raises BackendFault, also where
   the library says nothing of it; the host then exits and is started again. A backend that can get
   over it ends what it held with INTERRUPTED instead, to be added again.
4. Idle costs no CPU: a backend works only inside `load`, `add` and `step`.
5. A parameter that the library cannot honour is refused by `check`, by name, before the request is
   queued. Nothing is dropped or renamed.
6. Capacity is never exceeded by the host: it adds a request only when its worst case fits.

`tests/backends/` holds every backend to these promises. A backend knows no text, no queue and no
socket, and is used by one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from deepinfer.engine import Capacity
from deepinfer.errors import DeepInferError
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk


class BackendFault(DeepInferError):
    """The library failed as a whole: no request that it holds can be trusted any more."""


ReportPhase = Callable[[str, int], None]
"""Called with the name of the phase that starts and the percentage of the loading done so far."""


class RequestGate(Protocol):
    """Holds requests back until it is known whether they may start. They take no slot meanwhile."""

    def has_passed(self, request: GenerationRequest) -> bool: ...

    def hold(self, request: GenerationRequest, tenant: str, *, is_admitted: bool) -> None:
        """Keep a request until `release` gives it back; keys, by their names, take turns."""
        ...

    def drop(self, request_id: str) -> None:
        """Forget a request; an unknown id is not an error."""
        ...

    def release(
        self, timeout_s: float, *, is_admitted: bool
    ) -> Iterator[tuple[GenerationRequest, str | None]]:
        """The held requests that are decided, and what is wrong with each if anything is.

        Waits up to `timeout_s` for a decision while any is held.
        """
        ...


def refuse_grammar(request: GenerationRequest, fault: str) -> TokenChunk:
    """The end of a request whose grammar has a fault."""
    grammar = request.sampling.grammar
    assert grammar is not None
    return TokenChunk(
        request_id=request.request_id,
        finish_reason=FinishReason.ERROR,
        message=f"`{grammar.param}` is refused: {fault}",
        refused_param=grammar.param,
    )


class Backend(Protocol):
    @property
    def capacity(self) -> Capacity: ...

    @property
    def gate(self) -> RequestGate | None:
        """What a request must pass before it is added, or `add` sees to that; None for nothing."""
        ...

    @property
    def num_used_blocks(self) -> int:
        """KV cache blocks that requests hold now: as the library counts them where it can be asked
        at no cost, else by the lengths of their sequences."""
        ...

    def check(self, request: GenerationRequest) -> None:
        """Raise UnsupportedParameter for what this backend cannot honour."""
        ...

    def add(self, request: GenerationRequest) -> None:
        """Take a checked request into the running batch. Raises RequestError for a bad one."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; no chunk of it comes any more. An unknown id is not an error."""
        ...

    def step(self) -> list[TokenChunk]:
        """Advance the running batch once and return the new tokens, at most one chunk a request.

        Blocks for about one iteration of the model. Raises BackendFault.
        """
        ...

    def close(self) -> None:
        """Give back the device."""
        ...
