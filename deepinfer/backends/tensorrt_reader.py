"""An event loop in a thread of its own that reads every stream of TensorRT-LLM.

The library decides by the calling thread's event loop how an output can be read, and offers many
outputs at once to an event loop only. The engine process steps and does not loop, so the loop lives
here, and whoever steps takes what has come in. It knows no sampling and no engine.

An exception ends the request whose output it came from, and nothing else, unless it says that the
device or the executor is gone. That is looked for in silence too: an executor that dies may leave
every output unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deepinfer.backends.base import BackendFault
from deepinfer.backends.tensorrt_errors import (
    describe,
    ends_batch_on_grammar,
    grammar_fault,
    is_dead_engine,
)
from deepinfer.backends.tensorrt_stream import TokenStream, merge_chunks
from deepinfer.errors import InternalError
from deepinfer.generation import FinishReason, Grammar, TokenChunk

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 30.0  # for the loop to run one short function
HEALTH_INTERVAL_S = 1.0  # of silence, before the library is asked whether its executor lives
# While requests run: an iteration takes milliseconds, a long prompt or a large grammar seconds.
MAX_SILENCE_S = 120.0
MAX_FAILED_READS = 100  # of one output after its abort: one for each token still under way


@dataclass(eq=False)
class _Stream:
    """A running sequence: what it has emitted, and the library's handle to it."""

    tokens: TokenStream
    output: Any
    is_aborted: bool = False
    num_failed_reads: int = 0


@dataclass(frozen=True)
class _EndedBatch:
    """The requests that one error about a grammar has ended, and those that it may be about."""

    text: str
    request_ids: frozenset[str]
    suspects: frozenset[str]


