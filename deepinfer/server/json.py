"""Whole answers as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.responses import Response

from deepinfer.server.answers import Answer


def json_response(answer: Answer) -> Response:
    return Response(answer.model_dump_json().encode(), media_type="application/json")


def json_response_with_log_probs(
    answer: Answer, log_probs: Sequence[msgspec.Raw | None]
) -> Response:
    """`answer`, whose choices have no log probabilities, with those of each choice."""
    fields = answer.model_dump()
    for choice, encoded in zip(fields["choices"], log_probs, strict=True):
        choice["logprobs"] = encoded
    return Response(msgspec.json.encode(fields), media_type="application/json")
