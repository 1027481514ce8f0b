"""Compaction: what a conversation came to, written by the model and carried by the client.

The text goes to the client in a form that says whose it is and is not meant to be read there. It
holds nothing but what the client's own conversation held, so it is encoded and not encrypted.
"""

from __future__ import annotations

import base64
import binascii

PREFIX = "di1."  # the form's version; what other servers have made does not begin so
REQUEST = (
    "Summarise the conversation above for an assistant that continues it without seeing it. Keep "
    "the goals, decisions, facts, names, open tasks and the results of tools that still matter. "
    "Answer with the summary only."
)
INTRODUCTION = "Summary of the conversation so far:"


def write_summary(text: str) -> str:
    return PREFIX + base64.urlsafe_b64encode(text.encode()).decode()


def read_summary(encrypted_content: str) -> str | None:
    """The text of `write_summary`; None for anything else."""
    if not encrypted_content.startswith(PREFIX):
        return None
    try:
        data = base64.b64decode(
            encrypted_content.removeprefix(PREFIX), altchars=b"-_", validate=True
        )
        return data.decode()
    except (binascii.Error, ValueError):
        return None
