"""The one generation path: a plan's sequences run on an engine and come back as pieces of text.

Whoever collects an answer drains the same stream that others send on as it comes. Closing the
stream cancels what still runs. A stream that is being sent may be pushed: then it is written in the
callback that brings the tokens, and nobody waits to be woken up. This module knows neither HTTP nor
the shape of any answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Literal

import msgspec

from deepinfer.errors import InternalError, InvalidValue, RequestError
from deepinfer.generation import FinishReason, TokenChunk, Usage
from deepinfer.runtime.handle import GenerationHandle, GenerationOptions
from deepinfer.server.engines import ServedEngine
from deepinfer.server.prepare import Choice, Plan
from deepinfer.server.record import RequestRecord
from deepinfer.text.scores import PlacedToken, place_prompt


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one choice has gained: some text, its finish reason, or both."""

    index: int
    text: str
    finish_reason: FinishReason | None
    tokens: tuple[PlacedToken, ...] = ()  # of the text, where log probabilities were asked for


class Answer(msgspec.Struct, frozen=True):
    """One choice, whole."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: tuple[PlacedToken, ...] = ()


class Generation:
    """A plan being carried out, once. What it comes to is noted in `record` for the log."""

    def __init__(self, engine: ServedEngine, plan: Plan, record: RequestRecord) -> None:
        self._engine = engine
        self._plan = plan
        self._record = record
        self._by_request_id = {choice.request.request_id: choice for choice in plan.choices}
        self._num_unfinished = len(plan.choices)
        self._handle: GenerationHandle | None = None  # while `deltas` is open
        self._unechoed = {choice.index for choice in plan.choices if choice.echo is not None}

    @property
    def num_choices(self) -> int:
        return len(self._plan.choices)

    @property
    def usage(self) -> Usage:
        """Exact once the generation has ended; every token that was generated for an answer."""
        outputs = (choice.output for choice in self._plan.choices)
        return Usage(self._plan.prompt_tokens, sum(out.completion_tokens for out in outputs))

    @property
    def is_over(self) -> bool:
        """Whether every choice has had its finish reason."""
        return not self._num_unfinished

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        """What each wake-up brings; the list is empty when tokens came that show no text yet.

        Ends when every choice has had its finish reason. Raises a RequestError: before the first
        item when the engine does not take the requests, later when it fails under them.
        """
        with self._submitted() as handle:
            while not self.is_over:
                yield self._advance(await handle.receive())

    async def push(self, on_deltas: Callable[[list[Delta]], bool]) -> None:
        """Call `on_deltas` with what each step brings until it returns False or all is over.

        For a generation whose `deltas` has yielded and is open; it ends when that is closed. Raises
        what `on_deltas` raises, and a RequestError when the generation fails.
        """
        assert self._handle is not None, "pushed before it was begun"

        def take(chunks: list[TokenChunk]) -> bool:
            return on_deltas(self._advance(chunks)) and self._num_unfinished > 0

        if not self.is_over:
            await self._handle.push(take)

    async def collect(self) -> list[Answer]:
        """Every choice whole, in order."""
        texts: list[list[str]] = [[] for _ in self._plan.choices]
        tokens: list[list[PlacedToken]] = [[] for _ in self._plan.choices]
        async with aclosing(self.deltas()) as stream:
            async for deltas in stream:
                for delta in deltas:
                    texts[delta.index].append(delta.text)
                    tokens[delta.index].extend(delta.tokens)
        return [
            Answer("".join(texts[i]), _finish_reason(choice), tuple(tokens[i]))
            for i, choice in enumerate(self._plan.choices)
        ]

    @contextmanager
    def _submitted(self) -> Iterator[GenerationHandle]:
        requests = [choice.request for choice in self._plan.choices]
        self._note_submission()
        try:
            with self._engine.client.submit(requests, self._options()) as handle:
                self._handle = handle
                yield handle
        finally:
            self._handle = None
            self._note_outcome()

    def _advance(self, chunks: Sequence[TokenChunk]) -> list[Delta]:
        """What the chunks add to each choice, and a note that they have come."""
        deltas = self._read(chunks)
        self._note_tokens()
        return deltas

    def _read(self, chunks: Sequence[TokenChunk]) -> list[Delta]:
        """One delta a choice, whatever number of chunks a slow reader let pile up."""
        if len(chunks) == 1:  # nearly always
            delta = self._take(chunks[0])
            return [] if delta is None else [delta]
        joined: dict[int, Delta] = {}
        for chunk in chunks:
            delta = self._take(chunk)
            if delta is not None:
                before = joined.get(delta.index)
                joined[delta.index] = delta if before is None else _join(before, delta)
        return list(joined.values())

    def _take(self, chunk: TokenChunk) -> Delta | None:
        """What one chunk adds to its choice; None for nothing that shows."""
        choice = self._by_request_id[chunk.request_id]
        output = choice.output
        has_ended = output.finish_reason is not None
        if has_ended:
            return None  # tokens that were under way when a stop string ended it
        if chunk.finish_reason is FinishReason.ERROR:
            raise _error_of(chunk)
        text = output.push(chunk)
        tokens: tuple[PlacedToken, ...] = ()
        if choice.request.sampling.num_log_probs is not None:
            tokens = (*self._place_prompt(choice, chunk), *output.take_scores(text))
        if self._unechoed and choice.index in self._unechoed:
            self._unechoed.remove(choice.index)
            text = (choice.echo or "") + text
        if output.finish_reason is not None:
            self._num_unfinished -= 1
            if chunk.finish_reason is None:  # a stop string, which the engine knows nothing of
                self._engine.client.cancel([chunk.request_id])
        elif not text and not tokens:
            return None
        return Delta(choice.index, text, output.finish_reason, tokens)

    def _place_prompt(self, choice: Choice, chunk: TokenChunk) -> list[PlacedToken]:
        """The scored tokens of an echoed prompt, which come with the first chunk."""
        if not chunk.prompt_log_probs:
            return []
        prompt = choice.request.prompt_token_ids
        return place_prompt(self._engine.tokenizer, prompt, chunk.prompt_log_probs)

    def _options(self) -> GenerationOptions:
        return GenerationOptions(
            tenant=self._record.key_name,
            priority=self._plan.priority,
            queue_timeout_s=self._engine.queue_timeout_s,
            timeout_s=self._engine.request_timeout_s,
            on_admitted=self._record.note_admission,
        )

    def _note_submission(self) -> None:
        """Raises RateLimitExceeded when the key has no tokens left for it."""
        if self._record.allowance is not None:
            plan = self._plan
            self._record.allowance.reserve(plan.prompt_tokens, plan.reserved_tokens)
        self._record.model = self._engine.model_id
        self._record.submitted_at = time.monotonic()
        self._engine.meter.begin(self)

    def _note_tokens(self) -> None:
        """Once a wake-up, so it is plain arithmetic."""
        now = time.monotonic()
        self._engine.meter.note_tokens(self._record, now, self._plan.prompt_tokens)
        self._record.note_tokens(now)

    def _note_outcome(self) -> None:
        outputs = [choice.output for choice in self._plan.choices]
        reasons = (output.finish_reason for output in outputs)
        self._record.usage = usage = self.usage
        if self._record.allowance is not None:
            was_taken = self._record.admitted_at is not None
            self._record.allowance.settle(usage.total_tokens if was_taken else 0)
        self._record.finish_reasons = [reason or FinishReason.CANCELLED for reason in reasons]
        output_lens = [output.completion_tokens for output in outputs]
        self._engine.meter.end(self, self._record, output_lens)


def _join(first: Delta, second: Delta) -> Delta:
    text, tokens = first.text + second.text, first.tokens + second.tokens
    return Delta(first.index, text, second.finish_reason, tokens)


def _error_of(chunk: TokenChunk) -> RequestError:
    message = chunk.message or "The engine could not finish this request"
    if chunk.refused_param is not None:
        return InvalidValue(message, param=chunk.refused_param)
    return InternalError(message)


def _finish_reason(choice: Choice) -> Literal["stop", "length"]:
    assert choice.output.finish_reason is not None, "collected before the choice ended"
    return "length" if choice.output.finish_reason is FinishReason.LENGTH else "stop"
