"""An event loop in a thread of its own that reads every stream of TensorRT-LLM.

The library decides by the calling thread's event loop how an output can be read, and offers many
outputs at once to an event loop only. The engine process steps and does not loop, so the loop lives
here, and whoever steps takes what has come in. It knows no sampling and no engine.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deepinfer.backends.base import BackendFault
from deepinfer.backends.tensorrt_errors import grammar_fault, last_line
from deepinfer.backends.tensorrt_stream import TokenStream, merge_chunks
from deepinfer.errors import InternalError
from deepinfer.generation import FinishReason, TokenChunk

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0  # for the loop to run one short function


@dataclass
class _Stream:
    """A running sequence: what it has emitted, and the library's handle to it."""

    tokens: TokenStream
    output: Any
    is_aborted: bool = False


@dataclass
class StreamReader:
    """Starts, reads and aborts sequences. Its methods are for one thread, not the loop's.

    Chunks of one turn of the loop are handed over together: the library wakes all sequences of an
    iteration in one turn.
    """

    request_error: Any  # the library's exception for a fault of one request
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _num_ending: int = 0  # aborted and not ended yet
    _arrived: list[TokenChunk] = field(default_factory=list)  # in this turn of the loop
    _ready: list[TokenChunk] = field(default_factory=list)
    _fault: BaseException | None = None
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tensorrt-llm-reader", daemon=True
        )
        self._thread.start()

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def start(self, tokens: TokenStream, start: Callable[[], Any]) -> None:
        """Submit a request and read what comes. Raises InternalError when it is not taken."""
        try:
            self._call(self._start, tokens, start)
        except Exception as error:
            raise InternalError(
                f"the engine could not take the request: {last_line(error)}"
            ) from error

    def abort(self, request_id: str) -> None:
        """Forget a request, and tell the library. An unknown id is not an error."""
        if request_id in self._streams:
            self._call(self._abort, request_id)

    def wait_for_aborted(self, timeout_s: float) -> None:
        """Wait until what was aborted has let go of its cache."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_ending or self._fault, timeout_s)

    def take(self, timeout_s: float) -> list[TokenChunk]:
        """What has come since the last call, one chunk a request. Raises BackendFault."""
        with self._changed:
            if self._streams:
                self._changed.wait_for(lambda: self._ready or self._fault, timeout_s)
            if self._fault is not None:
                raise BackendFault(f"TensorRT-LLM failed: {last_line(self._fault)}")
            chunks, self._ready = self._ready, []
            for chunk in chunks:
                if chunk.finish_reason is not None:
                    self._streams.pop(chunk.request_id, None)
        return merge_chunks(chunks)

    def close(self) -> None:
        for request_id in list(self._streams):
            self.abort(request_id)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # In the loop's thread

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run `function` inside the loop and wait for it; its exceptions are the caller's."""

        async def run() -> None:
            function(*arguments)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_TIMEOUT_S)

    def _start(self, tokens: TokenStream, start: Callable[[], Any]) -> None:
        stream = _Stream(tokens, start())
        self._streams[tokens.request.request_id] = stream
        task = asyncio.create_task(self._read(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _abort(self, request_id: str) -> None:
        with self._changed:
            stream = self._streams.pop(request_id)
            self._ready = [chunk for chunk in self._ready if chunk.request_id != request_id]
            self._arrived = [c for c in self._arrived if c.request_id != request_id]
            if not stream.tokens.is_ended:
                self._end_early(stream)

    def _end_early(self, stream: _Stream) -> None:
        with self._changed:
            self._num_ending += 1
        stream.is_aborted = True
        stream.output.abort()

    async def _read(self, stream: _Stream) -> None:
        tokens = stream.tokens
        try:
            async for output in stream.output:
                if stream.is_aborted:
                    continue  # until the library says that it has ended
                sequence = output.outputs[0]
                chunk = tokens.advance(
                    sequence.token_ids,
                    sequence.finish_reason,
                    sequence.stop_reason,
                    sequence.logprobs if tokens.has_log_probs else (),
                )
                if chunk is not None:
                    self._deliver(chunk)
                if tokens.is_ended and sequence.finish_reason is None:
                    self._end_early(stream)  # on a token that the library was not told of
        except self.request_error as error:
            self._fail(stream, error)
        except Exception as error:
            logger.exception("request %s: the executor failed", tokens.request.request_id)
            with self._changed:
                self._fault = error
                self._changed.notify_all()
        finally:
            if stream.is_aborted:
                with self._changed:
                    self._num_ending -= 1
                    self._changed.notify_all()

    def _fail(self, stream: _Stream, error: Exception) -> None:
        if not stream.is_aborted:
            stream.tokens.is_ended = True
            self._deliver(_failed_chunk(stream.tokens, error))

    def _deliver(self, chunk: TokenChunk) -> None:
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(chunk)

    def _hand_over(self) -> None:
        with self._changed:
            self._ready += self._arrived
            self._arrived = []
            self._changed.notify_all()


def _failed_chunk(tokens: TokenStream, error: Exception) -> TokenChunk:
    """A grammar that does not compile is the client's fault; the library says so before a token."""
    request, grammar = tokens.request, tokens.request.sampling.grammar
    fault = grammar_fault(error) if grammar is not None and not tokens.num_emitted else None
    if grammar is None or fault is None:
        return TokenChunk(
            request.request_id, finish_reason=FinishReason.ERROR, message=last_line(error)
        )
    return TokenChunk(
        request.request_id,
        finish_reason=FinishReason.ERROR,
        message=f"`{grammar.param}` is refused: {fault}",
        refused_param=grammar.param,
    )
