"""Server-sent events as bytes.

A stream's events differ in a few places only, so all the rest is rendered once a stream and an
event costs one join. The templates are held to the models of `answers.py` by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deepinfer.errors import RequestError
from deepinfer.generation import FinishReason, Usage
from deepinfer.server.chat_reader import CallPart, ChatPart
from deepinfer.server.errors import error_object
from deepinfer.server.log_probs import as_chat, as_completion
from deepinfer.text.scores import PlacedToken

DONE = b"data: [DONE]\n\n"
END = b"}\n\n"
PING = b": ping\n\n"  # a comment, which clients of event streams pass over

# JSON leaves them as they are, yet many clients split lines there as Python does.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


def encode_text(text: str) -> bytes:
    """A JSON string that no client breaks into lines."""
    return escape_line_breaks(msgspec.json.encode(text))


def escape_line_breaks(encoded: bytes) -> bytes:
    """The same JSON without the characters at which a careless client ends a line."""
    if encoded.isascii():
        return encoded
    return encoded.decode().translate(_LINE_BREAKS).encode()


def error_event(error: RequestError) -> bytes:
    """The last event of a stream that fails; the SDK raises APIError for it."""
    return b"data: " + msgspec.json.encode({"error": error_object(error)}) + b"\n\n"


def _encode(value: object) -> bytes:
    """JSON that no client breaks into lines."""
    return escape_line_breaks(msgspec.json.encode(value))


def _encode_usage(usage: Usage) -> bytes:
    return msgspec.json.encode(
        {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }
    )


class _Events:
    """What the two kinds of streams have in common."""

    object: str

    def __init__(
        self, id_: str, created: int, model: str, *, with_usage: bool, is_continuous: bool = False
    ) -> None:
        head = msgspec.json.encode(
            {"id": id_, "object": self.object, "created": created, "model": model}
        )
        self._head = b"data: " + head[:-1] + b',"choices":['
        # With include_usage every chunk has the field, and all but the last have null in it.
        self._tail = (b',"usage":null' if with_usage else b"") + END
        self._with_usage = with_usage
        self.is_continuous = is_continuous  # every event says the usage so far

    def count(self, usage: Usage) -> None:
        """Say this usage in the events that follow."""
        self._tail = b',"usage":' + _encode_usage(usage) + END

    def end(self, usage: Usage) -> bytes:
        """The usage, when it was asked for, and the mark that ends the stream."""
        if not self._with_usage:
            return DONE
        return b"".join((self._head, b'],"usage":', _encode_usage(usage), END, DONE))


class CompletionEvents(_Events):
    object = "text_completion"

    def delta(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None,
        tokens: Sequence[PlacedToken] = (),
    ) -> bytes:
        reason = b"null" if finish_reason is None else b'"%b"' % finish_reason.encode()
        return b'%b{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}]%b' % (
            self._head,
            encode_text(text),
            index,
            _encode(as_completion(tokens)) if tokens else b"null",
            reason,
            self._tail,
        )


class ChatEvents(_Events):
    object = "chat.completion.chunk"

    def role(self, index: int) -> bytes:
        """The first event of a choice."""
        return b'%b{"index":%d,"delta":{"role":"assistant"},"finish_reason":null}]%b' % (
            self._head,
            index,
            self._tail,
        )

    def delta(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None,
        tokens: Sequence[PlacedToken] = (),
    ) -> bytes:
        """One event for the text, when there is some, and one for the finish reason."""
        events = self._content(index, text, tokens) if text or tokens else b""
        return events if finish_reason is None else events + self.finish(index, finish_reason)

    def part(self, index: int, part: ChatPart, tokens: Sequence[PlacedToken] = ()) -> bytes:
        """What was read out of a piece of text: an event for each kind of thing in it."""
        events = []
        if part.reasoning:
            delta = b'{"reasoning_content":%b}' % encode_text(part.reasoning)
            events.append(self._event(index, delta))
        if part.content or tokens:
            events.append(self._content(index, part.content, tokens))
        events += [self._event(index, _encode({"tool_calls": [_call(c)]})) for c in part.calls]
        return b"".join(events)

    def finish(self, index: int, reason: str) -> bytes:
        """The last event of a choice."""
        return self._event(index, b"{}", b'"%b"' % reason.encode())

    def _content(self, index: int, text: str, tokens: Sequence[PlacedToken]) -> bytes:
        return b'%b{"index":%d,"delta":{"content":%b},%b"finish_reason":null}]%b' % (
            self._head,
            index,
            encode_text(text),
            b'"logprobs":%b,' % _encode(as_chat(tokens)) if tokens else b"",
            self._tail,
        )

    def _event(self, index: int, delta: bytes, reason: bytes = b"null") -> bytes:
        return b'%b{"index":%d,"delta":%b,"finish_reason":%b}]%b' % (
            self._head,
            index,
            delta,
            reason,
            self._tail,
        )


def _call(part: CallPart) -> dict[str, object]:
    if part.id is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}
