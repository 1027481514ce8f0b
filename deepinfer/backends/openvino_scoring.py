"""Log probabilities that OpenVINO's executor does not give: of the alternatives, and of prompts.

The executor tells the value of the token that it chose and no other. The same payload, compiled
once more as an ordinary stateful model, scores the sequence as it grows: each token is fed once,
and the row of logits that comes out says how likely every token was at the next place. A sequence
is scored in short pieces between the executor's steps, so that a long prompt holds nobody up;
chunks of tokens wait here until their scores are there.

The second model costs the memory of a second engine. It is compiled for the first who needs it, in
a thread: the executor's steps go on meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from deepinfer.generation import FinishReason, GenerationRequest, TokenChunk, TokenLogProbs

logger = logging.getLogger(__name__)

MODEL_NAME = "openvino_model.xml"
PIECE_S = 0.05  # aimed at for what is scored between two steps, in which all others wait
MAX_PIECE_TOKENS = 64
IDLE_WAIT_S = 0.01  # for the model to be compiled, where nothing else runs
MEASURED_TOKENS = 8  # by which the size of a piece is decided


class Scorer:
    """Scores every sequence that asks for it. Belongs to the thread that steps."""

    def __init__(
        self,
        payload_dir: Path,
        properties: dict[str, Any],
        core: Any,
        numpy: Any,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._piece_tokens = MAX_PIECE_TOKENS
        self._path = payload_dir / MODEL_NAME
        self._properties = properties
        self._core = core
        self._numpy = numpy
        self._compiled: Any = None
        self._failure: Exception | None = None
        self._compiling: threading.Thread | None = None
        self._sequences: dict[str, _Sequence] = {}

    @property
    def missing_bytes(self) -> int:
        """Memory that is yet to be taken for the second model's weights."""
        if self._compiling is not None:
            return 0
        return self._path.with_suffix(".bin").stat().st_size

    @staticmethod
    def is_needed(request: GenerationRequest) -> bool:
        """Whether the executor's own value of each chosen token is not all that is asked for."""
        sampling = request.sampling
        return bool(sampling.num_log_probs) or sampling.with_prompt_log_probs

    def open(self, request: GenerationRequest) -> None:
        """Expect the chunks of `request`. The first one has the model compiled, for seconds."""
        if self._compiling is None:
            self._failure = None
            self._compiling = threading.Thread(target=self._compile, daemon=True)
            self._compiling.start()
        self._sequences[request.request_id] = _Sequence(request)

    def _compile(self) -> None:
        try:
            compiled = self._core.Core().compile_model(self._path, "CPU", self._properties)
            self._choose_piece(_Model(compiled.create_infer_request(), self._numpy))
        except Exception as error:  # whatever the library raises is about log probabilities only
            self._failure = error
        else:
            self._compiled = compiled

    def _choose_piece(self, model: Any) -> None:
        """Measure `model`, once: scores depend a little on the pieces, and are to come again."""
        token_ids = (0,) * MEASURED_TOKENS
        model.feed(token_ids)  # the first one makes room
        started_at = self._clock()
        model.feed(token_ids)
        token_s = max(self._clock() - started_at, 1e-9) / MEASURED_TOKENS
        self._piece_tokens = min(max(int(PIECE_S / token_s), 1), MAX_PIECE_TOKENS)

    def close(self, request_id: str) -> None:
        """Forget a sequence; an unknown id is not an error."""
        self._sequences.pop(request_id, None)

    def pass_on(self, chunks: Sequence[TokenChunk]) -> list[TokenChunk]:
        """Take new chunks, score a piece, and return every chunk that is complete."""
        if not self._sequences:
            return list(chunks)
        ready = []
        for chunk in chunks:
            sequence = self._sequences.get(chunk.request_id)
            if sequence is None:
                ready.append(chunk)
            else:
                sequence.push(chunk)
        if self._compiled is None and not self._is_compiled(may_wait=not chunks):
            return ready
        budget = self._piece_tokens
        for request_id, sequence in list(self._sequences.items()):
            try:
                if self._failure is not None:
                    raise self._failure
                if sequence.model is None:
                    request = self._compiled.create_infer_request()
                    sequence.model = _Model(request, self._numpy)
                budget -= sequence.score(sequence.model, budget)
            except Exception:  # whatever the library raises is about this sequence
                logger.exception("request %s: its tokens cannot be scored", request_id)
                del self._sequences[request_id]
                message = "the engine could not score the request"
                ready.append(
                    TokenChunk(request_id, finish_reason=FinishReason.ERROR, message=message)
                )
                continue
            for chunk in sequence.take_ready():
                ready.append(chunk)
                if chunk.finish_reason is not None:
                    del self._sequences[request_id]
        if self._failure is not None:
            self._compiling = None  # the next one tries again
        # Whoever was served last comes first next time.
        if self._sequences and budget <= 0:
            first = next(iter(self._sequences))
            self._sequences[first] = self._sequences.pop(first)
        return ready

    def _is_compiled(self, *, may_wait: bool) -> bool:
        """Whether the thread has ended; waits a little for it in a step without anything else."""
        assert self._compiling is not None
        if may_wait:
            self._compiling.join(IDLE_WAIT_S)
        return not self._compiling.is_alive()


