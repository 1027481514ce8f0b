"""Names for what has no name yet: unique however many requests come within one second."""

from __future__ import annotations

import re
import uuid

MAX_REQUEST_ID_CHARS = 128
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9._:/+=@-]")


def new_completion_id() -> str:
    return f"cmpl-{uuid.uuid4().hex}"


def new_chat_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def new_message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


def new_tool_use_id() -> str:
    return f"toolu_{uuid.uuid4().hex}"


def choose_request_id(offered: str | None) -> str:
    """The caller's own id as far as it is safe to log and to send back, or a new one."""
    kept = _NOT_ALLOWED.sub("", (offered or "")[:MAX_REQUEST_ID_CHARS])
    return kept or f"req-{uuid.uuid4().hex}"
