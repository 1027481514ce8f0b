"""Requests in flight, and how they are resumed when the engine process dies.

A request is submitted once to each engine process that it sees. In a later one it either
continues, its tokens so far being a part of the prompt, or is replayed: generated again from its
beginning, while the tokens that the client has already are matched and dropped. Replaying is for
what the sampler only knows of tokens that it has drawn itself: the state of a grammar, the
penalties by frequency and presence; and for prompts that would outgrow what the engine reads.

Requests in flight when the engine dies are requeued here. One that ran and had no token in that
process is a suspect: it is tried again beside others once these have had a token, one suspect at a
time. One that was there at two deaths in a row is dispatched before all others and alone, for some
seconds at most: only a death at which nothing else ran is held against a request. And two deaths
prove nothing where engines die all the time: they are weighed against the deaths that nobody
explains.

Pure: nothing is sent from here.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from deepinfer.errors import EngineUnavailable, QueueFull, RequestAbandoned
from deepinfer.generation import GenerationRequest, TokenChunk, TokenId
from deepinfer.runtime.handle import GenerationHandle

INT64_MAX = 2**63 - 1


RESTART_RETRY_S = 2
MAX_BLAMES = 2  # a request that has killed the engine so often is not tried again
MAX_ALONE_S = 5.0  # that others wait for one that is tried alone
TRIED_ALONE_AFTER = 2  # deaths in a row that it was there at
MEMORY_S = 600.0  # for so long a death counts that no request explains


class Diverged(Exception):
    """A replay took another way than the tokens that had gone out, and cannot be mended."""


@dataclass
class ResumableRequest:
    """`request` is as it was first asked for; what goes over the wire may say more."""

    request: GenerationRequest
    handle: GenerationHandle
    max_input_len: int
    is_admitted: bool = False  # in this engine process
    num_resubmissions: int = 0  # of the engine, that it was submitted to after the first
    is_new: bool = False  # it waits to be submitted for the first time
    num_interruptions: int = 0  # engine processes, and connections, that ended while it ran
    # Deaths in a row at which it ran without having had a token in that process.
    num_fruitless: int = 0
    # The numbers of those of them at which it ran alone.
    blames: set[int] = field(default_factory=set)
    # An array, since it is kept for every stream that is open: 4 bytes a token.
    _emitted: array[TokenId] = field(default_factory=lambda: array("i"))
    _num_unmatched: int = 0  # tokens that a replay has yet to come past
    _has_advanced: bool = False  # in this engine process
    _may_replay: bool = True

    @property
    def wire_id(self) -> str:
        """What the engine calls it; no two submissions of one request have the same id."""
        name = self.request.request_id
        return f"{name}~{self.num_resubmissions}" if self.num_resubmissions else name

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what killed the engine, and has not been seen to live since."""
        return self.num_fruitless > 0

    @property
    def is_unproven(self) -> bool:
        """Whether it was submitted again and has had no token since."""
        return self.num_resubmissions > 0 and not self._has_advanced

    def interrupt(self, death: int, *, was_alone: bool) -> None:
        """Note that the engine died, or dropped what it held. A request that waited is unhurt."""
        if self.is_admitted and not self._has_advanced:
            self.num_fruitless += 1
            if was_alone:
                self.blames.add(death)
        self.disconnect()

    def disconnect(self) -> None:
        """Note that the engine has lost it for another reason than its death."""
        self.num_interruptions += self.is_admitted
        self.is_admitted = self._has_advanced = False

    def resume(self) -> GenerationRequest:
        """What to submit to the next engine process."""
        self.num_resubmissions += 1
        self.is_new = False
        num_emitted = len(self._emitted)
        self._num_unmatched = 0
        if num_emitted == 0 or self._replays:
            self._num_unmatched = num_emitted
            return msgspec.structs.replace(self.request, request_id=self.wire_id)
        sampling = self.request.sampling
        return msgspec.structs.replace(
            self.request,
            request_id=self.wire_id,
            prompt_token_ids=(*self.request.prompt_token_ids, *self._emitted),
            sampling=msgspec.structs.replace(
                sampling,
                max_tokens=sampling.max_tokens - num_emitted,
                min_tokens=max(sampling.min_tokens - num_emitted, 0),
                seed=_next_seed(sampling.seed, num_emitted),
                with_prompt_log_probs=False,  # they came with the first tokens
            ),
        )

    def accept(self, chunk: TokenChunk) -> TokenChunk | None:
        """What is new in a chunk of this process, under the request's own id; None for nothing.

        Raises Diverged when a replay that cannot go on otherwise does not match.
        """
        new = chunk if not self.num_resubmissions else self._sift(chunk)
        if new is None:
            return None
        self._has_advanced = True
        self.num_fruitless = 0
        self._emitted.extend(new.token_ids)
        return new

    @property
    def _replays(self) -> bool:
        sampling = self.request.sampling
        prompt_len = len(self.request.prompt_token_ids) + len(self._emitted)
        must = sampling.grammar is not None or prompt_len > self.max_input_len
        should = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        return must or (should and self._may_replay)

    def _sift(self, chunk: TokenChunk) -> TokenChunk | None:
        num_known = min(self._num_unmatched, len(chunk.token_ids))
        if num_known:
            start = len(self._emitted) - self._num_unmatched
            known = self._emitted[start : start + num_known]
            if chunk.token_ids[:num_known] != tuple(known):
                self._may_replay = False
                raise Diverged
            self._num_unmatched -= num_known
        token_ids = chunk.token_ids[num_known:]
        if not token_ids and chunk.finish_reason is None:
            return None
        return TokenChunk(
            request_id=self.request.request_id,
            token_ids=token_ids,
            finish_reason=chunk.finish_reason,
            message=chunk.message,
            log_probs=chunk.log_probs[num_known:],
            prompt_log_probs=() if self._emitted else chunk.prompt_log_probs,
            refused_param=chunk.refused_param,
        )

    @property
    def can_continue(self) -> bool:
        """Whether a replay that has diverged may go on from the tokens so far instead."""
        return not self._replays


