"""The text of one choice, from the engine's token chunks: detokenised and cut at a stop string.

Whether a client streams or not, its text is the concatenation of what `push` returns. This module
knows nothing of HTTP, and does not cancel: it says when there is nothing more to say.
"""

from __future__ import annotations

from collections.abc import Callable

from deepinfer.generation import FinishReason, TokenChunk, TokenId
from deepinfer.text.detokenizer import IncrementalDetokenizer
from deepinfer.text.scores import PlacedToken, ScoreKeeper
from deepinfer.text.stop import StopMatcher


class OutputText:
    """One choice being written.

    `finish_reason` is None until the choice is over. It is STOP when a stop string is complete,
    though the engine still generates: the caller then closes the engine's stream, which cancels
    it. `completion_tokens` counts what the answer cost: every token up to the one that completed
    a stop string or what `watch` looks for, an EOS or stop token included.
    """

    def __init__(
        self,
        detokenizer: IncrementalDetokenizer,
        stop: StopMatcher,
        scores: ScoreKeeper | None = None,
        *,
        is_stop_shown: bool = False,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.completion_tokens = 0
        self._detokenizer = detokenizer
        self._stop = stop
        self._scores = scores
        self._is_stop_shown = is_stop_shown
        self._num_decoded = 0  # characters, those included that a stop string may still take back
        self._num_shown = 0
        self._ends_answer: Callable[[str], bool] | None = None

    def watch(self, ends_answer: Callable[[str], bool]) -> None:
        """Have each piece of text looked at in turn; one for which it is true is the last."""
        self._ends_answer = ends_answer

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the choice."""
        return self._stop.matched

    def push(self, chunk: TokenChunk) -> str:
        """The text that `chunk` adds; after the finish, nothing."""
        text = ""
        # One token at a time, so that the count ends with the token that completes a stop string.
        ids = chunk.token_ids if chunk.finish_reason is None else self._shown(chunk)
        for place, token_id in enumerate(ids):
            if self.finish_reason is not None:
                return text
            self.completion_tokens += 1
            piece = self._detokenizer.push((token_id,))
            if self._scores is not None:
                self._scores.add(token_id, chunk.log_probs[place], self._num_decoded)
                self._num_decoded += len(piece)
            text += self._pass_on(piece)
        if chunk.finish_reason is not None and self.finish_reason is None:
            text += self._finish(chunk, chunk.finish_reason)
        return text

    def take_scores(self, text: str) -> list[PlacedToken]:
        """The scored tokens of `text`, which `push` has just returned."""
        if self._scores is None:
            return []
        self._num_shown += len(text)
        is_cut = self._stop.matched is not None
        if self.finish_reason is None or is_cut:
            return self._scores.take_shown(self._num_shown)
        return self._scores.take_rest()

    def _pass_on(self, text: str) -> str:
        safe = self._stop.push(text)
        if self._stop.matched is not None:
            self.finish_reason = FinishReason.STOP
        return self._show(safe)

    def _show(self, text: str) -> str:
        if text and self._ends_answer is not None and self._ends_answer(text):
            self.finish_reason = FinishReason.STOP
        return text

    def _finish(self, chunk: TokenChunk, reason: FinishReason) -> str:
        hidden = chunk.token_ids[len(self._shown(chunk)) :]
        self.completion_tokens += len(hidden)
        if self._scores is not None and len(chunk.log_probs) == len(chunk.token_ids):
            for token_id in hidden:  # one at most; a library may keep its score to itself
                self._scores.add(token_id, chunk.log_probs[-1], self._num_decoded)
        text = self._pass_on(self._detokenizer.finish()) + self._show(self._stop.finish())
        self.finish_reason = self.finish_reason or reason
        return text

    def _shown(self, chunk: TokenChunk) -> tuple[TokenId, ...]:
        """The tokens with text: the EOS or stop token that ended the sequence has none of it."""
        is_stopped = chunk.finish_reason is FinishReason.STOP
        return chunk.token_ids[:-1] if is_stopped and not self._is_stop_shown else chunk.token_ids


class NoOutput(OutputText):
    """A choice of which only the prompt is asked for: what the engine generates is not part of it.

    An engine generates a token at least; it counts for nothing.
    """

    def push(self, chunk: TokenChunk) -> str:
        self.finish_reason = FinishReason.LENGTH
        return ""

    def take_scores(self, text: str) -> list[PlacedToken]:
        return []
