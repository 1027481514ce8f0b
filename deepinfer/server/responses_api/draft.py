"""One response while it is written: it reads the answer's text and ends as a response object.

A stream sends the events of each step; a whole answer drops them and takes the end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from deepinfer.errors import RequestError
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.chat_reader import ChatPart, ChatReader
from deepinfer.server.generate import Delta
from deepinfer.server.responses_api.answer import (
    IncompleteDetails,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from deepinfer.server.responses_api.events import (
    ErrorEvent,
    Event,
    ResponseCompleted,
    ResponseCreated,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from deepinfer.server.responses_api.tools import ServedTool
from deepinfer.server.responses_api.writer import OutputWriter


class Draft:
    """`response` is as far as it got; its output is complete once `end` or `fail` was called."""

    def __init__(
        self,
        response: ResponseObject,
        reader: ChatReader | None,
        tools: Mapping[str, ServedTool] = MappingProxyType({}),
    ) -> None:
        self.response = response
        self._reader = reader
        self._writer = OutputWriter(() if reader is None else reader.calls, tools)
        self._is_cut = False

    def begin(self) -> list[Event]:
        return [
            ResponseCreated(response=self.response),
            ResponseInProgress(response=self.response),
        ]

    def write(self, delta: Delta) -> list[Event]:
        """What the answer has gained."""
        is_over = delta.finish_reason is not None
        self._is_cut = delta.finish_reason is FinishReason.LENGTH
        if self._reader is None:
            events = self._writer.write(ChatPart(delta.text), delta.tokens)
        else:
            parts = self._reader.feed_in_order(delta.text, is_over=is_over, is_cut=self._is_cut)
            events = [event for part in parts for event in self._writer.write(part)]
            events += self._writer.end_whole_call()
        return events + (self._writer.finish(is_cut=self._is_cut) if is_over else [])

    def end(self, usage: Usage) -> list[Event]:
        self.response = self.response.model_copy(
            update={
                "status": "incomplete" if self._is_cut else "completed",
                "completed_at": None if self._is_cut else int(time.time()),
                "incomplete_details": IncompleteDetails() if self._is_cut else None,
                "output": self._writer.items,
                "usage": ResponseUsage.of(usage),
            }
        )
        ending = ResponseIncomplete if self._is_cut else ResponseCompleted
        return [ending(response=self.response)]

    def fail(self, error: RequestError) -> list[Event]:
        self.response = self.response.model_copy(
            update={
                "status": "failed",
                "error": ResponseError.of(error),
                "output": self._writer.items,
            }
        )
        return [ErrorEvent.of(error), ResponseFailed(response=self.response)]
