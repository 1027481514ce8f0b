"""Generations whose every step a test decides, and the plainest way to write them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from deepinfer.errors import RequestError
from deepinfer.generation import Usage
from deepinfer.server.generate import Delta
from deepinfer.server.sse import DONE, error_event

Step = list[Delta] | Exception | Callable[[], Awaitable[object]]


class ScriptedSource:
    """Brings its steps in turn: deltas, an exception to raise, or something to wait for."""

    def __init__(self, *steps: Step) -> None:
        self.usage = Usage(1, 1)
        self._steps = list(steps)

    @property
    def is_over(self) -> bool:
        return not self._steps

    async def deltas(self) -> AsyncGenerator[list[Delta], None]:
        while self._steps:
            step = await self._next()
            if step is not None:
                yield step

    async def push(self, sink: Callable[[list[Delta]], bool]) -> None:
        while self._steps:
            step = await self._next()
            if step is not None and not sink(step):
                return

    async def _next(self) -> list[Delta] | None:
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, list):
            return step
        await step()
        return None


class PlainWriter:
    """The text and nothing around it."""

    def write(self, deltas: list[Delta]) -> bytes:
        return "".join(delta.text for delta in deltas).encode()

    def end(self) -> bytes:
        return DONE

    def fail(self, error: RequestError) -> bytes:
        return error_event(error)
