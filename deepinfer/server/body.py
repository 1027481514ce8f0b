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

logger = logging.getLogger(__name__)

# Above it JSON is parsed in a thread. That helps as far as Python's lock is passed on, which
# happens between fields and not within them; docs/reliability.md has the figures.
# The C library keeps memory for each such thread: with bodies of a megabyte some 150 MiB for them
# all, after which it is flat; MALLOC_ARENA_MAX=2 halves that.
INLINE_BYTES = 32 * 1024
UTF8_NAMES = {"utf-8", "utf8", "us-ascii", "ascii"}

SchemaT = TypeVar("SchemaT", bound=Schema)


async def read_json(request: Request, schema: type[SchemaT], *, limits: ServerSection) -> SchemaT:
    """The body as a `schema`. Raises a RequestError, or ClientDisconnected when it never ends."""
    _check_headers(request, limits.max_body_bytes)
    try:
        async with asyncio.timeout(limits.receive_timeout_s):
            data = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise BodyTimeout(f"The body has not come within {limits.receive_timeout_s:g} s") from None
    if len(data) <= INLINE_BYTES:
        body = _parse(schema, data, limits)
    else:
        body = await asyncio.to_thread(_parse, schema, data, limits)
    if body.unknown_fields:
        logger.debug("ignored unknown fields: %s", ", ".join(sorted(body.unknown_fields)))
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


async def _read(request: Request, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    num_bytes = 0
    has_more = True
    while has_more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece = message.get("body", b"")
        num_bytes += len(piece)
        if num_bytes > max_bytes:
            # What is still to come is read and dropped by the HTTP server.
            raise _too_large(max_bytes)
        pieces.append(piece)
        has_more = message.get("more_body", False)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> ContentTooLarge:
    return ContentTooLarge(f"The body is larger than the {max_bytes:,} bytes that are allowed")
