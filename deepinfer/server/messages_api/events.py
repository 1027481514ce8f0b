"""The events of a Messages stream as bytes.

Texts come once a step, so their events are templates; the few others are encoded as they are. The
tests hold all of them to the models of `answer.py`.
"""

from __future__ import annotations

import msgspec

from deepinfer.errors import RequestError
from deepinfer.server.answers import Answer
from deepinfer.server.errors import error_body
from deepinfer.server.messages_api.answer import (
    ManagedMessage,
    ManagedMessageDelta,
    Message,
    MessageDelta,
    StopDelta,
)
from deepinfer.server.messages_api.errors import as_messages_error
from deepinfer.server.messages_api.writer import BlockDelta, BlockEvent, BlockStart
from deepinfer.server.sse import encode_text, escape_line_breaks

STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DELTA = (
    b"event: content_block_delta\n"
    b'data: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}\n\n'
)
START = (
    b"event: content_block_start\n"
    b'data: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
)
BLOCK_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
# By kind of block: the type of its deltas and the key of their text.
DELTA_KEYS = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
EMPTY_BLOCKS = {
    "text": b'{"type":"text","text":""}',
    "thinking": b'{"type":"thinking","thinking":"","signature":""}',
}


def render_start(message: Message) -> bytes:
    """The first event: the message, empty as yet."""
    data = _encode(message)
    return b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % data


def render_block_event(event: BlockEvent) -> bytes:
    if isinstance(event, BlockDelta):
        type_, key = DELTA_KEYS[event.kind]
        return DELTA % (event.index, type_, key, encode_text(event.text))
    if isinstance(event, BlockStart):
        return START % (event.index, _empty_block(event))
    # A client expects a signature of each thought, and that is where it comes.
    signature = (
        DELTA % (event.index, b"signature_delta", b"signature", b'""')
        if event.kind == "thinking"
        else b""
    )
    return signature + BLOCK_STOP % event.index


def render_end(message: Message) -> bytes:
    """The last events: why the message ended, and what it has cost."""
    assert message.stop_reason is not None, "a message that has not ended"
    delta = StopDelta(stop_reason=message.stop_reason, stop_sequence=message.stop_sequence)
    end = MessageDelta(delta=delta, usage=message.usage)
    if isinstance(message, ManagedMessage):
        end = ManagedMessageDelta(
            delta=delta, usage=message.usage, context_management=message.context_management
        )
    data = _encode(end)
    return b"event: message_delta\ndata: %b\n\n" % data + STOP


def render_error(error: RequestError, request_id: str) -> bytes:
    """The last event of a stream that fails; the SDK raises APIStatusError for it."""
    body = as_messages_error(error_body(error), error.status, request_id)
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(body)


def _encode(answer: Answer) -> bytes:
    return escape_line_breaks(answer.model_dump_json().encode())


def _empty_block(event: BlockStart) -> bytes:
    if event.kind != "tool_use":
        return EMPTY_BLOCKS[event.kind]
    id_, name = encode_text(event.id), encode_text(event.name)
    return b'{"type":"tool_use","id":%b,"name":%b,"input":{}}' % (id_, name)
