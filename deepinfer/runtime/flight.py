"""One request on its way through an engine, and how it goes on when the engine dies under it.

A request is submitted once for each life of the engine that it sees. In a later life it either
continues, its tokens so far being a part of the prompt, or is replayed: generated again from its
beginning, the tokens that went out already being matched and dropped. Replaying is for what the
sampler only knows of tokens that it has drawn itself: the state of a grammar, the penalties by
frequency and presence; and for prompts that would outgrow what the engine reads.

Pure: it sends nothing, knows no socket and no clock.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import msgspec

from deepinfer.generation import GenerationRequest, TokenChunk, TokenId
from deepinfer.runtime.call import Call

INT64_MAX = 2**63 - 1


class Diverged(Exception):
    """A replay took another way than the tokens that had gone out, and cannot be mended."""


@dataclass
class Flight:
    """`request` is as it was first asked for; what goes over the wire may say more."""

    request: GenerationRequest
    call: Call
    max_input_len: int
    is_admitted: bool = False  # in this life of the engine
    num_lives: int = 0  # of the engine, that it was submitted to after the first
    is_new: bool = False  # it waits to be submitted for the first time
    num_interruptions: int = 0  # lives, and connections, that ended while it ran
    # Deaths in a row at which it ran without having had a token in that life.
    num_fruitless: int = 0
    # The numbers of those of them at which it ran alone.
    blames: set[int] = field(default_factory=set)
    # An array, since it is kept for every stream that is open: 4 bytes a token.
    _emitted: array[TokenId] = field(default_factory=lambda: array("i"))
    _num_unmatched: int = 0  # tokens that a replay has yet to come past
    _has_advanced: bool = False  # in this life of the engine
    _may_replay: bool = True

    @property
    def wire_id(self) -> str:
        """What the engine calls it; no two lives of one request have the same id."""
        name = self.request.request_id
        return f"{name}~{self.num_lives}" if self.num_lives else name

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what killed the engine, and has not been seen to live since."""
        return self.num_fruitless > 0

    @property
    def is_unproven(self) -> bool:
        """Whether it was submitted again and has had no token since."""
        return self.num_lives > 0 and not self._has_advanced

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
        """What to submit to the next life of the engine."""
        self.num_lives += 1
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
        """What is new in a chunk of this life, under the request's own id; None for nothing.

        Raises Diverged when a replay that cannot go on otherwise does not match.
        """
        new = chunk if not self.num_lives else self._sift(chunk)
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


def _next_seed(seed: int, num_emitted: int) -> int:
    """Another seed for the rest of a sequence, or it would be drawn like its beginning."""
    return (seed + num_emitted + INT64_MAX + 1) % 2**64 - INT64_MAX - 1
