"""The events of a streamed response: their shapes, and how they become numbered bytes.

Which events a piece of text comes to is decided in `writer.py`; here nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic import BaseModel

from deepinfer.errors import RequestError
from deepinfer.server.errors import error_object
from deepinfer.server.responses_api.answer import ResponseObject
from deepinfer.server.responses_api.items import OutputItem, OutputText, ReasoningText
from deepinfer.server.sse import escape_line_breaks


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """`sequence_number` is written when the event is sent."""

    sequence_number: int = 0


class ResponseEvent(Event, kw_only=True):
    response: ResponseObject


class ResponseCreated(ResponseEvent, tag="response.created"):
    pass


class ResponseInProgress(ResponseEvent, tag="response.in_progress"):
    pass


class ResponseCompleted(ResponseEvent, tag="response.completed"):
    pass


class ResponseIncomplete(ResponseEvent, tag="response.incomplete"):
    pass


class ResponseFailed(ResponseEvent, tag="response.failed"):
    pass


class ItemEvent(Event, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, tag="response.output_item.added"):
    pass


class ItemDone(ItemEvent, tag="response.output_item.done"):
    pass


class PlacedEvent(Event, kw_only=True):
    """About the insides of an item."""

    item_id: str
    output_index: int


class PartEvent(PlacedEvent, kw_only=True):
    content_index: int = 0
    part: OutputText | ReasoningText


class PartAdded(PartEvent, tag="response.content_part.added"):
    pass


class PartDone(PartEvent, tag="response.content_part.done"):
    pass


class TextDelta(PlacedEvent, tag="response.output_text.delta", kw_only=True):
    content_index: int = 0
    delta: str
    logprobs: list[dict[str, Any]] = []


class TextDone(PlacedEvent, tag="response.output_text.done", kw_only=True):
    content_index: int = 0
    text: str
    logprobs: list[dict[str, Any]] = []


class ReasoningDelta(PlacedEvent, tag="response.reasoning_text.delta", kw_only=True):
    content_index: int = 0
    delta: str


class ReasoningDone(PlacedEvent, tag="response.reasoning_text.done", kw_only=True):
    content_index: int = 0
    text: str


class ArgumentsDelta(PlacedEvent, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(PlacedEvent, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str


class CustomInputDelta(PlacedEvent, tag="response.custom_tool_call_input.delta", kw_only=True):
    delta: str


class CustomInputDone(PlacedEvent, tag="response.custom_tool_call_input.done", kw_only=True):
    input: str


class ErrorEvent(Event, tag="error", kw_only=True):
    """`error` is what Open Responses reads and OpenAI's SDK raises; the rest is OpenAI's shape."""

    code: str | None
    message: str
    param: str | None
    error: dict[str, str | None]

    @classmethod
    def of(cls, error: RequestError) -> ErrorEvent:
        return cls(
            code=error.code, message=error.message, param=error.param, error=error_object(error)
        )


def event_types(kind: type[Event] = Event) -> list[str]:
    """The `type` of every event that there is; classes that others are made from are none."""
    kinds = kind.__subclasses__()
    if not kinds:
        return [str(kind.__struct_config__.tag)]
    return [name for below in kinds for name in event_types(below)]


def _dump(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


class EventNumbering:
    """Numbers the events of one stream from 0 without gaps, and renders them."""

    def __init__(self) -> None:
        self._num_sent = 0
        self._encoder = msgspec.json.Encoder(enc_hook=_dump)

    def render(self, events: Iterable[Event]) -> bytes:
        return b"".join([self._render(event) for event in events])

    def _render(self, event: Event) -> bytes:
        event.sequence_number = self._num_sent
        self._num_sent += 1
        name = str(event.__struct_config__.tag).encode()
        data = escape_line_breaks(self._encoder.encode(event))
        return b"event: %b\ndata: %b\n\n" % (name, data)