class InFlightRequests:
    """Every request of one engine: those that the engine has, and those that wait for it."""

    def __init__(
        self,
        max_resumes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_new: int = 1024,
        max_new_tokens: int = 4_000_000,
    ) -> None:
        """At most `max_new` requests, with prompts of `max_new_tokens` together, may wait to be
        submitted for the first time.
        """
        self._max_resumes = max_resumes
        self._clock = clock
        self._max_new = max_new
        self._max_new_tokens = max_new_tokens
        self._death_numbers = itertools.count()
        self._unexplained: dict[int, float] = {}  # deaths that no request is held to have caused
        self._requests: dict[str, ResumableRequest] = {}  # by the request's own id
        self._dispatched: dict[str, ResumableRequest] = {}  # by the id on the wire
        self._waiting: dict[
            str, ResumableRequest
        ] = {}  # by the request's own id; a part of _requests
        self._lost: list[ResumableRequest] = []  # to what, is not known yet; a part of _waiting
        self._was_alone = False  # whether one of them alone ran
        self._on_trial: ResumableRequest | None = None  # and nothing else leaves while it is
        self._trial_began_at = 0.0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ResumableRequest]:
        return iter(tuple(self._requests.values()))

    @property
    def dispatched(self) -> tuple[ResumableRequest, ...]:
        return tuple(self._dispatched.values())

    @property
    def new(self) -> tuple[ResumableRequest, ...]:
        """What waits to be submitted for the first time."""
        return tuple(resumable for resumable in self._waiting.values() if resumable.is_new)

    @property
    def must_poll(self) -> bool:
        """Whether `dispatch` may return more later without an event here."""
        return bool(self._waiting) and self.has_trial

    @property
    def has_trial(self) -> bool:
        """Whether a request runs alone until it has had a token, or has taken too long."""
        resumable = self._on_trial
        if resumable is None or not self.is_dispatched(resumable) or not resumable.is_suspect:
            return False
        return self._clock() - self._trial_began_at < MAX_ALONE_S

    def find(self, request_id: str) -> ResumableRequest | None:
        """None for a request that has ended already, or never was."""
        return self._requests.get(request_id)

    def find_dispatched(self, wire_id: str) -> ResumableRequest | None:
        """None for a request that was cancelled a moment ago."""
        return self._dispatched.get(wire_id)

    def is_dispatched(self, resumable: ResumableRequest) -> bool:
        return resumable.wire_id in self._dispatched

    def add_dispatched(self, resumable: ResumableRequest) -> None:
        """Note a request that is being submitted for the first time."""
        self._requests[resumable.request.request_id] = resumable
        self._dispatched[resumable.wire_id] = resumable

    def add_waiting(self, resumables: Iterable[ResumableRequest]) -> None:
        """Note requests that `dispatch` is to submit.

        Raises QueueFull, keeping none, when too many wait for that.
        """
        resumables = tuple(resumables)
        waiting = self.new
        num_tokens = sum(len(each.request.prompt_token_ids) for each in (*waiting, *resumables))
        is_full = len(waiting) + len(resumables) > self._max_new
        if is_full or (waiting and num_tokens > self._max_new_tokens):
            raise QueueFull(
                f"{len(waiting):,} requests wait for the engine, which is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        for resumable in resumables:
            resumable.is_new = True
            self._requests[resumable.request.request_id] = resumable
            self._waiting[resumable.request.request_id] = resumable

    def remove(self, resumable: ResumableRequest) -> None:
        """Forget a request that has ended."""
        request_id = resumable.request.request_id
        self._requests.pop(request_id, None)
        self._dispatched.pop(resumable.wire_id, None)
        self._waiting.pop(request_id, None)

    def lose_connection(self) -> None:
        """The connection has ended: keep what the engine held until `resolve_loss` is called."""
        lost = self.dispatched
        if lost:
            self._was_alone = self._runs_one
        for resumable in lost:
            self.requeue(resumable)
        self._lost += lost

    def resolve_loss(
        self, *, is_death: bool
    ) -> Iterator[tuple[ResumableRequest, EngineUnavailable]]:
        """Say whether the loss was a death; yields the requests that are given up, and why."""
        lost, self._lost = self._lost, []
        resumables = [
            resumable for resumable in lost if self.find(resumable.request.request_id) is resumable
        ]
        if is_death:
            yield from self._interrupt(resumables, was_alone=self._was_alone)
        else:
            for resumable in resumables:
                resumable.disconnect()
        self._was_alone = False

    def interrupt(
        self, resumables: Iterable[ResumableRequest]
    ) -> Iterator[tuple[ResumableRequest, EngineUnavailable]]:
        """Requeue what the engine has dropped; yields the requests that are given up, and why."""
        was_alone = self._runs_one
        yield from self._interrupt(resumables, was_alone=was_alone)

    @property
    def _runs_one(self) -> bool:
        return sum(resumable.is_admitted for resumable in self._dispatched.values()) == 1

    def _interrupt(
        self, resumables: Iterable[ResumableRequest], *, was_alone: bool
    ) -> Iterator[tuple[ResumableRequest, EngineUnavailable]]:
        death = self._note_death()
        for resumable in resumables:
            was_running = resumable.is_admitted
            resumable.interrupt(death, was_alone=was_alone)
            error = self._find_end(resumable, was_running=was_running)
            if error is None:
                self.requeue(resumable)
            else:
                self.remove(resumable)
                yield resumable, error

    def _note_death(self) -> int:
        now = self._clock()
        recent = {d: at for d, at in self._unexplained.items() if now - at < MEMORY_S}
        death = next(self._death_numbers)
        self._unexplained = {**recent, death: now}
        return death

    def requeue(self, resumable: ResumableRequest) -> None:
        """Let a request wait for `dispatch`."""
        self._dispatched.pop(resumable.wire_id, None)
        self._waiting[resumable.request.request_id] = resumable

    def dispatch(self) -> Iterator[tuple[ResumableRequest, GenerationRequest]]:
        """The waiting resumables that may go to the engine now, with what to submit.

        A suspect is dispatched when all others have had a token since they were.
        """
        for resumable in self._choose():
            del self._waiting[resumable.request.request_id]
            request = resumable.resume()
            self._dispatched[resumable.wire_id] = resumable
            yield resumable, request

    def _choose(self) -> list[ResumableRequest]:
        if self.has_trial:
            return []
        waiting = self._waiting.values()
        if not self._dispatched:
            tried = (each for each in waiting if each.num_fruitless >= TRIED_ALONE_AFTER)
            self._on_trial = next(tried, None)
            if self._on_trial is not None:
                self._trial_began_at = self._clock()
                return [self._on_trial]
        innocent = [resumable for resumable in waiting if not resumable.is_suspect]
        suspect = next((resumable for resumable in waiting if resumable.is_suspect), None)
        if innocent:
            return innocent
        if suspect is None or self._has_unproven:
            return []
        return [suspect]

    @property
    def _has_unproven(self) -> bool:
        return any(resumable.is_unproven for resumable in self._dispatched.values())

    def _find_end(
        self, resumable: ResumableRequest, *, was_running: bool
    ) -> EngineUnavailable | None:
        if was_running and not self._max_resumes:
            return EngineUnavailable(
                "The engine ended while this request was running; it is being restarted",
                retry_after_s=RESTART_RETRY_S,
            )
        if self._is_guilty(resumable):
            for death in resumable.blames:
                self._unexplained.pop(death, None)
            return RequestAbandoned(
                f"The engine died {len(resumable.blames)} times at the beginning of this request "
                "with nothing else running; it is not tried again"
            )
        if resumable.num_fruitless <= self._max_resumes:
            return None
        return RequestAbandoned(
            f"The engine ended {resumable.num_fruitless} times in a row while this request was "
            "running and had no token; it is not resumed again"
        )

    def _is_guilty(self, resumable: ResumableRequest) -> bool:
        num_others = len(self._unexplained.keys() - resumable.blames)
        is_blamed = resumable.is_suspect and len(resumable.blames) >= MAX_BLAMES
        return is_blamed and num_others <= len(resumable.blames)


def _next_seed(seed: int, num_emitted: int) -> int:
    """Another seed for the rest of a sequence, or it would be drawn like its beginning."""
    return (seed + num_emitted + INT64_MAX + 1) % 2**64 - INT64_MAX - 1
