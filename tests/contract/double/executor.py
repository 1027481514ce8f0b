"""The executor: one thread that batches requests in flight over a toy model.

It admits as GUARANTEED_NO_EVICT does, when the whole worst case fits the KV cache, and hands over
all tokens of an iteration together. An iteration takes a little time, as on a device, so that a
request can be aborted while it runs. Environment variables make it fail or slow on command.

It stands for the library's executor and for the processes behind it: as a rule one for each GPU,
started through MPI; an engine on one GPU whose logits are gathered runs in the process itself.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from tests.contract.double.configs import CppExecutorError, RequestError
from tests.contract.double.executor_config import EngineFacts, ExecutorConfig
from tests.contract.double.record import assumed, message, recorded
from tests.contract.double.requests import Request, ToySequence
from tests.contract.double.results import CANCELLED, Response
from tests.contract.double.statistics import iteration_record

REQUEST_FAULT_VARIABLE = "DOUBLE_REQUEST_FAULT_TOKEN"  # a prompt with this id ends in RequestError
EXECUTOR_FAULT_VARIABLE = "DOUBLE_EXECUTOR_FAULT_TOKEN"  # ... takes the executor down
STICKY_FAULT_VARIABLE = "DOUBLE_STICKY_FAULT_TOKEN"  # ... breaks the GPU: each request fails now
WORKER_DEATH_VARIABLE = "DOUBLE_WORKER_DEATH_TOKEN"  # ... ends the worker: no output is answered
BAD_OUTPUT_VARIABLE = "DOUBLE_BAD_OUTPUT_TOKEN"  # ... has outputs that the library cannot read
STATISTICS_FAULT_VARIABLE = "DOUBLE_STATISTICS_FAULT"  # "raise" or "hang"
ITERATION_VARIABLE = "DOUBLE_ITERATION_MS"
DEFAULT_ITERATION_MS = 0.5


class _WorkerDied(Exception):
    """The process is gone, and nobody is told."""


@dataclass
class Executor:
    config: ExecutorConfig
    engine: EngineFacts
    is_in_process: bool = False
    received: list[Request] = field(default_factory=list)  # for a test to look at
    doing_shutdown: bool = False

    def __post_init__(self) -> None:
        self._error_queue: queue.Queue[Exception] = queue.Queue()  # of its threads and processes
        self.mpi_futures: list[Future[None]] = [] if self.is_in_process else [Future()]
        self._wake = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._cancelled: set[int] = set()
        self._active: list[Request] = []
        self._is_stopping = False
        self._fault: Exception | None = None
        self._iterations = itertools.count()
        self._has_broken_gpu = False
        length = recorded("runtime_configs")["default_iter_stats_max_iterations"]
        self._stats: deque[dict[str, Any]] = deque(maxlen=length)
        self._thread = threading.Thread(target=self._run, name="double-executor", daemon=True)
        self._thread.start()

    def is_shutdown(self) -> bool:
        return self.doing_shutdown

    def submit(self, request: Request) -> None:
        with self._wake:
            if self._fault is not None:
                raise self._fault
            self.received.append(request)
            self._waiting.append(request)
            self._wake.notify()
        self.handle_error(None)

    def abort(self, request_id: int) -> None:
        with self._wake:
            self._cancelled.add(request_id)
            self._wake.notify()

    def handle_error(self, error: Exception | None) -> None:
        """Raise a request's error, or shut down and raise an executor's, whoever asks."""
        if isinstance(error, RequestError):
            raise error
        if error is None:
            if self._error_queue.empty():
                return
            error = self._error_queue.get()
        self.shutdown()
        raise error

    def take_stats(self, timeout_s: float | None) -> list[dict[str, Any]]:
        """Every record since the last call; waits up to `timeout_s` when there is none."""
        with self._wake:
            self._wake.wait_for(lambda: len(self._stats) > 0, timeout_s)
            taken = list(self._stats)
            self._stats.clear()
        return taken

    def shutdown(self) -> None:
        self.doing_shutdown = True
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._iterate()
            except _WorkerDied:
                self._die()
                return
            except Exception as fault:  # a mistake of the double must not leave its callers waiting
                self._end_all(fault)
                return
        self._end_all(RequestError(message("shutting_down")))

    def _die(self) -> None:
        error = RuntimeError(message("worker_died"))
        self._error_queue.put(error)
        for future in self.mpi_futures:
            future.set_exception(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            self._wake.wait_for(
                lambda: self._is_stopping or self._waiting or self._active or self._cancelled
            )
            return not self._is_stopping

    def _iterate(self) -> None:
        started_at = time.monotonic()
        self._cancel()
        admitted = self._admit()
        if not self._active:
            if assumed("idle_executor_writes_statistics"):
                self._record(started_at, admitted, num_finished=0, num_stepped=0)
            return
        time.sleep(float(os.environ.get(ITERATION_VARIABLE, DEFAULT_ITERATION_MS)) / 1000)
        stepped = [(r, sequence) for r in self._active for sequence in r.running]
        for request, sequence in stepped:
            request.step(sequence)
        finished = [request for request in self._active if not request.running]
        self._active = [request for request in self._active if request.running]
        if not assumed("statistics_precede_responses"):
            self._deliver(stepped)
        self._record(started_at, admitted, len(finished), len(stepped))
        if assumed("statistics_precede_responses"):
            self._deliver(stepped)

    def _deliver(self, stepped: list[tuple[Request, ToySequence]]) -> None:
        """Of a request that has ended, only the last response is final, whatever ended first."""
        for number, (request, sequence) in enumerate(stepped):
            response = request.response(sequence)
            if response is None:
                continue
            is_last = all(other is not request for other, _ in stepped[number + 1 :])
            is_final = response.is_final and is_last
            finish = "?" if _names(BAD_OUTPUT_VARIABLE, request.prompt) else response.finish
            request.result.queue.put(replace(response, is_final=is_final, finish=finish))

    def _cancel(self) -> None:
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()
            gone = [r for r in [*self._waiting, *self._active] if r.request_id in cancelled]
            self._waiting = deque(r for r in self._waiting if r not in gone)
        self._active = [request for request in self._active if request not in gone]
        for request in gone:
            for sequence in request.sequences:
                is_final = sequence is request.sequences[-1]
                is_asked = request.is_streaming and request.sampling._return_log_probs
                request.result.queue.put(
                    Response(
                        index=sequence.index,
                        finish=CANCELLED,
                        is_final=is_final,
                        log_probs=list(sequence.log_probs) if is_asked else None,
                    )
                )

    def _admit(self) -> list[Request]:
        admitted: list[Request] = []
        while (request := self._next_admissible(admitted)) is not None:
            with self._wake:
                self._waiting.popleft()
            self._active.append(request)
            try:
                self._validate(request)
            except RequestError as error:
                is_of_iteration = str(error).startswith(message("forward_error"))
                for ended in [*self._active] if is_of_iteration else [request]:
                    self._active.remove(ended)
                    ended.result.queue.put(Response(error=error))
                continue
            admitted.append(request)
        return admitted

    def _next_admissible(self, admitted: list[Request]) -> Request | None:
        if not self._waiting:
            return None
        request = self._waiting[0]
        num_sequences = sum(len(active.sequences) for active in self._active)
        reserved = sum(self._blocks_of(active) for active in self._active)
        has_room = (
            num_sequences + len(request.sequences) <= self.config.max_batch_size
            and reserved + self._blocks_of(request) <= self.engine.num_blocks
            and self._has_token_budget(request, admitted)
        )
        # A request that never has room is let through to the check that refuses it.
        return request if has_room or not self._active else None

    def _has_token_budget(self, request: Request, admitted: list[Request]) -> bool:
        if self.config.enable_chunked_context:
            return True
        context = sum(len(other.prompt) for other in [*admitted, request])
        generating = sum(len(active.running) for active in self._active)
        return context + generating <= self.config.max_num_tokens

    def _blocks_of(self, request: Request) -> int:
        return len(request.sequences) * self.engine.blocks_for(request.worst_case_len)

    def _validate(self, request: Request) -> None:
        """What the native code finds out about a request. Raises RequestError or the fatal one."""
        self._fail_on_command(request)
        if request.refusal is not None:
            raise request.refusal
        if request.sampling.use_beam_search:
            raise RequestError(message("beam_not_simulated"))
        self._check_limits()
        self._check_prompt(request)
        required = self._blocks_of(request)
        if required > self.engine.num_blocks:
            raise RequestError(
                message("kv_cache_too_small", required=required, available=self.engine.num_blocks)
            )

    def _fail_on_command(self, request: Request) -> None:
        if _names(EXECUTOR_FAULT_VARIABLE, request.prompt):
            raise CppExecutorError(message("executor_fault"))
        if _names(WORKER_DEATH_VARIABLE, request.prompt):
            raise _WorkerDied
        if _names(REQUEST_FAULT_VARIABLE, request.prompt):
            raise RequestError(message("request_fault"))
        self._has_broken_gpu |= _names(STICKY_FAULT_VARIABLE, request.prompt)
        if self._has_broken_gpu:
            raise RequestError(message("forward_error") + message("sticky_fault"))

    def _check_limits(self) -> None:
        for name, built in self.engine.limits.items():
            value = getattr(self.config, name)
            if value > built:
                raise RequestError(
                    message("limit_above_engine", name=name, value=value, limit=built)
                )

    def _check_prompt(self, request: Request) -> None:
        if not request.prompt:
            raise RequestError(message("empty_prompt"))
        limit = self.config.max_seq_len - 1
        if not self.config.enable_chunked_context:
            limit = min(limit, self.config.max_num_tokens)
        if len(request.prompt) > limit:
            raise RequestError(
                message("prompt_above_input_len", value=len(request.prompt), limit=limit)
            )
        vocab_size = self.engine.vocab_size
        if max(request.prompt) >= vocab_size:
            raise RequestError(
                message("token_out_of_vocabulary", value=max(request.prompt), limit=vocab_size)
            )
        bias = request.sampling.embedding_bias
        if bias is not None and len(bias) != vocab_size:
            raise RequestError(message("embedding_bias_shape", value=len(bias), limit=vocab_size))

    def _end_all(self, error: Exception) -> None:
        with self._wake:
            self._fault = error
            lost, self._waiting = [*self._active, *self._waiting], deque()
            self._active = []
        for request in lost:
            request.result.queue.put(Response(error=error))

    def _record(
        self, started_at: float, admitted: list[Request], num_finished: int, num_stepped: int
    ) -> None:
        record = iteration_record(
            self.config,
            self.engine,
            self._active,
            admitted,
            number=next(self._iterations),
            latency_ms=(time.monotonic() - started_at) * 1000,
            num_queued=len(self._waiting),
            num_finished=num_finished,
            num_stepped=num_stepped,
        )
        with self._wake:
            self._stats.append(record)
            self._wake.notify_all()


def _names(variable: str, prompt: list[int]) -> bool:
    token = os.environ.get(variable)
    return token is not None and int(token) in prompt
