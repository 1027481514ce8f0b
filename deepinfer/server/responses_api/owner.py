"""Whose a stored response is: the key that it was made with, as a digest.

Whether the key is a good one has been seen to by then. A server without keys takes whatever comes,
and tells those apart who send something else, or nothing.
"""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers

from deepinfer.server.auth import KEY_HEADER


def owner_of(headers: Headers) -> bytes:
    _, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() or headers.get(KEY_HEADER, "").strip()
    return hashlib.sha256(key.encode("latin-1")).digest()
