"""One suspect in the air at a time, over all processes that send an engine requests.

A lock on a file that they share, which the kernel gives back when its holder dies: held together by
those with requests that have yet to be seen to live, and alone by the one that tries a suspect. It
knows nothing of requests and waits for nobody.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class SuspectGate:
    """This process's hold on the lock; each process has a gate of its own on one file."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._held = fcntl.LOCK_UN

    @property
    def is_held(self) -> bool:
        return self._held != fcntl.LOCK_UN

    def share(self) -> bool:
        """Hold it with others; False while one of them tries a suspect. Alone is enough too."""
        return self.is_held or self._lock(fcntl.LOCK_SH)

    def claim(self) -> bool:
        """Hold it alone; False while anybody else holds it."""
        return self._held == fcntl.LOCK_EX or self._lock(fcntl.LOCK_EX)

    def leave(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._held = fcntl.LOCK_UN

    def close(self) -> None:
        os.close(self._descriptor)

    def _lock(self, kind: int) -> bool:
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            # Changing one kind for another lets go of the first.
            self._held = fcntl.LOCK_UN
            return False
        self._held = kind
        return True
