"""Tasks that run beside the requests: none of them ends unnoticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
STABLE_AFTER_S = 60.0  # work that went on for so long is begun again at once

Result = TypeVar("Result")


def start(work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
    """Run `work` in a task whose exception is logged at once, whoever awaits it later."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_report)
    return task


async def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work`, and begin it again with a back-off each time that it fails, until it returns."""
    backoff_s = 0.0
    loop = asyncio.get_running_loop()
    while True:
        began_at = loop.time()
        try:
            await work()
        except Exception:
            if loop.time() - began_at > STABLE_AFTER_S:
                backoff_s = 0.0
            logger.exception("%s failed; it goes on in %g s", name, backoff_s)
        else:
            return
        await asyncio.sleep(backoff_s)
        backoff_s = min(max(2 * backoff_s, FIRST_BACKOFF_S), MAX_BACKOFF_S)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s failed", task.get_name(), exc_info=error)
