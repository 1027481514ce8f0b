"""RequestOutput and CompletionOutput: one object a request, changed by each step.

Log probabilities of the chosen tokens come from the executor as all of the sequence so far, with
each response; those of alternatives are worked out of the logits of the new tokens. What this makes
of them is release 1.2.1's, with its assertions.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.contract.double.record import message
from tests.contract.double.shapes import make_dataclass, recorded_method

END_ID, STOP_WORDS, LENGTH, CANCELLED = "END_ID", "STOP_WORDS", "LENGTH", "CANCELLED"


@dataclass(frozen=True)
class Response:
    """What the executor hands over of one sequence: new tokens, and whether it has ended."""

    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    is_final: bool = False
    log_probs: list[float] | None = None  # of all tokens so far
    top_log_probs: list[Any] | None = None  # of the new tokens
    cumulative_log_prob: float | None = None
    error: Exception | None = None


class ResponseQueue:
    """Filled by the executor's thread; awaited only in the loop in which it was made."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Response] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            self._loop = asyncio.get_running_loop()
            self._event = asyncio.Event()

    def put(self, response: Response) -> None:
        self._items.put(response)
        if self._loop is not None:
            with suppress(RuntimeError):  # nobody waits in a loop that is closed
                self._loop.call_soon_threadsafe(self._event.set)

    def get(self, timeout: float | None = None) -> Response:
        return self._items.get(timeout=timeout)

    async def aget(self) -> Response:
        assert self._loop is not None, message("no_event_loop")
        while self._items.empty():
            self._event.clear()
            if self._items.empty():
                await self._event.wait()
        return self._items.get_nowait()


class _Completion:
    """The deltas: what came since the step before the last one that touched this sequence."""

    __slots__ = ("_last_logprobs_len", "_last_text_len", "_last_token_ids_len")

    def __post_init__(self) -> None:
        self._last_text_len = self._last_token_ids_len = self._last_logprobs_len = 0

    @property
    def length(self: Any) -> int:
        return len(self.token_ids)

    @property
    def text_diff(self: Any) -> str:
        return self.text[self._last_text_len :]  # type: ignore[no-any-return]

    @property
    def token_ids_diff(self: Any) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]  # type: ignore[no-any-return]

    @property
    def logprobs_diff(self: Any) -> list[Any]:
        return self.logprobs[self._last_logprobs_len :]  # type: ignore[no-any-return]


Logprob = make_dataclass("Logprob")
CompletionOutput = make_dataclass("CompletionOutput", _Completion)


