"""A backend without a model: it emits scripted tokens at a set rate.

It serves the tests and the benchmarks of everything around a model. It keeps every promise of
`base.py`, and each of its settings is in the engine's manifest:

    script              token ids separated by spaces; when absent, the prompt is repeated once
    step_us             microseconds that one step takes; 0 is as fast as possible
    load_ms             milliseconds that loading takes, as it does with weights
    tokens_per_block    tokens in a KV cache block
    num_blocks          KV cache blocks; when absent, enough for full batches
    counts              each token is the one after the token before it, without an end, so that an
                        answer goes on alike from wherever its beginning is a part of the prompt
    fault_token_id      a prompt that holds this id makes `step` fail, to test what follows
    stumble_token_id    the first request with this id interrupts everything that runs with it
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deepinfer.backends.base import BackendFault
from deepinfer.engine import Capacity
from deepinfer.errors import EngineError
from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk, TokenLogProbs
from deepinfer.manifest import MAX_TOKENS, EngineFolder, EngineManifest
from deepinfer.validation import describe_rule


class SimulatedSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    script: str = Field("", pattern=r"^[0-9 ]*$", max_length=1_000_000)
    step_us: int = Field(0, ge=0, le=60_000_000)
    load_ms: int = Field(0, ge=0, le=600_000)
    tokens_per_block: int = Field(32, ge=1, le=MAX_TOKENS)
    num_blocks: int | None = Field(None, ge=1, le=MAX_TOKENS)
    counts: bool = False
    fault_token_id: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stumble_token_id: int | None = Field(None, ge=0, le=MAX_TOKENS)


@dataclass
class _Sequence:
    request: GenerationRequest
    script: tuple[int, ...]
    num_emitted: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.request.prompt_token_ids) + self.num_emitted


@dataclass
class SimulatedBackend:
    capacity: Capacity
    eos_token_id: int
    script: tuple[int, ...] | None = None
    step_s: float = 0.0
    counts_to: int | None = None  # size of the vocabulary that is counted through
    fault_token_id: int | None = None
    stumble_token_id: int | None = None
    _running: dict[str, _Sequence] = field(default_factory=dict)

    @classmethod
    def load(cls, engine: EngineFolder) -> SimulatedBackend:
        """Raises EngineError for a setting that is none of these, or out of its range."""
        manifest = engine.manifest
        try:
            settings = SimulatedSettings.model_validate(manifest.backend.settings)
        except ValidationError as error:
            first = error.errors()[0]
            raise EngineError(
                f"engine `{manifest.name}` is damaged: its setting `{first['loc'][0]}` "
                f"{describe_rule(first)}"
            ) from None
        if not manifest.tokens.eos_token_ids:
            raise EngineError(f"engine `{manifest.name}` is damaged: it has no EOS token")
        time.sleep(settings.load_ms / 1e3)
        return cls(
            capacity=_make_capacity(manifest, settings),
            eos_token_id=manifest.tokens.eos_token_ids[0],
            script=tuple(map(int, settings.script.split())) or None,
            step_s=settings.step_us / 1e6,
            counts_to=manifest.tokens.vocab_size if settings.counts else None,
            fault_token_id=settings.fault_token_id,
            stumble_token_id=settings.stumble_token_id,
        )

    @property
    def gate(self) -> None:
        return None

    @property
    def num_used_blocks(self) -> int:
        return sum(self.capacity.blocks_for(seq.num_tokens) for seq in self._running.values())

    def check(self, request: GenerationRequest) -> None:
        """Nothing to refuse: a script takes no notice of how it would be sampled."""

    def add(self, request: GenerationRequest) -> None:
        script = self.script or request.prompt_token_ids
        self._running[request.request_id] = _Sequence(request, script)

    def cancel(self, request_id: str) -> None:
        self._running.pop(request_id, None)

    def step(self) -> list[TokenChunk]:
        if self.step_s:
            time.sleep(self.step_s)
        if self._stumbles():
            self.stumble_token_id = None
            lost, self._running = self._running, {}
            return [TokenChunk(name, finish_reason=FinishReason.INTERRUPTED) for name in lost]
        chunks = [self._advance(sequence) for sequence in self._running.values()]
        for chunk in chunks:
            if chunk.finish_reason is not None:
                del self._running[chunk.request_id]
        return chunks

    def close(self) -> None:
        self._running.clear()

    def _stumbles(self) -> bool:
        running = self._running.values()
        return any(self.stumble_token_id in seq.request.prompt_token_ids for seq in running)

    def _advance(self, sequence: _Sequence) -> TokenChunk:
        request = sequence.request
        if self.fault_token_id is not None and self.fault_token_id in request.prompt_token_ids:
            raise BackendFault("a prompt held the token that makes this simulated engine fail")
        token_id = self._next_token(sequence)
        sequence.num_emitted += 1
        return TokenChunk(
            request_id=request.request_id,
            token_ids=(token_id,),
            finish_reason=self._finish_reason(sequence, token_id),
            log_probs=self._certain(request, [token_id]),
            prompt_log_probs=self._certain_prompt(request) if sequence.num_emitted == 1 else (),
        )

    def _certain(self, request: GenerationRequest, ids: Iterable[int]) -> tuple[TokenLogProbs, ...]:
        """A script knows what comes next: its tokens have probability 1."""
        count = request.sampling.num_log_probs
        if count is None:
            return ()
        return tuple(TokenLogProbs(0.0, ((i, 0.0),) if count else ()) for i in ids)

    def _certain_prompt(self, request: GenerationRequest) -> tuple[TokenLogProbs | None, ...]:
        if not request.sampling.with_prompt_log_probs:
            return ()
        return (None, *self._certain(request, request.prompt_token_ids[1:]))

    def _next_token(self, sequence: _Sequence) -> int:
        if self.counts_to is not None:
            return (
                sequence.request.prompt_token_ids[-1] + sequence.num_emitted + 1
            ) % self.counts_to
        sampling = sequence.request.sampling
        may_end = not sampling.ignore_eos and sequence.num_emitted >= sampling.min_tokens
        if sequence.num_emitted >= len(sequence.script) and may_end:
            return self.eos_token_id
        return sequence.script[sequence.num_emitted % len(sequence.script)]

    def _finish_reason(self, sequence: _Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        is_eos = token_id == self.eos_token_id and not sampling.ignore_eos
        may_stop = sequence.num_emitted > sampling.min_tokens
        if may_stop and (is_eos or token_id in sampling.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.num_emitted == sampling.max_tokens else None


def _make_capacity(manifest: EngineManifest, settings: SimulatedSettings) -> Capacity:
    limits = manifest.limits
    full = limits.max_batch_size * -(-limits.max_seq_len // settings.tokens_per_block)
    return Capacity(
        max_batch_size=limits.max_batch_size,
        num_blocks=full if settings.num_blocks is None else settings.num_blocks,
        tokens_per_block=settings.tokens_per_block,
    )