class _Model:
    """One sequence's state in the compiled model."""

    def __init__(self, infer_request: Any, numpy: Any) -> None:
        self._request = infer_request
        self._numpy = numpy
        self._num_fed = 0

    def feed(self, token_ids: Sequence[int]) -> Any:
        """Log probabilities of the token after each of `token_ids`: [num_tokens, vocab_size]."""
        np = self._numpy
        start, end = self._num_fed, self._num_fed + len(token_ids)
        self._num_fed = end
        inputs = {
            "input_ids": np.array([token_ids], dtype=np.int64),  # [1, num_tokens]
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        known = {name for port in self._request.model_inputs for name in port.get_names()}
        self._request.infer({name: value for name, value in inputs.items() if name in known})
        logits = self._request.get_output_tensor(0).data[0].astype(np.float32)
        highest = logits.max(axis=-1, keepdims=True)
        shifted = logits - highest
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@dataclass
class _Sequence:
    """A growing sequence, how far it is scored, and the chunks that wait for their scores."""

    request: GenerationRequest
    model: _Model | None = None  # until it is compiled
    token_ids: list[int] = field(init=False)  # prompt and answer
    num_fed: int = 0
    scores: list[TokenLogProbs] = field(default_factory=list)  # of token_ids[1:], as far as fed
    _waiting: deque[tuple[int, TokenChunk]] = field(default_factory=deque)  # with their end
    _has_told_prompt: bool = False

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    def push(self, chunk: TokenChunk) -> None:
        self.token_ids += chunk.token_ids
        self._waiting.append((len(self.token_ids), chunk))

    def score(self, model: _Model, max_tokens: int) -> int:
        """Feed up to `max_tokens` tokens whose successor is known; how many were fed."""
        piece = self.token_ids[self.num_fed : self.num_fed + max(max_tokens, 0)]
        piece = piece[: len(self.token_ids) - 1 - self.num_fed]
        if not piece:
            return 0
        rows = model.feed(piece)
        for row in rows:
            self.num_fed += 1
            self.scores.append(self._score_of(row, self.token_ids[self.num_fed]))
        return len(piece)

    def take_ready(self) -> list[TokenChunk]:
        """The chunks whose every token is scored, in order."""
        ready = []
        while self._waiting and self._waiting[0][0] <= self.num_fed + 1:
            end, chunk = self._waiting.popleft()
            ready.append(self._complete(end, chunk))
        return ready

    def _complete(self, end: int, chunk: TokenChunk) -> TokenChunk:
        # The score of token i stands at i - 1: the first token of a sequence has none.
        scores = self.scores[end - 1 - len(chunk.token_ids) : end - 1]
        chunk = msgspec.structs.replace(chunk, log_probs=tuple(scores))
        if not self._has_told_prompt and self.request.sampling.with_prompt_log_probs:
            self._has_told_prompt = True
            prompt = self.scores[: len(self.request.prompt_token_ids) - 1]
            chunk = msgspec.structs.replace(chunk, prompt_log_probs=(None, *prompt))
        return chunk

    def _score_of(self, row: Any, token_id: int) -> TokenLogProbs:
        count = self.request.sampling.num_log_probs or 0
        top: tuple[tuple[int, float], ...] = ()
        if count:
            ids = row.argpartition(-count)[-count:]
            ordered = sorted(ids.tolist(), key=lambda i: (-row[i], i))
            top = tuple((i, float(row[i])) for i in ordered)
        return TokenLogProbs(float(row[token_id]), top)
