"""From the bytes of a request to a model that cannot be wrong: size, type, encoding, JSON, schema.

Nothing is parsed before its size is known to be allowed, and nothing large on the event loop. Of
keys that an object has twice the last one counts. What the body asks for is none of this module's
business.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from deepinfer.config import ServerSection
from deepinfer.errors import BodyTimeout, ContentTooLarge, UnsupportedMediaType
from deepinfer.server.errors import ClientDisconnected, from_validation
from deepinfer.server.messages import RESULT_ATTACHMENTS
from deepinfer.server.schema_base import Schema
from deepinfer.validation import show_value

logger = logging.getLogger(__name__)

# Above it JSON is parsed in a thread. That helps as far as Python's lock is passed on, which
# happens between fields and not within them; docs/reliability.md has the figures.
# The C library keeps memory for each such thread: with bodies of a megabyte some 150 MiB for them
# all, after which it is flat; MALLOC_ARENA_MAX=2 halves that.
INLINE_BYTES = 32 * 1024
# A client that sends its body waits for nothing: one that pauses for as long as this is gone.
MAX_PAUSE_S = 10.0
MAX_LOGGED_FIELDS = 20
# The same of bodies that may have a grammar, which takes up to a second to make: each 80 bytes of a
# schema may ask for numbers between two bounds, which takes some milliseconds.
INLINE_GRAMMAR_BYTES = 1024
GRAMMAR_WORDS = (b"guided_", b"grammar", b"format", b"structured_outputs", b"schema")
UTF8_NAMES = {"utf-8", "utf8", "us-ascii", "ascii"}

SchemaT = TypeVar("SchemaT", bound=Schema)


async def read_json(request: Request, schema: type[SchemaT], *, limits: ServerSection) -> SchemaT:
    """The body as a `schema`. Raises a RequestError, or ClientDisconnected when it never ends."""
    _check_headers(request, limits.max_body_bytes)
    data = await _read(request, limits)
    may_have_grammar = any(word in data for word in GRAMMAR_WORDS)
    if len(data) <= (INLINE_GRAMMAR_BYTES if may_have_grammar else INLINE_BYTES):
        body = _parse(schema, data, limits)
    else:
        body = await asyncio.to_thread(_parse, schema, data, limits)
    if body.unknown_fields:
        names = sorted(body.unknown_fields)
        shown = [show_value(name) for name in names[:MAX_LOGGED_FIELDS]]
        more = ", ..." if len(names) > len(shown) else ""
        logger.debug("ignored unknown fields: %s%s", ", ".join(shown), more)
    return body


def _parse(schema: type[SchemaT], data: bytes, settings: ServerSection) -> SchemaT:
    context = {RESULT_ATTACHMENTS: settings.result_attachments}
    try:
        return schema.model_validate_json(data, context=context)
    except ValidationError as error:
        raise from_validation(error) from None


def _check_headers(request: Request, max_bytes: int) -> None:
    content_type = request.headers.get("content-type", "application/json")
    if not _is_json(content_type):
        raise UnsupportedMediaType(
            f"The content type must be application/json in UTF-8; `{content_type[:100]}` was sent"
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"The body must not be compressed; the content encoding `{encoding[:100]}` was sent"
        )
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)


def _is_json(content_type: str) -> bool:
    media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if not media_type.startswith("application/") or not media_type.endswith(("/json", "+json")):
        return False
    charsets = [value for value in parameters if value.startswith("charset=")]
    return all(value.removeprefix("charset=").strip('"') in UTF8_NAMES for value in charsets)


async def _read(request: Request, limits: ServerSection) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    has_more = True
    now = asyncio.get_running_loop().time
    ends_at = now() + limits.receive_timeout_s
    try:
        async with asyncio.timeout(None) as timeout:
            while has_more:
                timeout.reschedule(min(ends_at, now() + MAX_PAUSE_S))
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                piece = message.get("body", b"")
                num_bytes += len(piece)
                if num_bytes > limits.max_body_bytes:
                    # The HTTP server drops what is still to come, and ends the connection.
                    raise _too_large(limits.max_body_bytes)
                pieces.append(piece)
                has_more = message.get("more_body", False)
    except TimeoutError:
        is_late = now() >= ends_at
        rule = f"within {limits.receive_timeout_s:g} s" if is_late else "whole"
        pause = "" if is_late else f"; nothing of it came for {MAX_PAUSE_S:g} s"
        raise BodyTimeout(f"The body has not come {rule}{pause}") from None
    return b"".join(pieces)


def _too_large(max_bytes: int) -> ContentTooLarge:
    return ContentTooLarge(f"The body is larger than the {max_bytes:,} bytes that are allowed")
