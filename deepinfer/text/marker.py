"""The first marker in a stream of characters: the text before it, and what follows it.

Nothing of the marker is given out, and only what may still become it is held back. What the marker
means is its user's business.
"""

from __future__ import annotations

from deepinfer.text.stop import StopMatcher


class MarkerFinder:
    """Finds one of the markers once; then it is of no further use."""

    def __init__(self, *markers: str) -> None:
        self._matcher = StopMatcher(markers)
        self._num_held = 0  # characters

    @property
    def found(self) -> str | None:
        """The marker that was there first."""
        return self._matcher.matched

    def push(self, text: str) -> tuple[str, str | None]:
        """What is safe to give out, and what comes after the marker, or None before it is whole."""
        safe = self._matcher.push(text)
        if self.found is not None:
            return safe, text[len(safe) + len(self.found) - self._num_held :]
        self._num_held += len(text) - len(safe)
        return safe, None

    def finish(self) -> str:
        """What was held back and is no marker."""
        return self._matcher.finish()
