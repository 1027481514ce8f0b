"""Of several answers to one prompt, the best: those with the highest mean log probability."""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.server.generate import Answer


def choose_best(answers: Sequence[Answer], n: int, best_of: int) -> list[Answer]:
    """The `n` best of each prompt's `best_of` answers, the best first; prompts keep their order."""
    best: list[Answer] = []
    for start in range(0, len(answers), best_of):
        candidates = answers[start : start + best_of]
        best += sorted(candidates, key=_mean_log_prob, reverse=True)[:n]
    return best


def _mean_log_prob(answer: Answer) -> float:
    scores = [token.log_prob for token in answer.tokens if token.log_prob is not None]
    return sum(scores) / len(scores) if scores else 0.0