class RequestOutput:
    """Made by LLM only. Awaiting it, or iterating over it, gives this same object each time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(message("result_not_constructible"))

    @classmethod
    def _make(
        cls,
        request_id: int,
        prompt: str | None,
        prompt_token_ids: list[int],
        sampling_params: Any,
        tokenizer: Any,
        abort: Callable[[int], None],
        handle_error: Callable[[Exception | None], None],
    ) -> RequestOutput:
        made = cls.__new__(cls)
        made._request_id = request_id
        made._prompt = prompt
        made._prompt_token_ids = list(prompt_token_ids)
        made.sampling_params = sampling_params
        made._outputs = [CompletionOutput(index=i) for i in range(sampling_params.best_of)]
        made._tokenizer = tokenizer if sampling_params.detokenize else None
        made._abort = abort
        made._handle_error = handle_error
        made._set_attributes()
        return made

    def _set_attributes(self) -> None:
        self.queue = ResponseQueue()
        self._done = False
        self._aborted = False
        # Whether the executor's lists grow; to know better is the caller's part.
        sampling = self.sampling_params
        self.use_trtllm_sampler = sampling.use_beam_search and sampling.best_of > 1
        self.cached_tokens = 0
        self.decoding_iter = 0
        self.avg_decoded_tokens_per_iter: float | None = None
        self.metrics_dict: dict[str, Any] = {}
        self.disaggregated_params = None

    _request_id: int
    _prompt: str | None
    _prompt_token_ids: list[int]
    _outputs: list[Any]
    _tokenizer: Any
    _abort: Callable[[int], None]
    _handle_error: Callable[[Exception | None], None]
    sampling_params: Any

    @property
    def request_id(self) -> int:
        return self._request_id

    @property
    def prompt(self) -> str | None:
        return self._prompt

    @property
    def prompt_token_ids(self) -> list[int]:
        return self._prompt_token_ids

    @property
    def outputs(self) -> list[Any]:
        n = self.sampling_params.n
        if self.sampling_params.use_beam_search or n == self.sampling_params.best_of:
            return self._outputs[:n]
        best = sorted(self._outputs, key=_likelihood, reverse=True)
        for index, output in enumerate(best):
            output.index = index
        return best[:n]

    @property
    def context_logits(self) -> None:
        return None

    @property
    def mm_embedding_handle(self) -> None:
        return None

    @property
    def finished(self) -> bool:
        return self._done

    @recorded_method("RequestOutput")
    def result(self, timeout: float | None = None) -> RequestOutput:
        while not self._done:
            self._handle(self.queue.get(timeout=timeout))
        return self

    @recorded_method("RequestOutput")
    async def aresult(self) -> RequestOutput:
        while not self._done:
            self._handle(await self.queue.aget())
        return self

    @recorded_method("RequestOutput")
    def abort(self) -> None:
        self._abort(self._request_id)
        self._aborted = True

    @recorded_method("RequestOutput")
    def aborted(self) -> bool:
        return self._aborted

    @recorded_method("RequestOutput")
    def clear_logprob_params(self) -> None:
        self.sampling_params.logprobs = None
        self.sampling_params.prompt_logprobs = None

    def __await__(self) -> Generator[Any, None, RequestOutput]:
        return self.aresult().__await__()

    def __iter__(self) -> RequestOutput:
        return self

    def __next__(self) -> RequestOutput:
        if self._done:
            raise StopIteration
        self._handle(self.queue.get())
        return self

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._done:
            raise StopAsyncIteration
        self._handle(await self.queue.aget())
        return self

    def _handle(self, response: Response) -> None:
        if response.error is not None:
            self._handle_error(response.error)
        self.decoding_iter += 1
        self._done = response.is_final
        output = self._outputs[response.index]
        self._take_tokens(output, response)
        self._name_finish(output, response.finish)
        if self._tokenizer is not None:
            self._detokenize(output)
        self._handle_error(None)

    def _take_tokens(self, output: Any, response: Response) -> None:
        output._last_token_ids_len = len(output.token_ids)
        output.token_ids.extend(response.token_ids)
        if response.cumulative_log_prob is not None:
            output.cumulative_logprob = response.cumulative_log_prob
        if response.top_log_probs is not None:
            output._last_logprobs_len = len(output.logprobs)
            output.logprobs += response.top_log_probs
        elif response.log_probs is not None:
            self._take_log_probs(output, response.log_probs, response.finish)

    def _take_log_probs(self, output: Any, log_probs: list[float], finish: str | None) -> None:
        output._last_logprobs_len = num_known = len(output.logprobs)
        if self.use_trtllm_sampler:
            assert num_known <= len(log_probs), message(
                "log_probs_shrink", known=num_known, given=len(log_probs)
            )
            output.logprobs += log_probs[num_known:]
            if finish != CANCELLED and len(output.logprobs) > output.length:
                output.logprobs = output.logprobs[: output.length]
        else:
            output.logprobs += log_probs
        assert len(output.logprobs) == output.length, message(
            "log_probs_length", given=len(output.logprobs), length=output.length
        )

    def _name_finish(self, output: Any, finish: str | None) -> None:
        names = {END_ID: "stop", STOP_WORDS: "stop", LENGTH: "length", CANCELLED: "cancelled"}
        if finish is None:
            return
        if finish not in names:
            raise ValueError(message("unknown_finish", value=finish))
        output.finish_reason = names[finish]
        if finish != STOP_WORDS:
            return
        for reason, word in self.sampling_params._get_stop_reasons_and_words():
            if output.token_ids[-len(word) :] == word:
                output.stop_reason = reason
                if not self.sampling_params.include_stop_str_in_output:
                    output.token_ids = output.token_ids[: -len(word)]
                return

    def _detokenize(self, output: Any) -> None:
        output._last_text_len = len(output.text)
        skip = self.sampling_params.skip_special_tokens
        output.text = self._tokenizer.decode(output.token_ids, skip_special_tokens=skip)
        stop = self.sampling_params.stop
        for word in [stop] if isinstance(stop, str) else stop or []:
            if word in output.text:
                self._end_at(output, word)

    def _end_at(self, output: Any, word: str) -> None:
        end = output.text.index(word)
        if self.sampling_params.include_stop_str_in_output:
            end += len(word)
        output.text = output.text[:end]
        output.finish_reason, output.stop_reason = "stop", word
        if not self._done:
            self.abort()
            self._done = True


def _likelihood(output: Any) -> float:
    return float("-inf") if output.cumulative_logprob is None else output.cumulative_logprob