@dataclass
class StreamReader:
    """Starts, reads and aborts sequences. Its methods are for one thread, not the loop's.

    Chunks of one turn of the loop are handed over together: the library wakes all sequences of an
    iteration in one turn.
    """

    request_error: type[Exception]  # the library's, for a request that it has ended
    executor_error: type[Exception]  # the library's, for an executor that has failed
    find_executor_fault: Callable[[], str | None]  # None while the executor lives
    max_silence_s: float = MAX_SILENCE_S
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _ending: set[_Stream] = field(default_factory=set)  # aborted, and not let go by the library yet
    _arrived: list[TokenChunk] = field(default_factory=list)  # in this turn of the loop
    _ready: list[TokenChunk] = field(default_factory=list)
    _fault: str | None = None
    _heard_at: float = 0.0  # when the last chunk came, or a request was sent into an idle engine
    _asked_at: float = 0.0  # when the library was last asked for its executor's health
    _taken_at: float = 0.0
    _ended_batch: _EndedBatch | None = None
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

    @property
    def sequence_lens(self) -> list[int]:
        """Tokens of each running sequence, its prompt's included."""
        return [stream.tokens.num_total for stream in self._streams.values()]

    def start(self, tokens: TokenStream, start: Callable[[], Any]) -> None:
        """Submit a request and read what comes. Raises InternalError when it is not taken.

        When it is not taken since the executor is gone, the next `take` raises instead.
        """
        if not self._streams:
            self._heard_at = self._taken_at = time.monotonic()
        try:
            self._call(self._start, tokens, start)
        except Exception as error:
            if (fault := self._find_fault(error)) is not None:
                self._note_fault(fault, error)
                return
            raise InternalError(
                f"the engine could not take the request: {describe(error)}"
            ) from error

    def abort(self, request_id: str) -> None:
        """Forget a request, and tell the library. An unknown id is not an error."""
        if request_id in self._streams:
            self._call(self._abort, request_id)

    def wait_for_aborted(self, timeout_s: float) -> None:
        """Wait until what was aborted has let go of its cache."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._ending or self._fault, timeout_s):
                logger.warning("%d aborted requests do not end", len(self._ending))
                self._ending.clear()  # once, and not in each step from now on

    def take(self, timeout_s: float) -> list[TokenChunk]:
        """What has come since the last call, one chunk a request. Raises BackendFault."""
        with self._changed:
            if self._streams:
                self._changed.wait_for(lambda: self._ready or self._fault, timeout_s)
                if not self._ready and self._fault is None:
                    self._check_silence(time.monotonic())
            if self._fault is not None:
                raise BackendFault(f"TensorRT-LLM failed: {self._fault}")
            chunks, self._ready = self._ready, []
            for chunk in chunks:
                if chunk.finish_reason is not None:
                    self._streams.pop(chunk.request_id, None)
        self._taken_at = time.monotonic()
        if chunks:
            self._heard_at = self._taken_at
        return merge_chunks(chunks)

    def close(self) -> None:
        future = asyncio.run_coroutine_threadsafe(self._end_all(), self._loop)
        with contextlib.suppress(TimeoutError):  # what blocks the loop ends with the process
            future.result(CALL_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _check_silence(self, now: float) -> None:
        """Note a fault when nothing comes since the executor is gone, or hangs."""
        if now - self._taken_at > HEALTH_INTERVAL_S:
            self._heard_at = now  # nobody has listened: this process was stopped for a while
        silence_s = now - self._heard_at
        if silence_s > self.max_silence_s:
            self._fault = (
                f"its executor has said nothing for {silence_s:.0f} s while "
                f"{len(self._streams)} requests ran"
            )
        elif silence_s > HEALTH_INTERVAL_S and now - self._asked_at > HEALTH_INTERVAL_S:
            self._asked_at = now
            self._fault = self.find_executor_fault()

    def _find_fault(self, error: Exception) -> str | None:
        """What an exception says of the device or the executor; None when one request failed."""
        if isinstance(error, self.executor_error) or is_dead_engine(error):
            return describe(error)
        # An exception of its threads and processes is raised by whichever output is read next, and
        # the executor has been shut down before that.
        return None if isinstance(error, self.request_error) else self.find_executor_fault()

    def _note_fault(self, fault: str, error: Exception | None = None) -> None:
        with self._changed:
            if self._fault is None:
                logger.error("the executor is gone: %s", fault, exc_info=error)
                self._fault = fault
            self._changed.notify_all()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run `function` inside the loop and wait for it; its exceptions are the caller's."""

        async def run() -> None:
            function(*arguments)

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            future.result(CALL_TIMEOUT_S)
        except TimeoutError:
            if future.done():
                raise
            # The library shuts an executor down where it is read, and waits for its processes.
            self._note_fault(f"it has been busy for {CALL_TIMEOUT_S:g} s with one call")

    # In the loop's thread

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
        """Have the library end a sequence; `_read` goes on until it says that it has."""
        stream.is_aborted = True
        with self._changed:
            self._ending.add(stream)
        try:
            stream.output.abort()
        except Exception as error:
            request_id = stream.tokens.request.request_id
            logger.warning("request %s cannot be aborted: %s", request_id, describe(error))
            self._note_end(stream)
            if (fault := self._find_fault(error)) is not None:
                self._note_fault(fault, error)

    async def _end_all(self) -> None:
        for request_id in list(self._streams):
            self._abort(request_id)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: _Stream) -> None:
        is_running = True
        while is_running:
            try:
                await anext(stream.output)
                if not stream.is_aborted:
                    self._pass_on(stream)
            except StopAsyncIteration:
                is_running = False
            except Exception as error:
                is_running = self._outlive(stream, error)
        self._note_end(stream)

    def _pass_on(self, stream: _Stream) -> None:
        """Deliver what is new in a stream's output."""
        tokens, sequence = stream.tokens, stream.output.outputs[0]
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

    def _outlive(self, stream: _Stream, error: Exception) -> bool:
        """End what an exception in one output is about; whether that output has more to come."""
        if (fault := self._find_fault(error)) is not None:
            self._note_fault(fault, error)
            return False
        if not stream.is_aborted:
            if not isinstance(error, self.request_error):
                request_id = stream.tokens.request.request_id
                logger.warning("request %s: its output cannot be read", request_id, exc_info=error)
            stream.tokens.is_ended = True
            self._deliver(self._last_chunk(stream.tokens, error))
        if isinstance(error, self.request_error) or stream.output.finished:
            return False
        stream.num_failed_reads += 1
        if not stream.is_aborted:
            self._end_early(stream)
        return stream.num_failed_reads < MAX_FAILED_READS

    def _last_chunk(self, tokens: TokenStream, error: Exception) -> TokenChunk:
        """How a request ends with an exception that is not the end of the engine.

        A grammar that does not compile is its client's fault. The executor finds out in the middle
        of an iteration and ends all that runs: the others have been interrupted. Where several may
        be at fault they are interrupted too, and tried one at a time when they are added again.
        """
        request, grammar = tokens.request, tokens.request.sampling.grammar
        name = request.request_id
        if ends_batch_on_grammar(error) and self._suspects_of(name, str(error)) != {name}:
            return TokenChunk(name, finish_reason=FinishReason.INTERRUPTED)
        fault = grammar_fault(error) if _awaits_grammar(tokens) else None
        if grammar is None or fault is None:
            return TokenChunk(name, finish_reason=FinishReason.ERROR, message=describe(error))
        return refused_chunk(name, grammar, fault)

    def _suspects_of(self, request_id: str, text: str) -> frozenset[str]:
        """Whose grammar may have ended the batch: the same for each request that it ended."""
        batch = self._ended_batch
        if batch is None or batch.text != text or request_id not in batch.request_ids:
            streams = self._streams.items()
            suspects = {name for name, stream in streams if _awaits_grammar(stream.tokens)}
            batch = _EndedBatch(text, frozenset(self._streams), frozenset(suspects))
            self._ended_batch = batch
        return batch.suspects

    def _note_end(self, stream: _Stream) -> None:
        with self._changed:
            self._ending.discard(stream)
            self._changed.notify_all()

    def _deliver(self, chunk: TokenChunk) -> None:
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(chunk)

    def _hand_over(self) -> None:
        with self._changed:
            self._ready += self._arrived
            self._arrived = []
            self._changed.notify_all()


def refused_chunk(request_id: str, grammar: Grammar, fault: str) -> TokenChunk:
    """How a request ends whose grammar does not compile."""
    return TokenChunk(
        request_id,
        finish_reason=FinishReason.ERROR,
        message=f"`{grammar.param}` is refused: {fault}",
        refused_param=grammar.param,
    )


def _awaits_grammar(tokens: TokenStream) -> bool:
    """The library compiles a grammar before a request's first token."""
    return tokens.request.sampling.grammar is not None and not tokens.num_emitted
