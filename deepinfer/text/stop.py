"""Stop strings, found in a stream of characters however it is cut into pieces.

The rule: the stop string that is complete first in the stream wins; of those that end with the
same character, the longest. The text is what stands before it. The rule speaks of characters only,
so the result cannot depend on how the text came; nothing of a stop string is given out unless that
was asked for, and only what may still become one is held back.

This module knows nothing of tokens.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence

ROOT = 0


class StopMatcher:
    """Passes text on up to the first stop string; `matched` is that one, and all else is swallowed.

    Matching takes constant time per character, however many and long the stop strings are; memory
    is proportional to their total length, which the caller bounds. No stop string is empty.
    """

    def __init__(self, stop: Sequence[str], *, is_shown: bool = False) -> None:
        """With `is_shown` the stop string that ends the text is its last part."""
        assert all(stop), "an empty stop string would match before the first character"
        self.matched: str | None = None
        self._is_shown = is_shown
        self._automaton = _Automaton(stop)
        self._find_beginning = _beginnings(stop)
        self._state = ROOT
        self._held = ""

    def push(self, text: str) -> str:
        """What of the stream is safe to give out now that `text` has come."""
        if self._find_beginning is None:
            return text
        if self.matched is not None:
            return ""
        if self._state == ROOT and self._find_beginning(text) is None:
            return text
        return self._scan(text)

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _scan(self, text: str) -> str:
        stream = self._held + text
        step, found, state = self._automaton.step, self._automaton.found, self._state
        for num_chars, char in enumerate(text, start=len(self._held) + 1):
            state = step(state, char)
            if (stop := found[state]) is not None:
                self.matched, self._held = stop, ""
                return stream[: num_chars if self._is_shown else num_chars - len(stop)]
        num_safe = len(stream) - self._automaton.depths[state]
        self._state, self._held = state, stream[num_safe:]
        return stream[:num_safe]


class _Automaton:
    """Aho-Corasick: a state is the longest end of the text that begins a stop string.

    By state: `depths` is the length of that end, `found` the longest stop string that is complete
    with it, `_fallbacks` the next shorter such end.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.depths = [0]
        self.found: list[str | None] = [None]
        self._children: list[dict[str, int]] = [{}]
        for string in stop:
            self._add(string)
        self._fallbacks = [ROOT] * len(self.depths)
        self._link()

    def step(self, state: int, char: str) -> int:
        children = self._children
        while char not in children[state]:
            if state == ROOT:
                return ROOT
            state = self._fallbacks[state]
        return children[state][char]

    def _add(self, string: str) -> None:
        state = ROOT
        for char in string:
            child = self._children[state].setdefault(char, len(self.depths))
            if child == len(self.depths):
                self.depths.append(self.depths[state] + 1)
                self.found.append(None)
                self._children.append({})
            state = child
        self.found[state] = string

    def _link(self) -> None:
        """Find the fallbacks, shallow states first since the deep ones build on them."""
        queue = deque(self._children[ROOT].values())
        while queue:
            state = queue.popleft()
            for char, child in self._children[state].items():
                self._fallbacks[child] = self.step(self._fallbacks[state], char)
                self.found[child] = self.found[child] or self.found[self._fallbacks[child]]
                queue.append(child)


def _beginnings(stop: Sequence[str]) -> Callable[[str], object] | None:
    """Searches a text for a first character of a stop string; most texts hold none."""
    if not stop:
        return None
    return re.compile("|".join(re.escape(char) for char in sorted({s[0] for s in stop}))).search
