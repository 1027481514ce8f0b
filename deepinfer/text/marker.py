"""One marker in a stream of characters: the text before it, and what follows it.

Nothing of the marker is given out, and only what may still become it is held back. What the marker
means is its user's business.
"""

from __future__ import annotations

from deepinfer.text.stop import StopMatcher


class MarkerFinder:
    """Finds the marker once; then it is of no further use."""

    def __init__(self, marker: str) -> None:
        self._matcher = StopMatcher([marker])
        self._marker_len = len(marker)
        self._num_held = 0  # characters

    def push(self, text: str) -> tuple[str, str | None]:
        """What is safe to give out, and what comes after the marker, or None before it is whole."""
        safe = self._matcher.push(text)
        if self._matcher.matched is not None:
            return safe, text[len(safe) + self._marker_len - self._num_held :]
        self._num_held += len(text) - len(safe)
        return safe, None

    def finish(self) -> str:
        """What was held back and is no marker."""
        return self._matcher.finish()
