"""The keeper of an engine that another process has started: it only passes on what it is told."""

from __future__ import annotations

from pathlib import Path

from deepinfer.runtime.lives import Kept, Lives


class DistantKeeper:
    """`tell` it each time that the engine's lives change."""

    def __init__(self, socket_path: Path, lives: Lives) -> None:
        self.socket_path = socket_path
        self.lives = lives
        self._kept: Kept | None = None

    async def start(self, kept: Kept) -> None:
        self._kept = kept

    async def close(self) -> None:
        self._kept = None

    def tell(self, lives: Lives) -> None:
        self.lives = lives
        if self._kept is not None:
            self._kept.on_lives(lives)
