"""The engine process: `python -m deepinfer.runtime.engine_process`.

It owns the queue, the admission, the backend and its step loop, in one thread: a backend may hold
the interpreter's lock for a whole step, so a second thread would only pretend to be responsive.
The loop reads messages, admits, steps, sends; with nothing to run it blocks in `select`.

It speaks token ids: no text, no JSON, no HTTP. It listens on a socket that its parent made, and
ends when the pipe from its parent closes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import selectors
import socket
import sys
import time
from pathlib import Path

import msgspec

from deepinfer import logs, precedence, process
from deepinfer.backends.base import Backend, BackendFault, refuse_grammar
from deepinfer.backends.loading import load_backend
from deepinfer.engine import EngineOptions, Load
from deepinfer.errors import (
    CommandError,
    DeepInferError,
    EngineLoading,
    InternalError,
    InvalidValue,
    RequestError,
)
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk
from deepinfer.manifest import EngineFolder, read_engine
from deepinfer.runtime import wire
from deepinfer.runtime.queue import AdmissionQueue
from deepinfer.serving_limits import with_max_seq_len

logger = logging.getLogger("deepinfer.runtime.engine_process")  # not "__main__", as it is run

# Clients that start together arrive some 0.5 ms apart. A step takes tens of milliseconds on a CPU
# and cannot be joined once it runs, so an idle engine waits for the next one this long, in all as
# long as the second figure.
GATHER_GAP_S = 0.001
MAX_GATHER_S = 0.01
# How often a backend is asked for its used blocks while nobody comes or goes.
LOAD_INTERVAL_S = 0.1
RECEIVE_BYTES = 1 << 20


class EngineProcess:
    """The loop that joins connections, queue and backend."""

    def __init__(self, listener: socket.socket, engine: EngineFolder, options: EngineOptions):
        self._engine = engine
        self._options = options
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, ApiConnection] = {}
        self._owners: dict[str, ApiConnection] = {}  # request id -> who asked for it
        self._cancelled: list[str] = []  # whose blocks are free after the next step
        self._ready: wire.Ready | None = None
        self._is_stopping = False
        self._num_chunks = 0  # that the backend has made, for anybody
        self._load_now = Load()
        self._load_ages_at = 0.0
        self._backend: Backend
        self._queue: AdmissionQueue

    def run(self) -> int:
        """Serve until the parent goes away. Returns the exit status of the process."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        try:
            self._load()
            self._serve()
        except CommandError as error:
            logger.error("%s", error.message)
            self._broadcast(wire.Failed(error.message, error.hint))
            return 1
        except Exception as error:
            logger.exception("the engine failed")
            message = error.message if isinstance(error, BackendFault) else describe(error)
            self._broadcast(wire.Failed(message))
            return 1
        self._backend.close()
        return 0

    def _load(self) -> None:
        started_at = time.monotonic()
        self._poll(timeout_s=0)
        self._backend = load_backend(self._engine, self._options, self._report)
        self._queue = AdmissionQueue(
            self._backend.capacity, self._options.max_waiting, self._options.max_waiting_tokens
        )
        load_s = time.monotonic() - started_at
        self._ready = wire.Ready(self._backend.capacity, load_s, os.getpid())
        self._broadcast(self._ready)

    def _serve(self) -> None:
        while not self._is_stopping:
            if self._is_idle:
                self._poll(timeout_s=None)
                self._gather()
            else:
                self._poll(timeout_s=0)
            self._release_held()
            self._admit()
            if not self._is_idle:
                self._step()
            self._report_step()

    def _gather(self) -> None:
        """Let requests that were sent together start together, in one step."""
        deadline = time.monotonic() + MAX_GATHER_S
        while self._queue.num_waiting and time.monotonic() < deadline:
            if not self._poll(GATHER_GAP_S):
                return

    @property
    def _is_idle(self) -> bool:
        return not (self._queue.num_admitted or self._queue.num_waiting or self._cancelled)

    def _report(self, phase: str, percent: int) -> None:
        logger.info("%s: %s", self._engine.manifest.name, phase)
        # Whoever connects while a library loads is told at the next phase.
        self._poll(timeout_s=0)
        self._broadcast(wire.Progress(phase, percent))

    def _broadcast(self, message: wire.FromEngine) -> None:
        for connection in self._connections.values():
            connection.send(message)

    # Reading

    def _poll(self, timeout_s: float | None) -> bool:
        """Attend to whoever has something to say; False when nobody had within `timeout_s`."""
        ready = self._selector.select(timeout_s)
        for key, events in ready:
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == sys.stdin.fileno():
                self._is_stopping = True
            else:
                self._handle_events(self._connections[key.fd], events)
        return bool(ready)

    def _accept(self) -> None:
        """Let in all that wait: while a library loads there is time for it at its phases only."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._add(ApiConnection(self._listener.accept()[0]))

    def _add(self, connection: ApiConnection) -> None:
        self._connections[connection.socket.fileno()] = connection
        self._selector.register(connection.socket, selectors.EVENT_READ)
        if self._ready is not None:
            connection.send(self._ready)

    def _handle_events(self, connection: ApiConnection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            connection.flush()
        if events & selectors.EVENT_READ:
            self._read(connection)
        if connection.socket.fileno() in self._connections:
            self._watch(connection)

    def _read(self, connection: ApiConnection) -> None:
        try:
            messages = connection.receive()
        except wire.WireError as error:
            logger.error("dropping a connection: %s", error.message)
            messages = None
        if messages is None:
            self._forget(connection)
            return
        for message in messages:
            match message:
                case wire.Submit():
                    self._submit(connection, message)
                case wire.Cancel():
                    self._cancel(connection, message.request_ids)
                case wire.Ping():
                    connection.send(wire.Pong(self._num_chunks))

    def _watch(self, connection: ApiConnection) -> None:
        """Wake up for writing only while there is something to write."""
        if connection.is_watched_for_writing != connection.has_outgoing:
            connection.is_watched_for_writing = connection.has_outgoing
            events = selectors.EVENT_READ | (
                selectors.EVENT_WRITE if connection.has_outgoing else 0
            )
            self._selector.modify(connection.socket, events)

    def _forget(self, connection: ApiConnection) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()
        self._cancel(
            connection, tuple(id_ for id_, owner in self._owners.items() if owner is connection)
        )

    # Requests

    def _submit(self, connection: ApiConnection, message: wire.Submit) -> None:
        requests = message.whole_requests
        ids = tuple(request.request_id for request in requests)
        try:
            if self._ready is None:
                raise EngineLoading("The engine is still loading", retry_after_s=1)
            if len(set(ids)) < len(ids) or not self._owners.keys().isdisjoint(ids):
                raise InternalError("a request id is already in flight")
            for request in requests:
                self._check(request)
            gate = self._backend.gate
            held = [r for r in requests if gate is not None and not gate.has_passed(r)]
            held_ids = {request.request_id for request in held}
            self._queue.put(
                requests,
                tenant=message.tenant,
                priority=message.priority,
                is_bounded=not message.is_resumed,
                is_held=lambda request: request.request_id in held_ids,
            )
            for request in held:
                assert gate is not None
                gate.hold(request, message.tenant, is_admitted=False)
        except Exception as failure:  # whatever a library raises here is about these requests
            if isinstance(failure, RequestError):
                error = failure
            else:
                logger.exception("requests %s cannot be judged", ", ".join(ids))
                error = InternalError("the engine could not judge the request")
            connection.send(
                wire.Rejected(ids, error.code, error.message, error.param, error.retry_after_s)
            )
            return
        self._owners.update(dict.fromkeys(ids, connection))

    def _check(self, request: GenerationRequest) -> None:
        """What would harm the other requests is refused here, whoever sent it."""
        tokens, limits = self._engine.manifest.tokens, self._engine.manifest.limits
        ids = request.prompt_token_ids
        if not ids or min(ids) < 0 or max(ids) >= tokens.vocab_size:
            raise InvalidValue(
                f"A prompt needs at least one token id, each from 0 to {tokens.vocab_size - 1:,}",
                param="prompt",
            )
        if request.max_total_len > limits.max_seq_len:
            raise InvalidValue(
                f"The prompt's {len(ids):,} tokens and max_tokens {request.sampling.max_tokens:,} "
                f"exceed the engine's {limits.max_seq_len:,}",
                param="max_tokens",
            )
        self._backend.check(request)

    def _cancel(self, connection: ApiConnection, request_ids: tuple[str, ...]) -> None:
        for request_id in request_ids:
            # No connection ends what another one asked for.
            if self._owners.get(request_id) is not connection:
                continue
            del self._owners[request_id]
            if self._queue.remove_waiting(request_id):
                if self._backend.gate is not None:
                    self._backend.gate.drop(request_id)
            else:
                self._backend.cancel(request_id)
                self._cancelled.append(request_id)

    def _release_held(self) -> None:
        """Give their turn to the requests that the backend has decided about, or end them."""
        if self._backend.gate is None:
            return
        for request, fault in self._backend.gate.release(0, is_admitted=False):
            if fault is None:
                self._queue.release_held(request.request_id)
            else:
                self._queue.remove_waiting(request.request_id)
                self._deliver(refuse_grammar(request, fault))

    def _admit(self) -> None:
        if not self._queue.num_waiting:
            return
        admitted = list(self._queue.admit())
        for connection in self._connections.values():
            ids = tuple(r.request_id for r in admitted if self._owners[r.request_id] is connection)
            if ids:
                # Before the step: should the step kill this process, it is known what it ran.
                connection.send(wire.Admitted(ids))
        for request in admitted:
            try:
                self._backend.add(request)
            except BackendFault:
                raise
            except Exception as error:  # whatever a library raises here is about this request
                if isinstance(error, DeepInferError):
                    message = error.message
                    logger.warning("request %s: %s", request.request_id, message)
                else:
                    message = "the engine could not start the request"
                    logger.exception("request %s: %s", request.request_id, message)
                self._deliver(
                    TokenChunk(
                        request_id=request.request_id,
                        finish_reason=FinishReason.ERROR,
                        message=message,
                    )
                )

    # Stepping: between two steps all is done with cold caches, since a step has read every weight
    # of the model: what takes 3 us in a loop of its own was seen to take 50 here.

    def _step(self) -> None:
        chunks = self._backend.step()
        self._num_chunks += len(chunks)
        for chunk in chunks:
            self._deliver(chunk)
        for request_id in self._cancelled:
            self._queue.release(request_id)
        self._cancelled.clear()

    def _report_step(self) -> None:
        """Send each connection its new tokens, and how busy the engine is when that has changed."""
        load = self._measure_load()
        for connection in self._connections.values():
            if connection.chunks or connection.known_load is not load:
                self._send_step(connection, tuple(connection.chunks), load)
                connection.chunks.clear()
                connection.known_load = load
                self._watch(connection)

    def _send_step(
        self, connection: ApiConnection, chunks: tuple[TokenChunk, ...], load: Load
    ) -> None:
        """In as many messages as it takes: the scores of long prompts are large."""
        try:
            connection.send(wire.Step(chunks, load))
        except wire.MessageTooLarge:
            if len(chunks) > 1:
                half = len(chunks) // 2
                self._send_step(connection, chunks[:half], load)
                self._send_step(connection, chunks[half:], load)
                return
            # It ends its own request, and not the connection of all.
            request_id = chunks[0].request_id
            self._cancel(connection, (request_id,))
            message = "the log probabilities are too many for one message; ask for fewer"
            failed = TokenChunk(request_id, finish_reason=FinishReason.ERROR, message=message)
            connection.send(wire.Step((failed,), load))

    def _measure_load(self) -> Load:
        """The same object for as long as nothing has changed."""
        queue, known, now = self._queue, self._load_now, time.monotonic()
        num_admitted, num_waiting = queue.num_admitted, queue.num_waiting
        has_moved = known.num_running != num_admitted or known.num_waiting != num_waiting
        if has_moved or now >= self._load_ages_at:
            load = Load(num_admitted, num_waiting, self._backend.num_used_blocks)
            self._load_ages_at = now + LOAD_INTERVAL_S
            if load != known:
                self._load_now = load
        return self._load_now

    def _deliver(self, chunk: TokenChunk) -> None:
        self._owners[chunk.request_id].chunks.append(chunk)
        if chunk.finish_reason is not None:
            del self._owners[chunk.request_id]
            self._queue.release(chunk.request_id)


class ApiConnection:
    """One connected API process: what it has sent so far, and what it has yet to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.chunks: list[TokenChunk] = []  # not sent yet
        self.known_load: Load | None = None
        self.is_watched_for_writing = False
        self._reader = wire.FrameReader()
        self._outgoing = bytearray()

    @property
    def has_outgoing(self) -> bool:
        return bool(self._outgoing)

    def receive(self) -> list[wire.ToEngine] | None:
        """The messages that have arrived, or None when the other side is gone."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        return [wire.decode_to_engine(body) for body in self._reader.feed(data)]

    def send(self, message: wire.FromEngine) -> None:
        """Queue a message and write what the socket takes now; never waits for the other side."""
        self._outgoing += wire.encode(message)
        self.flush()

    def flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(self._outgoing)]
        except BlockingIOError:
            return
        except OSError:
            # The next receive sees the closed connection and forgets this connection.
            self._outgoing.clear()


def describe(error: Exception) -> str:
    """One line of what nobody foresaw."""
    lines = str(error).splitlines()
    return f"the engine failed: {type(error).__name__}" + (f": {lines[0]}" if lines else "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deepinfer.runtime.engine_process")
    parser.add_argument("--engine", type=Path, required=True, help="the engine's folder")
    parser.add_argument("--listen-fd", type=int, required=True, help="a listening Unix socket")
    parser.add_argument("--options", default="{}", help="EngineOptions as JSON")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    process.end_with_parent()
    precedence.stand_up()
    logs.configure(arguments.log_level, arguments.log_format)
    options = msgspec.json.decode(arguments.options, type=EngineOptions)
    listener = socket.socket(fileno=arguments.listen_fd)
    try:
        engine = with_max_seq_len(read_engine(arguments.engine), options.max_seq_len)
    except CommandError as error:  # it was there when the server started
        logger.error("cannot start again: %s", error.message)
        return 1
    status = EngineProcess(listener, engine, options).run()
    if status:
        # A library that has failed may wait for ever in what it runs at exit.
        logging.shutdown()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
